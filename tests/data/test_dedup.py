"""Keys of equal texts, and which row of several stays."""

from __future__ import annotations

import numpy as np

from pipeline.data import dedup


def test_equal_texts_meet_whatever_their_case() -> None:
    assert dedup.text_key("Straße") == dedup.text_key("STRASSE")
    assert dedup.text_key("a b") != dedup.text_key("ab")
    assert len(dedup.text_key("")) == dedup.KEY_BYTES


def test_halves_are_the_same_for_lists_and_arrays() -> None:
    texts = ["a", "b", "股市"]
    a, b = dedup.halves([dedup.text_key(t) for t in texts]), dedup.halves(dedup.text_keys(texts))
    assert a.shape == (3, 2)
    np.testing.assert_array_equal(a, b)
    assert dedup.halves([]).shape == (0, 2)


def test_first_row_of_each_key_stays() -> None:
    keep, kept_at = dedup.first_of_each([b"x", b"y", b"x", b"z", b"y"])
    assert keep.tolist() == [True, True, False, True, False]
    assert kept_at.tolist() == [0, 1, 0, 3, 1]


def test_reason_names_the_graver_matter() -> None:
    assert dedup.reason("a", "b", "train", "test") == dedup.CONFLICT
    assert dedup.reason("a", "a", "train", "test") == dedup.LEAK
    assert dedup.reason("a", "a", "train", "train") == dedup.SAME
