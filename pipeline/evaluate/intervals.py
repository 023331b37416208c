"""How far the figures of a test could have come out otherwise: percentile bootstrap intervals.

A resample of rows, drawn with replacement, is a multinomial draw over the cells of the confusion matrix: all figures
here depend on the rows through their cells alone. So cells are drawn, not rows, and it costs no more with more rows
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13, for the percentile interval).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

RESAMPLES = 1_000
LEVEL = 0.95
CELLS_AT_ONCE = 1 << 22  # counts held at a time: 32 MB

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def of_confusion(
    matrix: npt.ArrayLike, label_names: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Intervals of 95 % for the figures of ``metrics.from_confusion``.

    Args:
        matrix: integer counts, [classes, classes]; the row is the truth.
        label_names: one per class.
        seed: of the draws; equal seeds give equal intervals.
        resamples: how many draws.

    Returns:
        ``accuracy`` and ``macro_f1`` as ``[low, high]``, ``per_class`` (name -> the same of ``precision``,
        ``recall``, ``f1``), ``resamples``, ``level``. A resample in which a share has no denominator does not count
        for it; a share that never has one lies in ``[0.0, 1.0]``, since nothing is known.
    """
    counts = np.asarray(matrix, np.int64)
    truth, predicted = np.nonzero(counts)
    parts = [
        figures(draws, truth, predicted, len(label_names))
        for draws in resampled(counts[truth, predicted], seed, resamples)
    ]
    accuracy, *shares = (np.concatenate(part) for part in zip(*parts, strict=True))
    precision, recall, f1 = (interval(share) for share in shares)
    return {
        "accuracy": interval(accuracy[:, None])[0],
        "macro_f1": interval(mean_of_known(shares[2])[:, None])[0],
        "per_class": {
            name: {"precision": precision[i], "recall": recall[i], "f1": f1[i]} for i, name in enumerate(label_names)
        },
        "resamples": resamples,
        "level": LEVEL,
    }


def resampled(counts: Ints, seed: int, resamples: int = RESAMPLES) -> Iterator[Ints]:
    """Multinomial draws of as many rows as there are, a block of resamples at a time, [block, cells]."""
    rng, rows, cells = np.random.default_rng(seed), int(counts.sum()), len(counts)
    shares = counts / max(1, rows)
    block = max(1, CELLS_AT_ONCE // max(1, cells))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield rng.multinomial(rows, shares, size) if cells else np.zeros((size, 0), np.int64)


def figures(draws: Ints, truth: Ints, predicted: Ints, classes: int) -> tuple[Floats, Floats, Floats, Floats]:
    """The figures of each draw.

    Args:
        draws: rows in each cell, [draws, cells].
        truth, predicted: the classes of each cell, [cells].
        classes: how many there are.

    Returns:
        Accuracy [draws], then precision, recall and F1 [draws, classes]; NaN where the denominator is zero.
    """
    right = truth == predicted
    total = draws.sum(axis=1)
    tp = _summed(draws[:, right], truth[right], classes)
    support, guessed = _summed(draws, truth, classes), _summed(draws, predicted, classes)
    return (
        _share(draws[:, right].sum(axis=1), total),
        _share(tp, guessed),
        _share(tp, support),
        _share(2 * tp, support + guessed),
    )


def mean_of_known(shares: Floats) -> Floats:
    """The mean over the classes with a known share, of each draw, [draws]; NaN where there is none."""
    known = ~np.isnan(shares)
    return _share(np.where(known, shares, 0.0).sum(axis=1), known.sum(axis=1))


def interval(values: Floats) -> list[list[float]]:
    """``[low, high]`` of each column of [draws, columns], NaN left out; ``[0.0, 1.0]`` for a column of NaN."""
    ends = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    columns = [column[~np.isnan(column)] for column in values.T]
    return [[float(v) for v in np.percentile(column, ends)] if len(column) else [0.0, 1.0] for column in columns]


def _summed(draws: Ints, classes_of: Ints, classes: int) -> Ints:
    cells = len(classes_of)
    to_class = sparse.csr_array((np.ones(cells, np.int64), (classes_of, np.arange(cells))), shape=(classes, cells))
    return np.asarray((to_class @ draws.T).T)


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
