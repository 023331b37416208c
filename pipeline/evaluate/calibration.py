"""How well confidence says accuracy, and one number that mends most of what it does not: temperature scaling.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017: divide all logits by one T, fitted
on validation rows by the negative log likelihood. The most probable class stays what it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from pipeline.evaluate import metrics

MIN_ROWS = 100  # validation rows; with fewer the fit would be noise
MIN_WRONG = 5  # of them; without mistakes the likelihood only ever asks for more confidence
RANGE = (0.1, 10.0)  # of T

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def logits_of(probabilities: Floats, temperature: float) -> Floats:
    """Logits at temperature 1, up to a constant per row, from probabilities at a temperature.

    Args:
        probabilities: [rows, classes]; zeros count as float64's smallest normal number.
        temperature: what the logits were divided by.
    """
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) * temperature


def probabilities_of(logits: Floats, temperature: float) -> Floats:
    """Softmax at a temperature, [rows, classes]."""
    return np.asarray(softmax(logits / temperature, axis=1))


def fit_temperature(labels: Ints, logits: Floats) -> float:
    """The temperature at which the labels are most likely.

    The negative log likelihood is convex in 1/T (log-sum-exp of a linear function, less a linear one), so a bounded
    scalar search finds its one minimum in ``RANGE``.

    Args:
        labels: true class ids, [rows].
        logits: at temperature 1, [rows, classes].
    """
    from scipy.optimize import minimize_scalar  # here: whoever only applies a temperature need not wait for it

    rows = np.arange(len(labels))

    def loss(inverse: float) -> float:
        return -float(log_softmax(logits * inverse, axis=1)[rows, labels].mean())

    low, high = RANGE
    found = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


def chosen_temperature(labels: Ints, logits: Floats, current: float) -> tuple[float, str]:
    """The temperature to use, rounded to 4 digits, and how it was found or why it stays what it is.

    Args:
        labels: of the validation rows, [rows].
        logits: at temperature 1, [rows, classes].
        current: the checkpoint's.
    """
    wrong = int((logits.argmax(axis=1) != labels).sum()) if len(labels) else 0
    if len(labels) < MIN_ROWS:
        return current, f"not fitted: {len(labels):,} validation rows, {MIN_ROWS} are needed"
    if wrong < MIN_WRONG:
        return current, f"not fitted: {wrong} mistakes on {len(labels):,} validation rows, {MIN_WRONG} are needed"
    return round(fit_temperature(labels, logits), 4), f"fitted on {len(labels):,} validation rows"


def reliability(labels: Ints, probabilities: Floats, bins: int = metrics.ECE_BINS) -> list[dict[str, Any]]:
    """Confidence and accuracy by bin of confidence, the bins that hold rows: what the calibration error sums up.

    Returns:
        Dicts of ``low``, ``high`` (the bin is ``(low, high]``), ``rows``, ``confidence`` (mean), ``accuracy``.
    """
    if not len(labels):
        return []
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    which = metrics.confidence_bins(confidence, bins)
    found = []
    for k in np.unique(which):
        here = which == k
        found.append(
            {
                "low": float(k / bins),
                "high": float((k + 1) / bins),
                "rows": int(here.sum()),
                "confidence": float(confidence[here].mean()),
                "accuracy": float(right[here].mean()),
            }
        )
    return found


def report(labels: Ints, logits: Floats, before: float, after: float, how: str) -> dict[str, Any]:
    """Calibration of test rows at two temperatures.

    Args:
        labels: of the test rows, [rows].
        logits: at temperature 1, [rows, classes].
        before: 1, what the network says of itself.
        after: the temperature in use.
        how: it was found, from ``chosen_temperature``.

    Returns:
        ``temperature``, ``how``, and ``before`` and ``after`` with ``temperature``, ``ece``, ``log_loss``, ``bins``.
    """

    def at(temperature: float) -> dict[str, Any]:
        scores = probabilities_of(logits, temperature)
        return {
            "temperature": temperature,
            "ece": metrics.expected_calibration_error(labels, scores),
            "log_loss": metrics.log_loss(labels, scores),
            "bins": reliability(labels, scores),
        }

    return {"temperature": after, "how": how, "before": at(before), "after": at(after)}
