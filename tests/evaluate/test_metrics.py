"""The figures against hand-computed cases, against scikit-learn if installed, and against their own laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate import metrics

NAMES = ["a", "b", "c"]
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 2, 2])
MATRIX = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_confusion_rows_are_truth() -> None:
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == MATRIX


def test_confusion_of_nothing() -> None:
    assert metrics.confusion_matrix(np.array([]), np.array([]), 2).tolist() == [[0, 0], [0, 0]]


def test_confusion_takes_small_integer_types() -> None:
    ids = np.full(3, 100, dtype=np.int8)  # 100 * 101 + 100 does not fit int8
    assert metrics.confusion_matrix(ids, ids, 101)[100, 100] == 3


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0], "labels has 2 rows, predictions has 1"),
        ([0, 2], [0, 0], r"labels\[1\] is 2, outside 0..1"),
        ([0, 0], [-1, 0], r"predictions\[0\] is -1"),
        ([0.5, 1.0], [0, 0], "must be integers"),
        ([[0, 1]], [[0, 1]], "one-dimensional"),
    ],
)
def test_confusion_refuses(labels: list, predictions: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(np.array(labels), np.array(predictions), 2)


def test_figures_by_hand() -> None:
    got = metrics.from_confusion(np.array(MATRIX), NAMES)
    assert got["rows"] == 6
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["per_class"]["a"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3})
    assert got["per_class"]["b"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert got["per_class"]["c"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert got["macro_precision"] == pytest.approx(2 / 3)
    assert got["macro_recall"] == pytest.approx(13 / 18)
    assert got["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert got["weighted_f1"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert got["confusion"] == MATRIX


def test_absent_class_is_listed_but_not_averaged() -> None:
    got = metrics.from_confusion(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]]), NAMES)
    assert got["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert got["macro_f1"] == 1.0


def test_class_only_predicted_is_averaged() -> None:
    got = metrics.from_confusion(np.array([[1, 1], [0, 0]]), ["a", "b"])
    assert got["macro_precision"] == 0.5
    assert got["macro_recall"] == 0.25


def test_no_rows_gives_zeros() -> None:
    got = metrics.summary(np.array([]), np.zeros((0, 2)), ["a", "b"])
    assert got["rows"] == 0
    assert {got[k] for k in ("accuracy", "macro_f1", "weighted_f1", "log_loss", "ece")} == {0.0}
    assert got["accuracy_interval"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        (np.zeros((2, 3), dtype=int), ["a", "b"]),
        (np.zeros((2, 2), dtype=int), ["a", "b", "c"]),
        (np.zeros((2, 2), dtype=int), ["a", "a"]),
        (np.zeros((2, 2)), ["a", "b"]),
        (np.array([[1, -1], [0, 0]]), ["a", "b"]),
    ],
)
def test_from_confusion_refuses(matrix: np.ndarray, names: list[str]) -> None:
    with pytest.raises(ValueError):
        metrics.from_confusion(matrix, names)


def test_summary_by_hand() -> None:
    got = metrics.summary(np.array([0, 1]), np.array([[0.8, 0.2], [0.6, 0.4]]), ["a", "b"])
    assert got["accuracy"] == 0.5
    assert got["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert got["ece"] == pytest.approx((0.2 + 0.6) / 2)  # right at 0.8: off by 0.2; wrong at 0.6: off by 0.6
    assert got["accuracy_interval"] == list(metrics.wilson_interval(1, 2))
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0], [[0.5, 0.5], [0.5, 0.5]], "labels has 1 rows, predictions has 2"),
        ([2], [[0.5, 0.5]], "outside 0..1"),
        ([0], [[0.5, 0.25, 0.25]], "3 columns for 2 label names"),
        ([0], [0.5, 0.5], "shape"),
        ([0], [[0.9, 0.9]], "not a distribution"),
        ([0], [[float("nan"), 1.0]], "not a distribution"),
        ([0], [[-0.5, 1.5]], "not a distribution"),
    ],
)
def test_summary_refuses(labels: list, probabilities: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.summary(np.array(labels), np.array(probabilities), ["a", "b"])


def test_certainty() -> None:
    sure = np.array([[1.0, 0.0]])
    assert metrics.log_loss(np.array([0]), sure) == 0.0
    assert math.copysign(1, metrics.log_loss(np.array([0]), sure)) == 1
    assert metrics.log_loss(np.array([1]), sure) == pytest.approx(36.04, abs=0.01)
    assert metrics.expected_calibration_error(np.array([0]), sure) == 0.0
    assert metrics.expected_calibration_error(np.array([1]), sure) == 1.0


def test_ece_cancels_inside_a_bin_only() -> None:
    # Ten rows at confidence 0.7, seven of them right: perfectly calibrated, though each single row is off.
    labels = np.array([0] * 7 + [1] * 3)
    probabilities = np.tile([0.7, 0.3], (10, 1))
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="bins"):
        metrics.expected_calibration_error(labels, probabilities, bins=0)


def test_wilson_by_hand() -> None:
    # 8 of 10, 95 %: the textbook interval is 0.490 to 0.943.
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson_interval(0, 10)[0] == 0.0
    assert metrics.wilson_interval(10, 10)[1] == 1.0
    assert metrics.wilson_interval(10, 10)[0] == pytest.approx(10 / (10 + 1.96**2))
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    assert metrics.wilson_interval(3, 4, z=0) == pytest.approx((0.75, 0.75))
    for bad in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError):
            metrics.wilson_interval(*bad)


pairs = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60)
    )
)


@given(pairs)
def test_the_books_balance(case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, rows = case
    truth, guess = np.array(rows).T
    matrix = metrics.confusion_matrix(truth, guess, classes)
    got = metrics.from_confusion(matrix, [str(i) for i in range(classes)])
    assert sum(c["support"] for c in got["per_class"].values()) == got["rows"] == len(rows)
    assert got["accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    low, high = metrics.wilson_interval(int(matrix.trace()), len(rows))
    assert 0 <= low <= got["accuracy"] <= high <= 1
    for one in got["per_class"].values():
        assert min(one["precision"], one["recall"]) - 1e-12 <= one["f1"]
        assert one["f1"] <= max(one["precision"], one["recall"]) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed: int) -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    classes = 7
    labels = rng.integers(0, classes - 1, 300)  # the last class never occurs in truth
    probabilities = rng.dirichlet(np.ones(classes) * 0.4, 300)
    guess = probabilities.argmax(axis=1)
    names = [f"label {i}" for i in range(classes)]
    got = metrics.summary(labels, probabilities, names)
    assert got["accuracy"] == pytest.approx(theirs.accuracy_score(labels, guess))
    assert got["log_loss"] == pytest.approx(theirs.log_loss(labels, probabilities, labels=range(classes)))
    assert got["confusion"] == theirs.confusion_matrix(labels, guess, labels=range(classes)).tolist()
    for average in ("macro", "weighted"):
        p, r, f, _ = theirs.precision_recall_fscore_support(labels, guess, average=average, zero_division=0)
        assert got[f"{average}_f1"] == pytest.approx(f)
        if average == "macro":
            assert (got["macro_precision"], got["macro_recall"]) == pytest.approx((p, r))
    each = theirs.precision_recall_fscore_support(labels, guess, labels=range(classes), zero_division=0)
    ours = np.array([[c["precision"], c["recall"], c["f1"], c["support"]] for c in got["per_class"].values()])
    np.testing.assert_allclose(ours, np.array(each).T)
