"""Golden rows: kept, read, and what fails on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate.golden import CHECKED, FILE, ROWS, Golden, agreement, shift
from pipeline.storage import Place

LOGITS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32) * 4
ROW = Golden([f"text {i}" for i in range(40)], LOGITS.argmax(1).astype(np.int64), LOGITS)


def answered(logits: np.ndarray) -> str | None:
    return ROW.failure(lambda texts: logits[: len(texts)])


def test_round_trip(tmp_path: Path) -> None:
    ROW.save(Place.of(tmp_path))
    found = Golden.load(Place.of(tmp_path))
    assert found is not None
    assert found.texts == ROW.texts
    np.testing.assert_array_equal(found.labels, ROW.labels)
    np.testing.assert_array_equal(found.logits, ROW.logits)


def test_no_more_than_so_many_rows_are_kept(tmp_path: Path) -> None:
    many = Golden(["a"] * (ROWS + 5), np.zeros(ROWS + 5, np.int64), np.zeros((ROWS + 5, 2), np.float32))
    many.save(Place.of(tmp_path))
    found = Golden.load(Place.of(tmp_path))
    assert found is not None
    assert len(found.texts) == len(found.logits) == ROWS


def test_none_and_damaged(tmp_path: Path) -> None:
    assert Golden.load(Place.of(tmp_path)) is None
    (tmp_path / FILE).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="damaged"):
        Golden.load(Place.of(tmp_path))


def test_the_same_answers_pass_up_to_a_constant_and_rounding() -> None:
    assert answered(LOGITS) is None
    assert answered(LOGITS + np.arange(40)[:, None] + 1e-3) is None


def test_other_answers_fail_with_a_reason() -> None:
    assert "3 of 32" in str(answered(np.vstack([-LOGITS[:3], LOGITS[3:]])))
    assert "another label" in str(answered(-LOGITS))
    assert "confidence" in str(answered(LOGITS * 0.3))
    assert "not numbers" in str(answered(np.full_like(LOGITS, np.nan)))
    assert "2 labels" in str(answered(LOGITS[:, :2]))


def test_no_rows_say_nothing() -> None:
    none = np.zeros((0, 3), np.float32)
    assert (agreement(none, none), shift(none, none)) == (1.0, 0.0)
    assert CHECKED < ROWS
