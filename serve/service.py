"""What the HTTP layer talks to: texts in, probabilities out.

The event loop only moves small things: anything but a short text is tokenized in a thread, and the model has
another one (``serve/worker.py``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from serve.batcher import DeadlinePassed
from serve.worker import Batcher, ModelFailed, NotReady

INLINE_CHARS = 2_000  # up to this many characters are tokenized on the spot: a thread costs more than it saves


class Encoded(Protocol):
    """What ``Engine.encode`` returns, one item per text."""

    @property
    def ids(self) -> Sequence[np.ndarray]: ...
    @property
    def truncated(self) -> Sequence[bool]: ...


class Engine(Protocol):
    """What a model must offer to be served; ``pipeline.evaluate.classifier.Classifier`` does."""

    labels: list[str]
    version: str

    def encode(self, texts: Sequence[str]) -> Encoded: ...
    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray: ...
    def probabilities(self, logits: np.ndarray) -> np.ndarray: ...


class Result(NamedTuple):
    """What a request gets: one row per text, how many texts were cut, and seconds per phase."""

    probabilities: np.ndarray
    truncated: int
    tokenize_s: float
    queue_s: float
    inference_s: float


class Service:
    """An engine with its tokenizing thread and its batcher: texts in, probabilities out."""

    def __init__(self, engine: Engine, *, batch_tokens: int, max_queue: int, timeout_s: float) -> None:
        self.engine = engine
        self.batcher = Batcher(engine.logits, batch_tokens=batch_tokens, max_queue=max_queue, timeout_s=timeout_s)
        # Fast tokenizers refuse two threads at once ("Already borrowed"): one lock, one thread.
        self._encoding = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._warm = False

    @property
    def ready(self) -> bool:
        """Whether one forward pass went through and the model thread runs."""
        return self._warm and self.batcher.alive

    async def start(self) -> None:
        """Start the threads and send one text all the way through."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self.batcher.start()
        self._warm = True
        try:
            await self.classify(["warm-up"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both threads."""
        self._warm = False
        self.batcher.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def classify(self, texts: Sequence[str]) -> Result:
        """Probabilities of each text over the engine's labels.

        Raises:
            QueueFull, DeadlinePassed, ModelFailed, NotReady: as ``Batcher.submit``.
        """
        if not self.ready:
            raise NotReady("the model is not ready")
        start = time.monotonic()
        deadline = start + self.batcher.timeout_s
        with self.batcher.room(len(texts)) as room:
            try:
                encoded = await asyncio.wait_for(self._encode(texts), deadline - start)
            except asyncio.TimeoutError:
                raise DeadlinePassed("the texts were not tokenized in time") from None
            tokenize_s = time.monotonic() - start
            answer = await self.batcher.submit(encoded.ids, room, deadline)
        probabilities = self.engine.probabilities(answer.rows)
        if not np.isfinite(probabilities).all():
            raise ModelFailed("the model returned a score that is not a number")
        return Result(probabilities, sum(encoded.truncated), tokenize_s, answer.queue_s, answer.inference_s)

    async def _encode(self, texts: Sequence[str]) -> Encoded:
        if sum(map(len, texts)) <= INLINE_CHARS and self._encoding.acquire(blocking=False):
            try:
                return self.engine.encode(texts)
            finally:
                self._encoding.release()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_locked, texts)

    def _encode_locked(self, texts: Sequence[str]) -> Encoded:
        with self._encoding:
            return self.engine.encode(texts)
