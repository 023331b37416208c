"""Nearest training rows: by hand, kept and read again, and with a real network over prepared data."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_bert import LABELS, WORDS

from pipeline.config import load
from pipeline.data import named, prepare
from pipeline.errors import UserError
from pipeline.evaluate import evidence, report
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.metrics import summary
from pipeline.model.source import resolve
from pipeline.storage import Place


def index() -> Evidence:
    states = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    return Evidence(
        ["a:1", "a:2", "a:3"], ["one", "two", "three"], np.array([0, 1, 1]), np.zeros(2, np.float32), states
    )


def test_nearest_and_vote_by_hand() -> None:
    found, near = index().nearest(np.array([[0, 1], [1, 0]], np.float32), 2)
    assert found.tolist() == [[2, 1], [0, 1]]
    assert near.ravel() == pytest.approx([1, 0.6, 1, 0.8])
    votes = index().vote(np.array([[1, 0]], np.float32), 3, voters=2)
    assert votes[0] == pytest.approx([1 / 1.8, 0.8 / 1.8, 0])
    assert index().nearest(np.zeros((0, 2), np.float32), 5)[0].shape == (0, 3)  # three rows are all there are


def test_what_all_rows_share_tells_none_apart() -> None:
    away = Evidence(["a", "b"], ["", ""], np.array([0, 1]), np.array([9, 9], np.float32), np.eye(2, dtype=np.float32))
    found, near = away.nearest(np.array([[9, 10.5]], np.float32), 2)
    assert found.tolist() == [[1, 0]]
    assert near.ravel() == pytest.approx([1, 0])


def test_kept_and_read_again(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    with pytest.raises(UserError, match="'broadsheet evaluate' makes it"):
        Evidence.load(place)
    index().save(place)
    again = Evidence.load(place)
    assert (again.ids, again.texts, again.labels.tolist()) == (index().ids, index().texts, [0, 1, 1])
    assert again.states == pytest.approx(index().states, abs=1e-3)
    assert again.centre.tolist() == [0, 0]
    (tmp_path / evidence.FILE).write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="is damaged"):
        Evidence.load(place)


def test_a_vote_that_helps_and_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1_000)
    truth = np.eye(3)[labels]
    unsure = rng.dirichlet([1, 1, 1], 1_000)
    helpful = evidence.tried(labels, unsure, 0.9 * truth + 0.1 / 3)
    assert helpful["helps"]
    assert helpful["accuracy_with_vote"] > helpful["accuracy"] + 0.3
    assert helpful["accuracy_of_vote"] == 1
    right = 0.9 * truth + 0.1 / 3
    useless = evidence.tried(labels, right, unsure)
    assert (useless["share"], useless["helps"], useless["turned_right"], useless["turned_wrong"]) == (0.0, False, 0, 0)
    noise = evidence.tried(labels, unsure, rng.dirichlet([1, 1, 1], 1_000))
    assert not noise["helps"]
    assert evidence.tried(labels[:0], unsure[:0], unsure[:0])["rows"] == 0


def test_states_are_what_the_labels_are_read_off(bert: Path) -> None:
    classifier = Classifier.load(str(bert), "fp32")
    texts = ["bank oil fund", "goal " * 20, "芯片", "team win bank"]
    ids = classifier.encode(texts).ids
    done = classifier.with_states(ids, 64)
    assert done is not None
    logits, states = done
    assert logits == pytest.approx(classifier.all_logits(ids, 1_024), abs=1e-4)
    assert np.linalg.norm(states, axis=1) == pytest.approx(1, abs=1e-5)
    head = classifier.network.classifier
    scaled = (logits - head.bias.detach().numpy()) / (states @ head.weight.detach().numpy().T)
    assert scaled == pytest.approx(np.repeat(scaled[:, :1], len(LABELS), 1), rel=1e-2)  # one length per row


def test_evidence_of_prepared_data(tmp_path: Path, bert: Path) -> None:
    generator = random.Random(1)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8") as f:
        f.write("text,label\n")
        for i in range(300):
            name = LABELS[i % 3]
            f.write(f"{' '.join(generator.choices(WORDS[name], k=6))},{name}\n")
    sets = [f"model.name={bert}", "model.max_tokens=32", "data.profile_rows=0", "data.near_duplicates=keep"]
    config = load(None, sets, {"storage": str(tmp_path / "runs"), "data.train": (str(tmp_path / "rows.csv"),)})
    prepared, _ = prepare.prepare(named.resolve(config)[0], resolve(str(bert)))
    folder = tmp_path / "checkpoint"
    shutil.copytree(bert, folder)
    where, mistake = (
        Place.of(folder),
        {"text": "goal team cup", "truth": "sport", "predicted": "money", "confidence": 0.9},
    )
    classifier = Classifier.load(str(folder))
    assert evidence.examine(classifier, where, prepared, [mistake], 0) is None
    facts = evidence.examine(classifier, where, prepared, [mistake], 50)
    assert facts is not None
    assert (facts["rows"], facts["used"]) == (50, False)
    kept = Evidence.load(where)
    assert np.bincount(kept.labels).min() > 10
    train = {r["id"]: r for r in prepared.table("train", ["id", "text", "label"]).to_pylist()}
    assert all(
        train[i]["text"] == t and train[i]["label"] == y
        for i, t, y in zip(kept.ids, kept.texts, kept.labels, strict=True)
    )
    nearest = mistake["nearest"]
    assert len(nearest) == evidence.NEAREST
    assert nearest[0]["similarity"] >= nearest[1]["similarity"]
    assert {n["label"] for n in nearest} <= set(LABELS)
    (itself,) = evidence.nearest(classifier, kept, [kept.texts[7]], 1)
    assert itself[0]["similarity"] == pytest.approx(1, abs=2e-3)

    test = summary(np.array([0, 1, 2]), np.eye(3), LABELS)
    html = report.write_html({"title": "t", "test": test, "mistakes": [mistake], "evidence": facts})
    assert nearest[0]["id"] in html
    assert "it is written down and not used" in html
