"""From one latency goal to the knobs."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ServeConfig
from pipeline.evaluate.passes import ANY
from serve import capacity
from serve.capacity import Rates

CONFIG = ServeConfig()


def test_by_hand_where_batches_gain_nothing() -> None:
    """10 ms a text, alone or not: 30 texts in flight take 300 ms, a third of them are 100 ms in the mean."""
    knobs = capacity.derive(300, Rates(10, 100, 16, 50), CONFIG, 128)
    assert knobs.target_ongoing_requests == pytest.approx(30 / 2.9957, abs=0.01)
    assert knobs.max_queue == 300  # 3 s of work
    assert knobs.batch_tokens == 750  # 15 texts of 50 tokens: 150 ms
    assert knobs.reachable


def test_by_hand_where_a_pass_costs_the_same_whatever_is_in_it() -> None:
    """8 ms a pass and 1 ms a text: alone 9 ms, 16 in 24 ms."""
    knobs = capacity.derive(66, Rates(9, 16 / 0.024, 16, 50), CONFIG, 128)
    assert knobs.target_ongoing_requests == pytest.approx(50 / 2.9957, abs=0.01)  # two passes, and 50 ms for 50 texts
    assert knobs.batch_tokens == 1100


def test_a_goal_out_of_reach_is_told() -> None:
    rates = Rates(10, 100, 16, 50)
    knobs = capacity.derive(5, rates, CONFIG, 128)
    assert not knobs.reachable
    assert (knobs.target_ongoing_requests, knobs.max_queue, knobs.batch_tokens) == (0.25, 256, 128)
    assert capacity.lines(5, rates, knobs) == [
        "goal 5 ms; a replica takes 10.0 ms for a text alone and does 100 texts a second in batches "
        "(texts of 50 tokens)",
        "so serve.target_ongoing_requests=0.25, serve.max_queue=256, serve.batch_tokens=128",
    ]


@given(
    goal=st.floats(1, 60_000),
    single=st.floats(0.05, 10_000),
    rate=st.floats(0.05, 100_000),
    batch=st.floats(1, 64),
    tokens=st.floats(1, 512),
)
def test_knobs_are_always_in_range_and_grow_with_the_goal(
    goal: float, single: float, rate: float, batch: float, tokens: float
) -> None:
    rates = Rates(single, rate, batch, tokens)
    less, more = (capacity.derive(g, rates, CONFIG, 128) for g in (goal, 2 * goal))
    assert 0.25 <= less.target_ongoing_requests <= more.target_ongoing_requests
    assert CONFIG.max_texts <= less.max_queue <= more.max_queue
    assert 128 <= less.batch_tokens <= more.batch_tokens <= CONFIG.batch_tokens
    assert less.reachable <= more.reachable


class Slow:
    """Takes 2 ms a pass and 1 ms a token."""

    passes = ANY

    def __init__(self) -> None:
        self.clock = 0.0

    def encode(self, texts: Sequence[str]) -> SimpleNamespace:
        return SimpleNamespace(ids=[np.zeros(len(t.split()), np.int64) for t in texts])

    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        self.clock += 0.002 + 0.001 * sum(map(len, ids))
        return np.zeros((len(ids), 2), np.float32)

    def all_logits(self, ids: Sequence[np.ndarray], batch_tokens: int) -> np.ndarray:
        return self.logits(ids)


def test_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Slow()
    monkeypatch.setattr(capacity.time, "perf_counter", lambda: engine.clock)
    texts = ["a b c"] * 50 + ["a b c d e"] * 50
    rates = capacity.measure(engine, texts, 10, seconds=10)
    assert rates.single_ms == pytest.approx(6)  # median of 5 and 7
    assert rates.batch == 10
    assert rates.tokens == 4
    assert rates.texts_per_s == pytest.approx(100 / (10 * 0.002 + 0.4))
