"""The queue policy: which waiting texts the model takes next. Pure: no HTTP, no Ray, no torch, no threads.

A forward pass over a padded batch costs ``rows x longest`` tokens, so a batch is good when its texts are
about equally long. The oldest text always goes first; then its neighbours in length fill the batch, up to the
token budget, and up to as much padding as a forward pass of its own would cost: beyond that, two passes are
faster than one. Nothing starves, because each batch takes the oldest text whatever its length, and nothing waits
for company: a free model takes what is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.evaluate.passes import ANY, Passes


class QueueFull(Exception):
    """More texts are waiting than the queue may hold; the caller should come back later."""


class DeadlinePassed(Exception):
    """A text waited longer than its deadline allows."""


class Ticket:
    """One request: what its texts have in common. ``cancelled`` may be set at any time, from any thread."""

    __slots__ = ("cancelled", "deadline")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.cancelled = False


@dataclass(slots=True, eq=False)
class Entry:
    """One text in the queue."""

    tokens: int
    arrived: float
    ticket: Ticket
    index: int = 0  # which text of the request this is
    payload: Any = None


class Batch(NamedTuple):
    """What ``Queue.take`` hands out: the texts to run, and the ones that are past their deadline."""

    entries: list[Entry]
    expired: list[Entry]


class Queue:
    """Texts in order of arrival, with room for ``limit`` of them, cut into batches of ``batch_tokens`` at most.

    Room is reserved before a request costs any work (tokenization comes before the queue), so the bound holds
    for everything that was let in and is not on the model yet.
    """

    def __init__(self, batch_tokens: int, limit: int, passes: Passes = ANY) -> None:
        self.batch_tokens = int(min(batch_tokens, passes.batch_tokens))
        self.passes = passes
        self.limit = limit
        self._entries: list[Entry] = []
        self._reserved = 0

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, count: int) -> None:
        """Keep room for ``count`` texts.

        Raises:
            QueueFull: there is not enough room; nothing was reserved.
        """
        if len(self._entries) + self._reserved + count > self.limit:
            self._entries = [e for e in self._entries if not e.ticket.cancelled]
        waiting = len(self._entries) + self._reserved
        if waiting + count > self.limit:
            raise QueueFull(f"{waiting} texts are waiting, at most {self.limit} may")
        self._reserved += count

    def release(self, count: int) -> None:
        """Give back room that was reserved and not used."""
        self._reserved -= count

    def add(self, entries: Iterable[Entry]) -> None:
        """Put texts into room that was reserved for them."""
        entries = list(entries)
        self._reserved -= len(entries)
        self._entries.extend(entries)

    def take(self, now: float) -> Batch:
        """Remove and return the next batch; cancelled texts vanish. It is empty only if nothing is left."""
        alive: list[Entry] = []
        expired: list[Entry] = []
        for entry in self._entries:
            if not entry.ticket.cancelled:
                (expired if entry.ticket.deadline < now else alive).append(entry)
        # What runs large batches pays more for each pass, and takes more padding for it: not where few texts wait.
        large = sum(e.tokens for e in alive) >= self.passes.large_from
        chosen = fill(alive, self.batch_tokens, self.passes.padding if large else self.passes.small_padding)
        self._entries = [entry for i, entry in enumerate(alive) if i not in chosen]
        return Batch([alive[i] for i in sorted(chosen)], expired)

    def drain(self) -> list[Entry]:
        """Remove and return everything."""
        entries, self._entries = self._entries, []
        return entries


def fill(waiting: Sequence[Entry], batch_tokens: int, pass_tokens: float = math.inf) -> set[int]:
    """Positions of the next batch: the first of ``waiting``, then its neighbours in length within two bounds.

    The first text is taken even if it alone is over the budget. Among neighbours the closer in length comes
    first, and among equally long texts the older.

    Args:
        waiting: oldest first.
        batch_tokens: the most that rows x longest may be.
        pass_tokens: the most padding; what a forward pass costs whatever is in it, in tokens that the same time
            would do in a large batch.
    """
    if not waiting:
        return set()
    order = sorted(range(len(waiting)), key=lambda i: (waiting[i].tokens, i))
    low = high = order.index(0)
    first = longest = waiting[0].tokens
    padding = 0
    chosen = {0}
    while True:
        rows = len(chosen) + 1
        shorter = longer = None
        if low > 0 and rows * longest <= batch_tokens:
            tokens = waiting[order[low - 1]].tokens
            if padding + longest - tokens <= pass_tokens:
                shorter = first - tokens
        if high + 1 < len(order):
            tokens = waiting[order[high + 1]].tokens
            if rows * tokens <= batch_tokens and padding + len(chosen) * (tokens - longest) <= pass_tokens:
                longer = tokens - first
        if shorter is None and longer is None:
            return chosen
        if longer is None or (shorter is not None and shorter <= longer):
            low -= 1
            chosen.add(order[low])
            padding += longest - waiting[order[low]].tokens
        else:
            high += 1
            padding += len(chosen) * (waiting[order[high]].tokens - longest)
            chosen.add(order[high])
            longest = waiting[order[high]].tokens
