"""Where the model is weaker: accuracy on parts of the test rows, and which of them chance cannot explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from pipeline.evaluate.metrics import wilson_interval

MIN_ROWS = 30  # of a part and of the rest; fewer rows are not judged, nor shown
ALPHA = 0.05  # of all tests together

Mask = npt.NDArray[np.bool_]


def masks(
    labels: npt.NDArray[np.int64], label_names: Sequence[str], lengths: npt.NDArray[np.int64], twins: Mask
) -> dict[str, dict[str, Mask]]:
    """The parts that are looked at: by length, by class, and by likeness to a training row.

    Args:
        labels: true class ids, [rows].
        label_names: one per class.
        lengths: tokens of each row, [rows].
        twins: whether a training row equal or nearly equal to the row was set aside, [rows].

    Returns:
        Dimension -> part -> whether each row belongs to it, [rows].
    """
    parts = {"length": by_length(lengths)}
    parts["class"] = {name: labels == i for i, name in enumerate(label_names)}
    parts["a twin in train"] = {"a training row like it was set aside": twins, "none": ~twins}
    return parts


def by_length(lengths: npt.NDArray[np.int64]) -> dict[str, Mask]:
    """Quarters by length; lengths that many rows share stay together."""
    if not len(lengths):
        return {}
    cuts = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    which = np.searchsorted(cuts, lengths, side="left")
    found = {}
    for k in np.unique(which):
        here = which == k
        low, high = int(lengths[here].min()), int(lengths[here].max())
        found[f"{low} to {high} tokens" if low < high else f"{low} tokens"] = here
    return found


def judge(right: Mask, parts: Mapping[str, Mapping[str, Mask]]) -> list[dict[str, Any]]:
    """Accuracy of each part against that of all other rows.

    The difference is tested by the two-proportion z-test with a pooled share, the p-values multiplied by the number of
    tests (Bonferroni).

    Args:
        right: whether each prediction is right, [rows].
        parts: from ``masks``.

    Returns:
        Dicts of ``dimension``, ``part``, ``rows``, ``accuracy``, ``interval`` (Wilson, 95 %), ``rest`` (accuracy of the
        others), ``p`` (adjusted), ``worse`` (significantly). Parts too small to judge are left out, and with them
        dimensions of which fewer than two are left.
    """
    found: list[dict[str, Any]] = []
    for dimension, masks_of in parts.items():
        large = {
            name: mask
            for name, mask in masks_of.items()
            if mask.sum() >= MIN_ROWS and len(mask) - mask.sum() >= MIN_ROWS
        }
        if len(large) < 2:
            continue
        for name, mask in large.items():
            hits, rows = int(right[mask].sum()), int(mask.sum())
            other_hits, others = int(right[~mask].sum()), int((~mask).sum())
            found.append(
                {
                    "dimension": dimension,
                    "part": name,
                    "rows": rows,
                    "accuracy": hits / rows,
                    "interval": list(wilson_interval(hits, rows)),
                    "rest": other_hits / others,
                    "p": two_proportions(hits, rows, other_hits, others),
                }
            )
    for part in found:
        part["p"] = min(1.0, part["p"] * len(found))
        part["worse"] = bool(part["p"] < ALPHA and part["accuracy"] < part["rest"])
    return found


def two_proportions(hits: int, rows: int, other_hits: int, others: int) -> float:
    """Two-sided p-value of the z-test that two shares are equal, with a pooled share (see Agresti, Categorical Data
    Analysis, 2013, section 3.2.1); 1.0 where all rows or none are hits."""
    pooled = (hits + other_hits) / (rows + others)
    error = (pooled * (1 - pooled) * (1 / rows + 1 / others)) ** 0.5
    return float(2 * norm.sf(abs(hits / rows - other_hits / others) / error)) if error else 1.0


def warning(judged: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence about the parts that are significantly worse, the worst first; None if there is none."""
    worse = sorted((part for part in judged if part["worse"]), key=lambda part: part["accuracy"] - part["rest"])
    if not worse:
        return None
    shown = [f"{p['dimension']} '{p['part']}' {p['accuracy']:.1%} against {p['rest']:.1%}" for p in worse[:4]]
    more = f" and {len(worse) - 4} more" if len(worse) > 4 else ""
    return f"accuracy is significantly lower on: {'; '.join(shown)}{more}"
