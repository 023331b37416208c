"""What the HTTP layer talks to: texts in, probabilities out.

The event loop only moves small things: anything but a short text is tokenized in a thread, and the model has
another one (``serve/worker.py``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.config import ServeConfig
from pipeline.evaluate.passes import Passes
from pipeline.evaluate.reference import Reference
from serve import drift
from serve.batcher import DeadlinePassed, QueueFull
from serve.cascade import Cascade, Settled
from serve.metrics import Metrics, ModelMetrics
from serve.worker import Batcher, ModelFailed, NotReady

SUSPICIOUS = 3  # requests that the model failed in a row, after which it is asked a text of ours
INLINE_CHARS = 2_000  # up to this many characters are tokenized on the spot: a thread costs more than it saves

T = TypeVar("T")


class TooLong(Exception):
    """A text is longer than the model reads, and the caller does not want it cut.

    Attributes:
        index: which of the texts.
        tokens: how many it has.
        most: how many the model reads.
    """

    def __init__(self, index: int, tokens: int, most: int) -> None:
        super().__init__(f"text {index} has {tokens} tokens, the model reads {most}")
        self.index, self.tokens, self.most = index, tokens, most


class Encoded(Protocol):
    """What ``Engine.encode`` returns, one item per text."""

    @property
    def ids(self) -> Sequence[np.ndarray]: ...
    @property
    def truncated(self) -> Sequence[bool]: ...
    @property
    def cleaned(self) -> Sequence[str]: ...


class Engine(Protocol):
    """What a model must offer to be served; ``pipeline.evaluate.classifier.Classifier`` does."""

    labels: list[str]
    version: str
    max_tokens: int
    runs: dict[str, str]
    passes: Passes

    def as_it_is(self) -> None: ...
    def encode(self, texts: Sequence[str]) -> Encoded: ...
    def length(self, text: str) -> int: ...
    def words(self, cleaned: str) -> list[tuple[int, int]]: ...
    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray: ...
    def all_logits(self, ids: Sequence[Any], batch_tokens: int, large: bool = False) -> np.ndarray: ...
    def probabilities(self, logits: np.ndarray) -> np.ndarray: ...
    def with_states(self, ids: Sequence[Any], batch_tokens: int) -> tuple[np.ndarray, np.ndarray] | None: ...


class Result(NamedTuple):
    """What a request gets: one row per text, how many texts were cut, seconds per phase, and how many texts the linear
    model of a cascade answered."""

    probabilities: np.ndarray
    truncated: int
    tokenize_s: float
    queue_s: float
    inference_s: float
    by_linear: int = 0

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, in the order in which they are told."""
        return {"queue": self.queue_s, "tokenize": self.tokenize_s, "inference": self.inference_s}


