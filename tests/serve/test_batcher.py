"""The queue policy, pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.passes import Passes
from serve.batcher import Entry, Queue, QueueFull, Ticket, fill


def waiting(*tokens: int, deadline: float = 100.0) -> list[Entry]:
    return [Entry(n, 0.0, Ticket(deadline), i) for i, n in enumerate(tokens)]


def queue_of(entries: list[Entry], batch_tokens: int = 100, limit: int = 1000) -> Queue:
    queue = Queue(batch_tokens, limit)
    queue.reserve(len(entries))
    queue.add(entries)
    return queue


def lengths(entries: list[Entry]) -> list[int]:
    return [e.tokens for e in entries]


def test_oldest_first_then_neighbours_in_length() -> None:
    queue = queue_of(waiting(20, 90, 21, 1, 19, 22, 50))
    assert lengths(queue.take(0).entries) == [20, 21, 19, 22]  # 4 x 22 fits 100, five do not
    assert lengths(queue.take(0).entries) == [90]
    assert lengths(queue.take(0).entries) == [1, 50]
    assert queue.take(0).entries == []


def test_padding_costs_no_more_than_a_pass_of_its_own() -> None:
    assert sorted(fill(waiting(40, 60, 42, 10, 38), 1_000)) == [0, 1, 2, 3, 4]
    assert sorted(fill(waiting(40, 60, 42, 10, 38), 1_000, 8)) == [0, 2, 4]  # 38 and 40 are padded to 42: 6 tokens
    assert sorted(fill(waiting(40, 60, 42, 10, 38), 1_000, 5)) == [0, 4]
    assert sorted(fill(waiting(40, 60, 42, 40, 38), 1_000, 0)) == [0, 3]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 400), st.integers(0, 200))
def test_every_batch_keeps_both_bounds(tokens: list[int], budget: int, pass_tokens: int) -> None:
    chosen = [tokens[i] for i in fill(waiting(*tokens), budget, pass_tokens)]
    assert tokens[0] in chosen
    area = len(chosen) * max(chosen)
    assert area <= max(budget, tokens[0])
    assert area - sum(chosen) <= pass_tokens


def test_a_text_over_the_budget_still_goes() -> None:
    queue = queue_of(waiting(500, 500))
    assert lengths(queue.take(0).entries) == [500]
    assert lengths(queue.take(0).entries) == [500]


def test_equal_lengths_keep_the_order_of_arrival() -> None:
    entries = waiting(10, 10, 10, 10, 10)
    taken = queue_of(entries, batch_tokens=30).take(0).entries
    assert [e.index for e in taken] == [0, 1, 2]


def test_expired_are_handed_back_and_cancelled_vanish() -> None:
    late, gone, fine = waiting(5, deadline=1.0)[0], waiting(5)[0], waiting(5)[0]
    gone.ticket.cancelled = True
    batch = queue_of([late, gone, fine]).take(2.0)
    assert batch.expired == [late]
    assert batch.entries == [fine]


def test_the_bound_counts_reserved_and_waiting_but_not_cancelled() -> None:
    entries = waiting(1, 1)
    queue = queue_of(entries, limit=3)
    queue.reserve(1)
    with pytest.raises(QueueFull):
        queue.reserve(1)
    queue.release(1)
    entries[0].ticket.cancelled = True
    queue.reserve(2)
    with pytest.raises(QueueFull):
        queue.reserve(1)


TEXT = st.tuples(st.integers(1, 300), st.floats(0, 10), st.booleans())


@given(st.lists(TEXT, max_size=60), st.integers(1, 400), st.lists(st.integers(1, 10), min_size=1))
def test_nothing_is_lost_nothing_starves(
    texts: list[tuple[int, float, bool]], batch_tokens: int, steps: list[int]
) -> None:
    """Texts trickle in between batches; each comes out exactly once, by the rules."""
    queue = Queue(batch_tokens, 1000)
    entries = [Entry(n, 0.0, Ticket(deadline), i) for i, (n, deadline, _) in enumerate(texts)]
    for entry, (_, _, cancelled) in zip(entries, texts, strict=True):
        entry.ticket.cancelled = cancelled
    coming = list(entries)
    inside: list[Entry] = []
    ran: list[Entry] = []
    expired: list[Entry] = []
    now = 0.0
    turn = 0
    while coming or len(queue):
        count = steps[turn % len(steps)]
        new, coming = coming[:count], coming[count:]
        queue.reserve(len(new))
        queue.add(new)
        inside += new
        batch = queue.take(now)
        alive = [e for e in inside if not e.ticket.cancelled and e.ticket.deadline >= now]
        assert bool(batch.entries) == bool(alive)
        if batch.entries:
            assert alive[0] in batch.entries  # the oldest never waits for another turn
            cost = len(batch.entries) * max(lengths(batch.entries))
            assert len(batch.entries) == 1 or cost <= batch_tokens
        assert all(e.ticket.deadline < now for e in batch.expired)
        ran += batch.entries
        expired += batch.expired
        inside = [e for e in inside if e not in batch.entries and e not in batch.expired]
        now += 0.5
        turn += 1
    out = ran + expired
    assert len({id(e) for e in out}) == len(out)
    assert {id(e) for e in out} == {id(e) for e in entries if not e.ticket.cancelled}


def test_few_texts_are_padded_as_what_runs_small_batches_likes_it() -> None:
    passes = Passes(large_from=100, padding=1_000, small_padding=5)
    for count, together in ((3, 2), (20, 20)):
        queue = Queue(2_048, 100, passes)
        queue.reserve(count)
        queue.add(waiting(*([10, 30, 12] if count == 3 else [10, 30] * 10)))
        assert len(queue.take(0.0).entries) == together
    assert Queue(2_048, 100, Passes(batch_tokens=512)).batch_tokens == 512
