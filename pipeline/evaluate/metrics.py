"""How good a classifier is, in plain figures: confusion, precision, recall, F1, log loss, calibration error.

Pure numpy, no Ray and no torch. All shares lie in 0..1. A share whose denominator is zero (the precision of a
class never predicted, the recall of a class that never occurs) counts as 0.0, as in scikit-learn with
``zero_division=0``. Results hold plain Python ints, floats, lists and dicts, ready for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

ECE_BINS = 15


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count every (truth, prediction) pair.

    Args:
        labels: true class ids, integers, shape ``[rows]``.
        predictions: predicted class ids, integers, shape ``[rows]``.
        classes: how many classes there are; ids lie in ``0..classes-1``.

    Returns:
        int64 counts, shape ``[classes, classes]``; the row is the truth, the column the prediction.

    Raises:
        ValueError: the arrays differ in length, are not one-dimensional integers, or an id is out of range.
    """
    truth = _ids("labels", labels, classes)
    guess = _ids("predictions", predictions, classes)
    if len(truth) != len(guess):
        raise ValueError(f"labels has {len(truth)} rows, predictions has {len(guess)}")
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def from_confusion(matrix: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Derive every count-based figure from a confusion matrix.

    With ``tp`` the diagonal: precision = tp / predicted, recall = tp / support, and F1 = 2 tp / (support +
    predicted), the harmonic mean of the two (van Rijsbergen, Information Retrieval, 1979, ch. 7).
    Macro averages are unweighted means over the classes that occur in truth or prediction, scikit-learn's
    default; a class that occurs in neither is listed in ``per_class`` with zeros and left out of the means.
    ``weighted_f1`` weighs each class's F1 with its support.

    Args:
        matrix: counts, shape ``[classes, classes]``, row = truth.
        label_names: unique names, one per class, in id order.

    Returns:
        ``rows`` (int), ``accuracy``, ``macro_precision``, ``macro_recall``, ``macro_f1``, ``weighted_f1``
        (shares), ``per_class`` (name -> ``precision``, ``recall``, ``f1`` as shares, ``support`` in rows) and
        ``confusion`` (the matrix as lists). With no rows at all every share is 0.0.

    Raises:
        ValueError: the matrix does not fit the names or its counts are no whole numbers, or a name repeats.
    """
    counts = np.asarray(matrix)
    names = [str(name) for name in label_names]
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"confusion matrix of shape {counts.shape} for {len(names)} label names")
    if len(set(names)) != len(names):
        raise ValueError("label names must be unique")
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise ValueError("a confusion matrix holds integer counts of zero or more")
    tp = counts.diagonal().astype(np.float64)
    support = counts.sum(axis=1)
    predicted = counts.sum(axis=0)
    precision, recall, f1 = _share(tp, predicted), _share(tp, support), _share(2 * tp, support + predicted)
    occurs = (support + predicted) > 0
    rows = int(counts.sum())

    def macro(values: np.ndarray) -> float:
        return float(values[occurs].mean()) if occurs.any() else 0.0

    return {
        "rows": rows,
        "accuracy": float(tp.sum() / rows) if rows else 0.0,
        "macro_precision": macro(precision),
        "macro_recall": macro(recall),
        "macro_f1": macro(f1),
        "weighted_f1": float((f1 * support).sum() / rows) if rows else 0.0,
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": counts.tolist(),
    }


def summary(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Say everything about one split; the prediction is the most probable class, the first one on a tie.

    Args:
        labels: true class ids, integers, shape ``[rows]``.
        probabilities: shape ``[rows, classes]``; each row sums to 1.
        label_names: unique names, one per class, in id order.

    Returns:
        ``from_confusion``'s dict plus ``accuracy_interval`` (95 % Wilson interval, ``[low, high]``),
        ``log_loss`` (see ``log_loss``, nats) and ``ece`` (see ``expected_calibration_error``, a share).

    Raises:
        ValueError: shapes do not fit together, an id is out of range, or a row is not a distribution.
    """
    scores = _distributions(probabilities)
    if scores.shape[1] != len(label_names):
        raise ValueError(f"probabilities has {scores.shape[1]} columns for {len(label_names)} label names")
    matrix = confusion_matrix(labels, scores.argmax(axis=1), len(label_names))
    result = from_confusion(matrix, label_names)
    result["accuracy_interval"] = list(wilson_interval(int(matrix.trace()), result["rows"]))
    result["log_loss"] = log_loss(labels, scores)
    result["ece"] = expected_calibration_error(labels, scores)
    return result


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log likelihood of the truth, in nats; log(classes) is what a uniform guess scores.

    Probabilities are clipped from below at float64's epsilon (2.2e-16): a certain mistake costs 36 nats, not
    infinity, as in scikit-learn.

    Args:
        labels: true class ids, integers, shape ``[rows]``.
        probabilities: shape ``[rows, classes]``; each row sums to 1.

    Returns:
        Nats per row; 0.0 with no rows.

    Raises:
        ValueError: shapes do not fit together, an id is out of range, or a row is not a distribution.
    """
    scores, truth = _paired(labels, probabilities)
    if not len(truth):
        return 0.0
    chosen = scores[np.arange(len(truth)), truth]
    # abs: a perfect score is 0.0, not -0.0; a likelihood a rounding above 1 stays at 1.
    return float(abs(np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0)).mean()))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """How far confidence lies from accuracy, on average.

    ECE = sum over bins of (rows in bin / rows) * |accuracy in bin - mean confidence in bin|, on equal-width
    bins ``(k/bins, (k+1)/bins]`` of the top probability (Guo, Pleiss, Sun and Weinberger, On Calibration of
    Modern Neural Networks, ICML 2017, section 2; they report 15 bins).

    Args:
        labels: true class ids, integers, shape ``[rows]``.
        probabilities: shape ``[rows, classes]``; each row sums to 1.
        bins: how many bins.

    Returns:
        A share in 0..1; 0.0 with no rows.

    Raises:
        ValueError: shapes do not fit together, an id is out of range, a row is not a distribution, or
            ``bins`` < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    scores, truth = _paired(labels, probabilities)
    if not len(truth):
        return 0.0
    confidence = scores.max(axis=1)
    right = (scores.argmax(axis=1) == truth).astype(np.float64)
    gap = np.bincount(confidence_bins(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def confidence_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin ``(k/bins, (k+1)/bins]`` of each confidence, [rows]; 0 lies in the first."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval for a share, sound at small ``n`` and near 0 or 1 (Wilson, JASA 22:209-212, 1927).

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z / (1 + z^2/n) * sqrt(p (1-p) / n + z^2/4n^2).

    Args:
        successes: rows that came out right.
        n: rows in all.
        z: standard normal quantile; 1.96 gives 95 %.

    Returns:
        ``(low, high)``, shares in 0..1; ``(0.0, 1.0)`` when ``n`` is 0, since nothing is known.

    Raises:
        ValueError: not 0 <= successes <= n, or ``z`` is negative.
    """
    if not 0 <= successes <= n or z < 0:
        raise ValueError(f"need 0 <= successes <= n and z >= 0, not successes={successes}, n={n}, z={z}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the bound is exactly 0 or 1; min and max keep rounding from stepping past p.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def _ids(what: str, values: np.ndarray, classes: int) -> np.ndarray:
    """Class ids as int64, shape ``[rows]``, each in ``0..classes-1``; ValueError otherwise."""
    ids = np.asarray(values)
    if ids.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not of shape {ids.shape}")
    if ids.size == 0:
        return ids.astype(np.int64)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{what} must be integers, not {ids.dtype}")
    bad = np.flatnonzero((ids < 0) | (ids >= classes))
    if bad.size:
        raise ValueError(f"{what}[{bad[0]}] is {ids[bad[0]]}, outside 0..{classes - 1}")
    return ids.astype(np.int64)


def _distributions(probabilities: np.ndarray) -> np.ndarray:
    """Float64 probabilities, shape ``[rows, classes]``; each row sums to 1 within 1e-3 (float16 passes)."""
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"probabilities must have shape [rows, classes], not {scores.shape}")
    # Written so that NaN fails too.
    fine = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) <= 1e-3)
    bad = np.flatnonzero(~fine)
    if bad.size:
        raise ValueError(f"probabilities[{bad[0]}] is not a distribution: {scores[bad[0]].tolist()[:8]}")
    return scores


def _paired(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked ``(probabilities, label ids)`` of equal length."""
    scores = _distributions(probabilities)
    truth = _ids("labels", labels, scores.shape[1])
    if len(truth) != len(scores):
        raise ValueError(f"labels has {len(truth)} rows, probabilities has {len(scores)}")
    return scores, truth


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole`` elementwise, 0.0 where ``whole`` is zero."""
    return np.divide(part, whole, out=np.zeros(len(part), dtype=np.float64), where=whole > 0)