class Service:
    """An engine with its tokenizing thread and its batcher: texts in, probabilities out.

    Args:
        engine: the loaded model.
        config: the serve section.
        metrics: of the replica; None: its own.
        reference: what drift is measured from; None: it is not measured.
        cascade: answers the texts that it is sure of; None: the network answers all.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServeConfig,
        metrics: Metrics | None = None,
        reference: Reference | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        self.engine = engine
        self.cascade = cascade
        self.drift = None if reference is None else drift.Drift(reference, config.drift_window_s)
        self.metrics = ModelMetrics(
            metrics or Metrics(), engine.labels, engine.version, lambda: self.batcher.waiting, self.drift
        )
        self.batcher = Batcher(
            engine.logits,
            batch_tokens=config.batch_tokens,
            max_queue=config.max_queue,
            timeout_s=config.timeout_s,
            passes=engine.passes,
            observe=self.metrics.batch,
        )
        # Fast tokenizers refuse two threads at once ("Already borrowed"): one lock, one thread.
        self._encoding = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._warm = False
        self._failed = 0  # requests in a row

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
            await self._classify(["warm-up"], cut=True, cascade=None)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both threads."""
        self._warm = False
        self.batcher.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def classify(self, texts: Sequence[str], cut: bool = True) -> Result:
        """Probabilities of each text over the engine's labels.

        Args:
            texts: raw.
            cut: whether a text that is longer than the model reads may be cut.

        Raises:
            TooLong: one may not.
            QueueFull, DeadlinePassed, ModelFailed, NotReady: as ``Batcher.submit``.
        """
        try:
            result, encoded = await self._classify(texts, cut, self.cascade)
        except (ModelFailed, DeadlinePassed, NotReady) as e:
            self._failed += isinstance(e, ModelFailed)
            self.metrics.outcome("failed")
            raise
        except QueueFull:
            self.metrics.outcome("overloaded")
            raise
        self._failed = 0
        self.metrics.outcome("ok")
        self.metrics.classified(result.probabilities, result.truncated, result.phases)
        if self.cascade is not None:
            self.metrics.cascaded(result.by_linear, len(texts) - result.by_linear)
        if self.drift is not None:
            self.drift.add(result.probabilities, encoded.ids, encoded.truncated)
        return result

    async def sound(self) -> bool:
        """Whether the model answers. It is tried where it has failed several requests in a row: an error of a GPU may
        stay until the process ends, and texts that no model can read are no reason to end one."""
        if self._failed < SUSPICIOUS:
            return True
        try:
            await self._classify(["warm-up"], cut=True, cascade=self.cascade)
        except ModelFailed:
            return False
        except (QueueFull, DeadlinePassed, NotReady):  # busy, or stopping: the next check will tell
            return True
        self._failed = 0
        return True

    async def _classify(self, texts: Sequence[str], cut: bool, cascade: Cascade | None) -> tuple[Result, Encoded]:
        if not self.ready:
            raise NotReady("the model is not ready")
        start = time.monotonic()
        deadline = start + self.batcher.timeout_s
        with self.batcher.room(len(texts)) as room:
            encoded, settled = await self.in_tokenizer(
                lambda: self._read(texts, cascade), deadline, sum(map(len, texts)) <= INLINE_CHARS
            )
            if not cut and any(encoded.truncated):
                index = list(encoded.truncated).index(True)
                tokens = await self.in_tokenizer(lambda: self.engine.length(texts[index]), deadline)
                raise TooLong(index, tokens, self.engine.max_tokens)
            read_s = time.monotonic() - start
            left = encoded.ids if settled is None else settled.left(encoded.ids)
            self.batcher.keep(room, len(left))  # what is settled holds no place that another request could have
            answer = await self.batcher.submit(left, room, deadline)
        cut_texts = sum(encoded.truncated)
        if settled is None:
            probabilities = self.probabilities(answer.rows)
            return Result(probabilities, cut_texts, read_s, answer.queue_s, answer.inference_s), encoded
        probabilities = settled.completed(self.probabilities(answer.rows) if left else None)
        linear_s, by_linear = settled.seconds, len(texts) - len(left)
        spent = (read_s - linear_s, answer.queue_s, answer.inference_s + linear_s)
        return Result(probabilities, cut_texts, *spent, by_linear), encoded

    def _read(self, texts: Sequence[str], cascade: Cascade | None) -> tuple[Encoded, Settled | None]:
        encoded = self.engine.encode(texts)
        if cascade is None:
            return encoded, None
        try:
            return encoded, cascade.settle(texts, encoded)
        except Exception as e:
            raise ModelFailed(f"the linear model of the cascade: {type(e).__name__}: {e}") from e

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """As of the engine.

        Raises:
            ModelFailed: one is not a number.
        """
        probabilities = self.engine.probabilities(logits)
        if not np.isfinite(probabilities).all():
            raise ModelFailed("the model returned a score that is not a number")
        return probabilities

    async def in_tokenizer(self, work: Callable[[], T], deadline: float, small: bool = False) -> T:
        """Run what uses the tokenizer, alone, in its thread.

        Args:
            work: what to run.
            deadline: on the monotonic clock.
            small: whether it may run here and now, if nobody else is at it.

        Raises:
            DeadlinePassed: it was not done in time.
        """
        if small and self._encoding.acquire(blocking=False):
            try:
                return work()
            finally:
                self._encoding.release()

        def locked() -> T:
            with self._encoding:
                return work()

        running = asyncio.get_running_loop().run_in_executor(self._pool, locked)
        try:
            return await asyncio.wait_for(running, deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise DeadlinePassed("the texts were not tokenized in time") from None
