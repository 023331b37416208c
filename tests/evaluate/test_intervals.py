"""Bootstrap intervals against a bootstrap of rows, against scipy's, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluate import intervals, metrics

MATRIX = np.array([[80, 15, 5], [10, 40, 0], [2, 3, 45]])
NAMES = ["a", "b", "c"]


def rows_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.nonzero(matrix)
    return np.repeat(truth, matrix[truth, predicted]), np.repeat(predicted, matrix[truth, predicted])


def test_as_a_bootstrap_of_rows() -> None:
    """Cells drawn by a multinomial and rows drawn with replacement are one distribution."""
    truth, predicted = rows_of(MATRIX)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(2_000):
        at = rng.integers(0, len(truth), len(truth))
        got = metrics.from_confusion(metrics.confusion_matrix(truth[at], predicted[at], 3), NAMES)
        b = got["per_class"]["b"]
        drawn.append([got["accuracy"], got["macro_f1"], b["precision"], b["recall"], b["f1"]])
    expected = np.percentile(drawn, [2.5, 97.5], axis=0).T
    found = intervals.of_confusion(MATRIX, NAMES, seed=1, resamples=2_000)
    b = found["per_class"]["b"]
    assert [found["accuracy"], found["macro_f1"], b["precision"], b["recall"], b["f1"]] == pytest.approx(
        expected, abs=0.015
    )


def test_the_accuracy_as_scipys_percentile_bootstrap() -> None:
    truth, predicted = rows_of(MATRIX)
    right = (truth == predicted).astype(float)
    ours = intervals.of_confusion(MATRIX, NAMES, seed=1, resamples=5_000)["accuracy"]
    theirs = stats.bootstrap((right,), np.mean, n_resamples=5_000, method="percentile", rng=2).confidence_interval
    assert ours == pytest.approx(list(theirs), abs=0.01)


def test_figures_of_a_draw_are_those_of_its_matrix() -> None:
    truth, predicted = np.nonzero(MATRIX)
    accuracy, precision, recall, f1 = intervals.figures(MATRIX[truth, predicted][None], truth, predicted, 3)
    expected = metrics.from_confusion(MATRIX, NAMES)
    assert accuracy[0] == expected["accuracy"]
    for name, column in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert column[0].tolist() == pytest.approx([expected["per_class"][n][name] for n in NAMES])
    assert intervals.mean_of_known(f1)[0] == pytest.approx(expected["macro_f1"])


def test_equal_seeds_give_equal_intervals_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    one = intervals.of_confusion(MATRIX, NAMES, seed=5)
    assert one == intervals.of_confusion(MATRIX, NAMES, seed=5)
    assert one != intervals.of_confusion(MATRIX, NAMES, seed=6)
    monkeypatch.setattr(intervals, "CELLS_AT_ONCE", 50)
    assert one == intervals.of_confusion(MATRIX, NAMES, seed=5)


def test_what_is_not_known() -> None:
    found = intervals.of_confusion(np.array([[10, 0, 0], [10, 0, 0], [0, 0, 0]]), NAMES, seed=1)
    assert found["per_class"]["b"]["precision"] == [0.0, 1.0]  # never predicted
    assert found["per_class"]["b"]["recall"] == [0.0, 0.0]
    assert found["per_class"]["c"] == {"precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]}
    nothing = intervals.of_confusion(np.zeros((2, 2), int), ["a", "b"], seed=1)
    assert nothing["accuracy"] == [0.0, 1.0]
    assert intervals.of_confusion(np.array([[5, 0], [0, 5]]), ["a", "b"], seed=1)["accuracy"] == [1.0, 1.0]
