"""Token buckets on a clock of our own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.rate import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_second_worth_at_once_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(5, clock=clock)
    assert [limit.take("a") for _ in range(5)] == [0] * 5
    assert limit.take("a") == pytest.approx(0.2)
    assert limit.take("b") == 0  # everyone has a bucket
    clock.now += 0.19
    assert limit.take("a") == pytest.approx(0.01)
    clock.now += 0.01
    assert limit.take("a") == 0
    clock.now += 1_000
    assert [limit.take("a") for _ in range(6)][:5] == [0] * 5
    assert limit.take("a") > 0


def test_less_than_one_a_second() -> None:
    clock = Clock()
    limit = RateLimit(0.25, clock=clock)
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(4)
    clock.now += 4
    assert limit.take("a") == 0


@given(
    st.floats(0.01, 1_000),
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_never_more_than_the_bucket_and_the_rate_and_the_wait_is_true(rate: float, gaps: list[float]) -> None:
    clock = Clock()
    limit = RateLimit(rate, clock=clock)
    admitted = 0
    for gap in gaps:
        clock.now += gap
        wait = limit.take("a")
        admitted += not wait
        assert admitted <= limit.burst + clock.now * rate + 1e-6
        if wait:
            assert wait <= 1 / rate + 1e-9
            clock.now += math.ceil(wait)
            assert limit.take("a") == 0
            admitted += 1


def test_memory_is_bounded_and_the_longest_away_goes_first() -> None:
    clock = Clock()
    limit = RateLimit(1, clients=3, clock=clock)
    for client in "abc":
        assert limit.take(client) == 0
    assert limit.take("a") > 0  # and a is the last now
    assert limit.take("d") == 0
    assert len(limit) == 3
    assert limit.take("a") > 0
    assert limit.take("b") == 0  # forgotten
