"""The hash split: stratified, exact for classes of ordinary size, blind to order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.data.profile import SPLITS
from pipeline.data.split import SMALLEST_SPLIT_CLASS, HashSketch, as_arrays, assign


def hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def counts(values: np.ndarray, test: float, validation: float, size: int = 16_384) -> Counter[str]:
    sketch = HashSketch(size)
    sketch.add("a", values)
    return Counter(splits(values, sketch.bounds(test, validation)))


def splits(values: np.ndarray, bounds: dict[str, tuple[int, int]], files: str = "train") -> list[str]:
    zeros = np.zeros(len(values), np.int64)
    return [SPLITS[i] for i in assign(zeros, values, zeros + SPLITS.index(files), as_arrays(["a"], bounds))]


@pytest.mark.parametrize(("n", "test", "validation"), [(5, 1, 1), (10, 1, 2), (100, 10, 20), (1234, 123, 247)])
def test_counts_are_exact(n: int, test: int, validation: int) -> None:
    assert counts(hashes(n), 0.1, 0.2) == {"test": test, "validation": validation, "train": n - test - validation}


def test_tiny_classes_stay_in_train() -> None:
    for n in range(1, SMALLEST_SPLIT_CLASS):
        assert counts(hashes(n), 0.4, 0.4) == {"train": n}


def test_a_split_with_its_own_file_takes_nothing() -> None:
    assert counts(hashes(100), 0, 0.1) == {"validation": 10, "train": 90}
    assert counts(hashes(100), 0, 0) == {"train": 100}


def test_large_classes_are_close() -> None:
    got = counts(hashes(20_000), 0.1, 0.2, size=1000)
    assert abs(got["test"] - 2000) < 150
    assert abs(got["validation"] - 4000) < 200


def test_bounds_do_not_depend_on_how_rows_arrive() -> None:
    values = hashes(1000)
    parts = np.array_split(np.random.default_rng(1).permutation(np.concatenate([values, values[:300]])), 7)
    for size in (100, 5000):
        whole, pieces = HashSketch(size), HashSketch(size)
        whole.add("a", values)
        for part in parts:
            pieces.add("a", part)
        np.testing.assert_array_equal(whole.smallest["a"], pieces.smallest["a"])
        assert whole.bounds(0.1, 0.1) == pieces.bounds(0.1, 0.1)


def test_equal_texts_share_a_split_and_files_keep_theirs() -> None:
    values = np.repeat(hashes(50), 2)
    sketch = HashSketch()
    sketch.add("a", values)
    got = splits(values, sketch.bounds(0.2, 0.2))
    assert got[::2] == got[1::2]
    assert Counter(got[::2]) == {"test": 10, "validation": 10, "train": 30}
    for files in ("test", "validation"):
        assert set(splits(values, sketch.bounds(0.2, 0.2), files)) == {files}


def test_counts_of_distinct_texts() -> None:
    generator = np.random.default_rng(3)
    sketch = HashSketch(size=1_000)
    for _ in range(20):
        sketch.add("large", generator.integers(0, 2**64, 5_000, np.uint64))
    sketch.add("small", np.array([5, 5, 7], np.uint64))
    counts = sketch.counts()
    assert counts["small"] == 2
    assert counts["large"] == pytest.approx(100_000, rel=0.1)
