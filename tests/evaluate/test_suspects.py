"""Confident learning on a table checked by hand, and on labels that were spoilt on purpose."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from pipeline.data.prepared import Tokens
from pipeline.evaluate import suspects


def test_the_confident_joint_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.65, 0.35]])
    # Thresholds: class 0 (0.9+0.8+0.1)/3 = 0.6; class 1 (0.8+0.7+0.35)/3 = 0.617.
    found = suspects.find(labels, scores)
    assert found.rows.tolist() == [2, 5]
    assert found.suggested.tolist() == [1, 0]
    assert found.margin == pytest.approx([-0.8, -0.3])
    # The joint is [[2, 1], [1, 2]]: a third of the labels of either class.
    assert found.noise == pytest.approx(1 / 3)


def test_a_row_below_every_threshold_is_no_suspect() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.55, 0.45]])
    assert suspects.find(labels, scores).rows.tolist() == []  # 0.55 is more than its own class gets, but below 0.9


def test_of_several_reached_thresholds_the_most_probable_counts() -> None:
    labels = np.array([0, 1, 2, 0])
    scores = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4], [0.0, 0.45, 0.55]])
    found = suspects.find(labels, scores)
    assert found.rows.tolist() == [3]
    assert found.suggested.tolist() == [2]


def test_nothing_and_classes_without_rows() -> None:
    assert suspects.find(np.array([], int), np.zeros((0, 3))).noise is None
    scores = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
    found = suspects.find(np.array([0, 1]), scores)
    assert 2 not in found.suggested  # nobody is labelled so


def some_tokens(rows: int, classes: int, seed: int = 0) -> Tokens:
    """Texts of ten tokens, most of them from the twenty of their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    ids = np.where(rng.random((rows, 10)) < 0.7, labels[:, None] * 20 + rng.integers(0, 20, (rows, 10)),
                   rng.integers(0, 20 * classes, (rows, 10)))  # fmt: skip
    return Tokens(ids.astype(np.int32).ravel(), np.arange(rows + 1) * 10, labels)


def test_planted_mistakes_are_found() -> None:
    clean = some_tokens(900, 3)
    rng = np.random.default_rng(1)
    spoilt = rng.choice(900, 45, replace=False)
    labels = clean.labels.copy()
    labels[spoilt] = (labels[spoilt] + 1) % 3
    rows, scores = suspects.cross_validated(Tokens(clean.ids, clean.offsets, labels), 3, seed=5)
    assert rows.tolist() == list(range(900))
    assert scores.sum(axis=1) == pytest.approx(np.ones(900))
    found = suspects.find(labels, scores)
    hits = np.isin(spoilt, found.rows[:60])
    assert hits.sum() >= 36
    assert found.noise == pytest.approx(0.05, abs=0.03)
    suggested = dict(zip(found.rows.tolist(), found.suggested.tolist(), strict=True))
    assert [suggested[int(i)] for i in spoilt[hits]] == clean.labels[spoilt[hits]].tolist()


def test_classes_too_small_for_the_folds_are_left_out() -> None:
    tokens = some_tokens(60, 3)
    labels = np.where(np.arange(60) == 2, 2, tokens.labels % 2)  # a single row of class 2
    rows, scores = suspects.cross_validated(Tokens(tokens.ids, tokens.offsets, labels), 3, seed=5)
    assert 2 not in rows
    assert len(rows) == 59
    assert (scores[:, 2] == 0).all()
    alone = suspects.cross_validated(Tokens(tokens.ids, tokens.offsets, np.zeros(60, int)), 3, seed=5)
    assert len(alone[0]) == 0


def test_the_csv_reads_back() -> None:
    row = {"id": "a.csv:2", "split": "train", "text": 'say "x",\ny', "label": "a", "suggested": "b", "confidence": 0.5}
    written = suspects.to_csv([row, {**row, "text": "=HYPERLINK(1)"}])
    assert written[0] == "\ufeff"  # or Excel reads Chinese as something else
    back, formula = csv.DictReader(io.StringIO(written[1:]))
    assert back == {**row, "confidence": "0.5"}
    assert formula["text"] == "'=HYPERLINK(1)"
