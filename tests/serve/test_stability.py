"""The population stability index: by hand, its properties, and what chance does to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.stability import ALARM, BY_CHANCE, FLOOR, MIN_ROWS, WARN, noise, psi, rows_needed, verdict

COUNTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=12)


def test_by_hand() -> None:
    # (0.4 - 0.5) ln(0.4 / 0.5) + (0.4 - 0.3) ln(0.4 / 0.3) + 0 = 0.0223144 + 0.0287682
    assert psi([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]) == pytest.approx(0.0510826, abs=1e-7)
    # 0.5 ln(0.5 / 0.0005) for the bin that was empty, -0.5 ln(0.5) for the other
    assert psi([1, 0], [0.5, 0.5]) == pytest.approx(0.4995 * math.log(1000) + 0.5 * math.log(2))


def test_a_bin_that_is_empty_on_both_sides_adds_nothing() -> None:
    assert psi([0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0]) == psi([0.6, 0.4], [0.4, 0.6])


@given(COUNTS)
def test_never_below_zero_and_symmetric(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) / max(1, sum(side)) for side in zip(*rows, strict=True))
    assert psi(a, b) >= 0
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert psi(a, a) == 0


@given(COUNTS)
def test_zero_means_equal_but_for_what_the_floor_hides(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) / max(1, sum(side)) for side in zip(*rows, strict=True))
    if psi(a, b) < 1e-15:
        assert np.maximum(a, FLOOR) == pytest.approx(np.maximum(b, FLOOR), abs=1e-6)


@pytest.mark.parametrize("bins", [2, 4, 10, 20, 52])
def test_chance(bins: int) -> None:
    """Of an unchanged population: the mean is the noise, and enough rows are enough."""
    generator = np.random.default_rng(bins)
    shares = generator.dirichlet([3] * bins)
    known_rows, rows = 2_000, int(rows_needed(bins, 2_000))
    known = generator.multinomial(known_rows, shares, 2_000)
    live = generator.multinomial(rows, shares, 2_000)
    found = [psi(a / known_rows, b / rows) for a, b in zip(known, live, strict=True)]
    assert np.mean(found) == pytest.approx(noise(bins, rows, known_rows), rel=0.1)
    said = [verdict(index, bins, rows, known_rows) for index in found]
    # Small bins have heavier tails than chi-square; four times as many rows are beyond all doubt.
    assert said.count("ok") >= (1 - 8 * BY_CHANCE) * len(said)
    more = generator.multinomial(4 * rows, shares, 2_000)
    assert all(
        verdict(psi(a / known_rows, b / (4 * rows)), bins, 4 * rows, known_rows) == "ok"
        for a, b in zip(known, more, strict=True)
    )


def test_too_few_rows() -> None:
    assert rows_needed(2, 10**9) == MIN_ROWS
    assert rows_needed(10, 2_000) < rows_needed(20, 2_000) < rows_needed(52, 2_000)
    assert rows_needed(10, 100) > rows_needed(10, 2_000)
    assert rows_needed(52, 100) == math.inf  # a hundred rows say nothing of 52 labels, however many live ones come
    assert rows_needed(1, 2_000) == rows_needed(2, 2_000)  # the reference fills one bin: live rows may fill another
    assert verdict(9, 10, rows_needed(10, 2_000) - 1, 2_000) == "too few rows"
    assert verdict(9, 52, 10**9, 100) == "too few rows"


def test_verdicts_are_of_what_is_left_without_the_noise() -> None:
    chance = noise(10, 500, 2_000)
    assert verdict(WARN + chance / 2, 10, 500, 2_000) == "ok"
    assert verdict(WARN + chance, 10, 500, 2_000) == "warn"
    assert verdict(ALARM + chance, 10, 500, 2_000) == "alarm"
