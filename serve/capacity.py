"""One latency goal, and what follows from it: how much a replica takes on, how long its queue is, how large a batch.

Pure but for ``measure``. A forward pass over ``n`` texts takes about ``a + n / r`` seconds, with ``a`` what it costs
whatever is in it. A text that finds ``L`` texts in flight waits for the batch that runs and goes with the next, half
of ``L`` each: ``2 a + L / r``. So ``L = r (goal - 2 a)`` texts in flight take the goal. (Little's law, L = rate x time,
is the same without ``a``.) Arrivals bunch, so autoscaling must aim lower: where waiting times fall off exponentially,
as in the queue M/M/1, 95 of 100 requests take at most ``ln 20`` = 3.0 times the mean (Kleinrock, *Queueing Systems* I,
1975, section 3.2). Autoscaling aims at a mean of a third of the goal, that is ``L / 3`` in flight.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.evaluate.passes import Passes
from pipeline.train import batches

if TYPE_CHECKING:
    from pipeline.config import ServeConfig

QUANTILE = 0.95
SPREAD = math.log(1 / (1 - QUANTILE))
PATIENCE = 10.0  # goals: who would wait longer than this for an answer is told at once (429)
BATCH = 16
SECONDS = 2.0  # of measuring, each way


class Engine(Protocol):
    """What is measured."""

    passes: Passes

    def encode(self, texts: Sequence[str]) -> Encoded: ...
    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray: ...
    def all_logits(self, ids: Sequence[Any], batch_tokens: int) -> np.ndarray: ...


class Encoded(Protocol):
    """What ``Engine.encode`` returns."""

    @property
    def ids(self) -> Sequence[np.ndarray]: ...


@dataclass(frozen=True)
class Rates:
    """What a replica was measured to do, cleaning and tokenizing included.

    Attributes:
        single_ms: milliseconds of one text alone, median.
        texts_per_s: texts per second in batches of like lengths.
        batch: texts in such a batch, mean.
        tokens: tokens of a text, mean.
    """

    single_ms: float
    texts_per_s: float
    batch: float
    tokens: float


@dataclass(frozen=True)
class Knobs:
    """What follows from the goal.

    Attributes:
        target_ongoing_requests: requests in flight per replica that autoscaling aims at.
        max_queue: texts that may wait per replica.
        batch_tokens: tokens of a forward pass, padding included.
        reachable: whether a text alone is answered within the goal.
    """

    target_ongoing_requests: float
    max_queue: int
    batch_tokens: int
    reachable: bool


def derive(goal_ms: float, rates: Rates, config: ServeConfig, max_tokens: int) -> Knobs:
    """The knobs for a goal.

    Args:
        goal_ms: milliseconds within which 95 of 100 requests of one text are to be answered.
        rates: of a replica.
        config: the serve section, which bounds the batch and says what a request may hold.
        max_tokens: the longest text that the model reads, in tokens: a batch must hold one.
    """
    goal = goal_ms / 1_000
    alone = rates.single_ms / 1_000
    in_batch = 1 / rates.texts_per_s
    # Two points of a + n / r: a text alone, and a text in a batch of n. Noise must not make either negative.
    fixed = max(0.0, (alone - in_batch) * rates.batch / max(1.0, rates.batch - 1)) if rates.batch > 1 else 0.0
    fixed = min(fixed, alone)
    rate = 1 / max(alone - fixed, in_batch - fixed / rates.batch, 1e-6)
    in_flight = rate * (goal - 2 * fixed)
    waiting = rates.texts_per_s * min(PATIENCE * goal, config.timeout_s / 2)
    tokens = int(rates.texts_per_s * rates.tokens * goal / 2)  # a batch that takes half the goal
    return Knobs(
        target_ongoing_requests=round(max(0.25, in_flight / SPREAD), 2),
        max_queue=max(config.max_texts, int(waiting)),
        batch_tokens=max(max_tokens, min(config.batch_tokens, tokens)),
        reachable=alone <= goal,
    )


def lines(goal_ms: float, rates: Rates, knobs: Knobs) -> list[str]:
    """What was measured and derived, for a person."""
    return [
        f"goal {goal_ms:g} ms; a replica takes {rates.single_ms:.1f} ms for a text alone and does "
        f"{rates.texts_per_s:,.0f} texts a second in batches (texts of {rates.tokens:.0f} tokens)",
        f"so serve.target_ongoing_requests={knobs.target_ongoing_requests:g}, serve.max_queue={knobs.max_queue}, "
        f"serve.batch_tokens={knobs.batch_tokens}",
    ]


def of_checkpoint(checkpoint: str, config: ServeConfig) -> tuple[Rates, int]:
    """Load a checkpoint as a replica does and measure it with its golden rows; also the most tokens it reads of a text.

    Raises:
        UserError: it cannot be loaded, or has no golden rows.
    """
    from pipeline.errors import UserError
    from pipeline.evaluate.golden import Golden
    from pipeline.storage import Place
    from serve.engine.load import load

    golden = Golden.load(Place.of(checkpoint))
    if golden is None:
        raise UserError(
            f"serve.latency_goal_ms needs texts to measure with, and {checkpoint} has no golden rows: "
            "'broadsheet evaluate' makes them"
        )
    engine, _ = load(checkpoint, config)
    return measure(engine, golden.texts, BATCH, config.batch_tokens), engine.max_tokens


def measure(
    engine: Engine, texts: Sequence[str], batch: int, batch_tokens: int = 2_048, seconds: float = SECONDS
) -> Rates:
    """What the engine does in this process, in turns of texts alone and of batches, for about twice ``seconds``.

    Args:
        engine: as a replica loads it.
        texts: like those to come.
        batch: texts at a time, in as many passes as the engine makes of them.
        batch_tokens: the most of a forward pass.
        seconds: for texts alone, and for batches.
    """
    engine.logits(engine.encode(list(texts[:1])).ids)
    singles: list[float] = []
    end = time.perf_counter() + seconds
    for text in texts:
        began = time.perf_counter()
        engine.logits(engine.encode([text]).ids)
        singles.append(time.perf_counter() - began)
        if time.perf_counter() > end and len(singles) >= 5:
            break
    order = sorted(texts, key=len)
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    groups = groups[:: max(1, len(groups) // 16)]  # all lengths, in the time there is
    done, tokens, spent, passes = 0, 0, 0.0, 0
    for group in groups:
        began = time.perf_counter()
        ids = engine.encode(group).ids
        engine.all_logits(ids, batch_tokens)
        spent += time.perf_counter() - began
        lengths = np.sort([len(row) for row in ids])[::-1]
        most = int(min(batch_tokens, engine.passes.batch_tokens))
        passes += sum(1 for _ in batches.cut(np.arange(len(ids)), lengths, most))
        done, tokens = done + len(group), tokens + int(lengths.sum())
        if spent > seconds and passes >= 3:
            break
    return Rates(1_000 * statistics.median(singles), done / spent, done / passes, tokens / done)
