"""Batches planned from lengths: complete, within budget, the same for any number of workers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.batches import Plan, evaluation_steps, learning_rate_at, pad, plan_epoch, sample, share

LENGTHS = np.random.default_rng(0).integers(3, 60, 3000)


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 100), st.integers(0, 2))
@settings(deadline=None)
def test_epoch_holds_every_row_once_within_the_budget(lengths: list[int], budget: int, epoch: int) -> None:
    values = np.array(lengths, np.int64)
    batches = plan_epoch(values, budget, 1, epoch)
    assert sorted(r for b in batches for r in b.tolist()) == list(range(len(lengths)))
    for batch in batches:
        mine = values[batch]
        assert mine[0] == mine.max()
        assert len(batch) == 1 or len(batch) * mine.max() <= budget


def test_padding_is_small_and_epochs_differ() -> None:
    first, second = (plan_epoch(LENGTHS, 512, 1, e) for e in (0, 1))
    padded = sum(len(b) * LENGTHS[b].max() for b in first)
    assert padded / LENGTHS.sum() < 1.1
    assert [b.tolist() for b in first] == [b.tolist() for b in plan_epoch(LENGTHS, 512, 1, 0)]
    assert {tuple(b) for b in first} != {tuple(b) for b in second}
    assert {tuple(b) for b in first} != {tuple(b) for b in plan_epoch(LENGTHS, 512, 2, 0)}


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_disjoint_complete_and_alike(world: int) -> None:
    for batch in plan_epoch(LENGTHS, 512, 1, 0):
        shares = [share(batch, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
        sizes = [len(s) for s in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.25])
def test_plan_is_the_same_on_every_rank_and_resumes_anywhere(epochs: float) -> None:
    one, two = (Plan(LENGTHS, 1024, epochs, 3) for _ in range(2))
    assert one.steps == two.steps == sum(one.steps_per_epoch)
    batches = [one.batch(s) for s in range(one.steps)]
    for step in (one.steps - 1, 0, one.steps // 2):  # the other rank starts elsewhere, backwards too
        epoch, rows = two.batch(step)
        assert epoch == batches[step][0]
        assert rows.tolist() == batches[step][1].tolist()
    seen = Counter(r for epoch, b in batches for r in b.tolist() if epoch < int(epochs))
    assert set(seen.values()) <= {int(epochs)}
    assert len(seen) == (len(LENGTHS) if epochs >= 1 else 0)
    assert one.epochs_done(one.steps - 1) == pytest.approx(epochs, abs=0.05)


def test_sample_is_stratified_and_fixed() -> None:
    labels = np.repeat([0, 1, 2], [700, 280, 20])
    rows = sample(labels, 100, 5)
    assert Counter(labels[rows].tolist()) == {0: 70, 1: 28, 2: 2}
    assert rows.tolist() == sorted(set(rows.tolist())) == sample(labels, 100, 5).tolist()
    assert rows.tolist() != sample(labels, 100, 6).tolist()
    assert sample(labels, None, 5).tolist() == sample(labels, 5000, 5).tolist() == list(range(1000))
    assert set(labels[sample(labels, 8, 5)].tolist()) == {0, 1, 2}


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_pad_matches_a_loop(texts: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5))
    ids = np.array([i for t in texts for i in t], np.int32)
    offsets = np.cumsum([0, *(len(t) for t in texts)])
    got, mask = pad(ids, offsets, np.array(rows, np.int64), 7)
    width = max([1, *(len(texts[r]) for r in rows)])
    assert got.tolist() == [texts[r] + [7] * (width - len(texts[r])) for r in rows]
    assert mask.tolist() == [[1] * len(texts[r]) + [0] * (width - len(texts[r])) for r in rows]
    assert got.dtype == mask.dtype == np.int64


def test_learning_rate_rises_then_falls_to_the_end() -> None:
    rates = [learning_rate_at(s, 100, 2.0, 0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[99] < 0.03
    assert rates[100] == 0
    assert learning_rate_at(0, 10, 2.0, 0.0) == 2.0
    assert learning_rate_at(0, 1, 2.0, 0.99) == 2.0


@given(st.integers(1, 500), st.integers(1, 20))
@settings(deadline=None)
def test_evaluations_are_even_and_end_with_the_last_step(steps: int, evaluations: int) -> None:
    at = evaluation_steps(steps, evaluations)
    assert len(at) == min(steps, evaluations)
    assert at[-1] == steps
    assert at[0] >= 1
    gaps = np.diff([0, *at])
    assert gaps.max() - gaps.min() <= 1
