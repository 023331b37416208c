"""Copies of requests for a model on trial: after the answer was sent, one at a time, and never while texts wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.metrics import Metrics

if TYPE_CHECKING:
    from serve.roster import Running

log = logging.getLogger("ray.serve")

WAITING = 64  # copies that may wait


class Shadow:
    """Compares a candidate with the stable model, on the requests that the latter answered.

    Args:
        stable: answers.
        candidate: is compared with it.
        hold: keeps a model from being stopped.
        metrics: of the replica.
    """

    def __init__(
        self,
        stable: Running,
        candidate: Running,
        hold: Callable[[Running], AbstractContextManager[Any]],
        metrics: Metrics,
    ) -> None:
        self._stable, self._candidate, self._hold, self._metrics = stable, candidate, hold, metrics
        self._copies: deque[tuple[list[str], np.ndarray]] = deque()
        self._task: asyncio.Task[None] | None = None

    def offer(self, texts: list[str], probabilities: np.ndarray) -> None:
        """Copy a request that was answered with ``probabilities``, unless too much waits. Returns at once."""
        if len(self._copies) >= WAITING:
            self._candidate.tally.skipped += 1
            return
        self._copies.append((texts, probabilities))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._compare_all())

    def stop(self) -> None:
        """Forget what waits. What the candidate is at, it finishes; nobody counts it."""
        self._copies.clear()
        if self._task is not None:
            self._task.cancel()

    async def _compare_all(self) -> None:
        with self._hold(self._candidate):
            while self._copies:
                texts, known = self._copies.popleft()
                try:
                    await self._compare(texts, known)
                except Exception:  # a candidate that fails is what a trial is for
                    log.warning("%s failed on a copy of a request", self._candidate.release, exc_info=True)
                    self._candidate.tally.refused()

    async def _compare(self, texts: list[str], known: np.ndarray) -> None:
        stable, candidate = self._stable, self._candidate
        if stable.service.batcher.waiting or candidate.service.batcher.waiting:
            candidate.tally.skipped += 1
            return
        result = await candidate.service.classify(texts)
        tally = candidate.tally
        tally.answered(result.probabilities, candidate.engine.labels, sum(result.phases.values()))
        theirs, ours = result.probabilities.argmax(1), known.argmax(1)
        pairs = zip(theirs, ours, strict=True)
        agreed = sum(candidate.engine.labels[a] == stable.engine.labels[b] for a, b in pairs)
        tally.compared += len(texts)
        tally.agreed += agreed
        self._metrics.shadowed(candidate.engine.version, len(texts), agreed)
