"""The model in a thread of its own, fed by the queue policy.

The thread takes the next batch the moment it is free. Answers come back through ``call_soon_threadsafe`` and
are never set on a future that is already done: a client that hangs up cancels its future, and setting a
result on that raises, which would end a hand-written loop for good.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipeline.evaluate.passes import ANY, Passes
from serve.batcher import DeadlinePassed, Entry, Queue, QueueFull, Ticket

log = logging.getLogger("ray.serve")

CALLS = 16  # pieces of work between batches that may wait

T = TypeVar("T")


class NotReady(Exception):
    """The model is not running (yet, or any more)."""


class ModelFailed(Exception):
    """The forward pass raised; the cause is chained."""


class Answer(NamedTuple):
    """The rows of one request, and where its time went."""

    rows: np.ndarray
    queue_s: float
    inference_s: float


class Room:
    """Places in the queue that are reserved and not used yet."""

    __slots__ = ("left",)

    def __init__(self, count: int) -> None:
        self.left = count


class _Request(Ticket):
    __slots__ = ("future", "inference_s", "missing", "rows", "started")

    def __init__(self, deadline: float, count: int, future: asyncio.Future[Answer], started: float) -> None:
        super().__init__(deadline)
        self.future = future
        self.missing = count
        self.rows: list[Any] = [None] * count
        self.started = started
        self.inference_s = 0.0


class _Call(Ticket):
    __slots__ = ("future", "work")

    def __init__(self, deadline: float, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        super().__init__(deadline)
        self.work = work
        self.future = future


class Batcher:
    """One thread around ``forward``, fed by the queue policy. Made for one event loop.

    Args:
        forward: token ids of several texts in, one row per text out. Runs in the batcher's thread only.
        batch_tokens: rows x longest of one forward pass.
        max_queue: texts that may wait.
        timeout_s: a text that waited longer is given up.
        passes: which batches ``forward`` is fastest in.
        observe: told of each batch: its texts, and its tokens with padding.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[np.ndarray]], np.ndarray],
        *,
        batch_tokens: int,
        max_queue: int,
        timeout_s: float,
        passes: Passes = ANY,
        observe: Callable[[int, int], None] | None = None,
    ) -> None:
        self._forward = forward
        self._queue = Queue(batch_tokens, max_queue, passes)
        self._calls: deque[_Call] = deque()
        self._observe = observe
        self.batch_tokens = self._queue.batch_tokens
        self.max_queue = max_queue
        self.timeout_s = timeout_s
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def alive(self) -> bool:
        """Whether the model thread runs."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def waiting(self) -> int:
        """Texts that wait for the model."""
        return len(self._queue)

    def start(self) -> None:
        """Start the model thread for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the thread after the batch it is at; what still waits fails with ``NotReady``."""
        with self._wake:
            self._stopping = True
            left = self._queue.drain()
            calls, self._calls = self._calls, deque()
            self._wake.notify()
        self._fail(left, NotReady("the server is shutting down"))
        for call in calls:
            self._settle(call, NotReady("the server is shutting down"))
        if self._thread is not None:
            self._thread.join(timeout_s)

    @contextmanager
    def room(self, count: int) -> Iterator[Room]:
        """Room in the queue for ``count`` texts, held around everything the request costs before the model.

        Raises:
            QueueFull: there is not enough room.
        """
        with self._wake:
            self._queue.reserve(count)
        room = Room(count)
        try:
            yield room
        finally:
            with self._wake:
                self._queue.release(room.left)

    def keep(self, room: Room, count: int) -> None:
        """Give back all places of ``room`` but ``count``: the other texts do not come to the model."""
        with self._wake:
            self._queue.release(room.left - count)
            room.left = count

    async def submit(
        self, ids: Sequence[np.ndarray], room: Room | None = None, deadline: float | None = None
    ) -> Answer:
        """Run the texts of one request through the model, batched with whatever else is waiting.

        Args:
            ids: token ids, one array per text.
            room: room taken before; None takes it now.
            deadline: on the monotonic clock; None is ``timeout_s`` from now.

        Raises:
            QueueFull: there is no room.
            DeadlinePassed: the answer was not there in time.
            ModelFailed: the forward pass raised.
            NotReady: the model thread is not running.
        """
        if not self.alive:
            raise NotReady("the model is not running")
        if room is None:
            with self.room(len(ids)) as own:
                return await self.submit(ids, own, deadline)
        if not ids:
            return Answer(np.empty((0, 0), np.float32), 0.0, 0.0)
        now = time.monotonic()
        deadline = now + self.timeout_s if deadline is None else deadline
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = _Request(deadline, len(ids), future, now)
        entries = [Entry(max(1, len(row)), now, request, i, row) for i, row in enumerate(ids)]
        with self._wake:
            room.left -= len(entries)
            self._queue.add(entries)
            self._wake.notify()
        try:
            return await asyncio.wait_for(future, deadline - now)
        except asyncio.TimeoutError:
            raise DeadlinePassed("the answer was not ready in time") from None
        finally:
            request.cancelled = True  # answered, failed or given up: whatever still waits is dropped

    async def call(self, work: Callable[[], T], deadline: float) -> T:
        """Run ``work`` in the model's thread, for what a batch cannot answer. One call goes between two batches.

        Args:
            work: should take no longer than a batch does.
            deadline: on the monotonic clock.

        Raises:
            QueueFull: ``CALLS`` are waiting already.
            DeadlinePassed, ModelFailed, NotReady: as ``submit``.
        """
        if not self.alive:
            raise NotReady("the model is not running")
        call = _Call(deadline, work, asyncio.get_running_loop().create_future())
        with self._wake:
            self._calls = deque(c for c in self._calls if not c.cancelled)
            if len(self._calls) >= CALLS:
                raise QueueFull(f"{CALLS} calls are waiting, at most {CALLS} may")
            self._calls.append(call)
            self._wake.notify()
        try:
            return await asyncio.wait_for(call.future, deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise DeadlinePassed("the answer was not ready in time") from None
        finally:
            call.cancelled = True

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and not len(self._queue) and not self._calls:
                    self._wake.wait()
                call = self._calls.popleft() if self._calls else None
            if call is not None and not call.cancelled:
                self._perform(call)
            with self._wake:
                if self._stopping:
                    return
                batch = self._queue.take(time.monotonic())
            if batch.expired:
                self._post(self._fail, batch.expired, DeadlinePassed("the text waited too long"))
            if not batch.entries:
                continue
            start = time.monotonic()
            try:
                rows = self._forward([entry.payload for entry in batch.entries])
                if len(rows) != len(batch.entries):
                    raise ValueError(f"{len(batch.entries)} texts went in, {len(rows)} rows came out")
            except BaseException as e:  # the thread must outlive any batch
                log.exception("a batch of %d texts failed", len(batch.entries))
                failure = ModelFailed(f"{type(e).__name__}: {e}")
                failure.__cause__ = e
                self._post(self._fail, batch.entries, failure)
            else:
                self._post(self._deliver, batch.entries, rows, time.monotonic() - start)
                if self._observe is not None:
                    self._observe(len(batch.entries), len(batch.entries) * max(e.tokens for e in batch.entries))

    def _perform(self, call: _Call) -> None:
        outcome: Any
        try:
            outcome = call.work()
        except BaseException as e:  # as for a batch
            log.exception("a call between batches failed")
            outcome = ModelFailed(f"{type(e).__name__}: {e}")
            outcome.__cause__ = e
        self._post(self._settle, call, outcome)

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the event loop is closed: nobody is left to answer
            self._stopping = True

    def _deliver(self, entries: Sequence[Entry], rows: np.ndarray, inference_s: float) -> None:
        now = time.monotonic()
        for request in {id(e.ticket): e.ticket for e in entries}.values():
            assert isinstance(request, _Request)
            request.inference_s += inference_s
        for entry, row in zip(entries, rows, strict=True):
            request = entry.ticket
            assert isinstance(request, _Request)
            request.rows[entry.index] = row
            request.missing -= 1
            if request.missing == 0 and not request.future.done():
                queue_s = max(0.0, now - request.started - request.inference_s)
                request.future.set_result(Answer(np.stack(request.rows), queue_s, request.inference_s))

    @staticmethod
    def _settle(call: _Call, outcome: Any) -> None:
        if call.future.done():
            return
        if isinstance(outcome, Exception):
            call.future.set_exception(outcome)
        else:
            call.future.set_result(outcome)

    @staticmethod
    def _fail(entries: Sequence[Entry], error: Exception) -> None:
        for entry in entries:
            request = entry.ticket
            assert isinstance(request, _Request)
            request.cancelled = True
            if not request.future.done():
                request.future.set_exception(error)
