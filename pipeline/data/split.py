"""Split by a hash of the text, stratified: equal texts never straddle splits, and no row order matters.

Each text has a uniform 64-bit hash. Within a class, the rows with the smallest hashes are the test rows, the
next ones validation, the rest train. For a class of fewer than ``SKETCH_SIZE`` distinct texts the bounds are exact
order statistics; a larger class is cut at ``fraction * 2**64``, whose relative error is then below
``sqrt(1 / (fraction * SKETCH_SIZE))``, about 2.5% at a tenth (binomial). So the memory needed does not grow
with the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SKETCH_SIZE = 16_384
SMALLEST_SPLIT_CLASS = 5  # a smaller class stays whole in train: one test row says nothing and costs a fifth


@dataclass(slots=True)
class HashSketch:
    """The smallest distinct hashes of each class (a bottom-k sketch)."""

    size: int = SKETCH_SIZE
    smallest: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict)

    def add(self, label: str, hashes: npt.NDArray[np.uint64]) -> None:
        """Take in the hashes of rows of one class; duplicates count once."""
        seen = self.smallest.get(label)
        merged = np.unique(hashes if seen is None else np.concatenate([seen, hashes]))
        self.smallest[label] = merged[: self.size]

    def counts(self) -> dict[str, int]:
        """Distinct texts of each class: of a large one an estimate, to a per cent or so.

        The k-th smallest of n uniform hashes lies near k / n (k minimum values; Bar-Yossef et al. 2002).
        """
        return {
            label: len(h) if len(h) < self.size else round((self.size - 1) * 2**64 / int(h[-1]))
            for label, h in self.smallest.items()
        }

    def bounds(self, test_fraction: float, validation_fraction: float) -> dict[str, tuple[int, int]]:
        """Per class ``(test, validation)``: a hash below the first is test, else below the second validation."""
        return {
            label: class_bounds(hashes, len(hashes) < self.size, test_fraction, validation_fraction)
            for label, hashes in self.smallest.items()
        }


def class_bounds(
    hashes: npt.NDArray[np.uint64], exact: bool, test_fraction: float, validation_fraction: float
) -> tuple[int, int]:
    """The two bounds of one class.

    Args:
        hashes: the smallest distinct hashes, rising.
        exact: whether these are all of them.
        test_fraction: share of rows for the test, 0 where a test file was given.
        validation_fraction: share of rows for validation, 0 where a file was given.
    """
    if not exact:
        test = int(test_fraction * 2**64)
        return test, test + int(validation_fraction * 2**64)
    n = len(hashes)
    at_least = 1 if n >= SMALLEST_SPLIT_CLASS else 0
    tests = max(at_least, round(n * test_fraction)) if test_fraction and at_least else 0
    validations = max(at_least, round(n * validation_fraction)) if validation_fraction and at_least else 0

    def bound(rows: int) -> int:
        return int(hashes[rows]) if rows < n else 2**64

    return bound(tests), bound(tests + validations)


Bounds = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def as_arrays(labels: Sequence[str], bounds: Mapping[str, tuple[int, int]]) -> Bounds:
    """The bounds of all classes, [labels] each; a class without bounds stays whole in train."""
    pairs = [bounds.get(label, (0, 0)) for label in labels]
    # 2**64 does not fit: the largest hash of all is then left to train, one text in 10**19.
    test, validation = (np.array([min(p[i], 2**64 - 1) for p in pairs], np.uint64) for i in (0, 1))
    return test, validation


def assign(
    labels: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64], sets: npt.NDArray[np.int64], bounds: Bounds
) -> npt.NDArray[np.int64]:
    """The split of each row, as an index into ``profile.SPLITS``.

    Args:
        labels: label id of each row.
        hashes: the split hash of each row.
        sets: where the row's file belongs: validation and test stay; train is split by ``bounds``.
        bounds: from ``as_arrays``.
    """
    test, validation = (b[labels] for b in bounds)
    drawn = np.where(hashes < test, 2, np.where(hashes < validation, 1, 0))
    return np.where(sets == 0, drawn, sets)
