"""Keys of equal texts, and which row of several stays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data import dedup


def halves(*texts: str) -> np.ndarray:
    return dedup.halves_of(pa.array([dedup.text_key(t) for t in texts], pa.binary(dedup.KEY_BYTES)))


def test_equal_texts_meet_whatever_their_case() -> None:
    assert dedup.text_key("Straße") == dedup.text_key("STRASSE")
    assert dedup.text_key("a b") != dedup.text_key("ab")
    assert len(dedup.text_key("")) == dedup.KEY_BYTES


def test_halves_are_the_bytes_of_the_key() -> None:
    assert halves("a", "股市").shape == (2, 2)
    assert halves("a")[0].tobytes() == dedup.text_key("a")
    assert halves().shape == (0, 2)
    keys = pa.array([dedup.text_key(t) for t in "abc"], pa.binary(dedup.KEY_BYTES))
    np.testing.assert_array_equal(dedup.halves_of(keys.slice(1, 2)), dedup.halves_of(keys)[1:])


def test_first_row_of_each_key_stands_for_the_others() -> None:
    assert dedup.first_of_each(halves("x", "y", "x", "z", "y", "x")).tolist() == [0, 1, 0, 3, 1, 0]
    assert dedup.first_of_each(halves()).tolist() == []


@pytest.mark.parametrize(
    ("policy", "labels", "sets", "standing"),
    [
        ("keep", [0, 1, 1], [0, 0, 0], [0, 0, 0]),
        ("majority", [0, 1, 1], [0, 0, 0], [1, 1, 1]),
        ("majority", [0, 1, 0, 1], [0, 0, 0, 0], [-1] * 4),
        ("drop", [0, 1, 1], [0, 0, 0], [-1] * 3),
        ("drop", [0, 0, 0], [0, 0, 0], [0, 0, 0]),
        ("drop", [0, 1, 1], [2, 0, 0], [0, 0, 0]),
        ("majority", [0, 1, 0, 1, 1], [2, 2, 2, 0, 0], [0] * 5),
    ],
)
def test_conflicts(policy: str, labels: list[int], sets: list[int], standing: list[int]) -> None:
    first = np.zeros(len(labels), np.int64)
    assert dedup.settle_conflicts(first, np.array(labels), np.array(sets), policy).tolist() == standing


def test_reason_names_the_graver_matter() -> None:
    assert dedup.reason(near=False, same_label=False, same_split=False) == dedup.CONFLICT
    assert dedup.reason(near=False, same_label=True, same_split=False) == dedup.LEAK
    assert dedup.reason(near=False, same_label=True, same_split=True) == dedup.SAME
    assert dedup.reason(near=True, same_label=False, same_split=True) == dedup.NEAR_CONFLICT
    assert dedup.reason(near=True, same_label=True, same_split=False) == dedup.NEAR_LEAK
    assert dedup.reason(near=True, same_label=True, same_split=True) == dedup.NEAR
