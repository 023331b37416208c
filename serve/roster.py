"""The models that are loaded in one replica, and the change from one lineup to the next while requests are answered.

A newer lineup is loaded and checked in a thread while the old one answers. Then references are swapped on the event
loop, between requests: a request ends on the model it began on, and a model that is no longer needed is stopped after
its last one. Whatever fails before the swap leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config import ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.reference import Reference
from serve.batcher import DeadlinePassed, QueueFull
from serve.cascade import Cascade
from serve.errors import Refused
from serve.explain import Explainer
from serve.metrics import Metrics
from serve.releases import Lineup, Release, Split
from serve.responses import RELEASE_HEADER
from serve.service import Engine, Result, Service
from serve.shadow import Shadow
from serve.tally import Tally
from serve.worker import ModelFailed, NotReady

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Model:
    """What belongs to one checkpoint in memory."""

    engine: Engine
    index: Evidence | None = None
    reference: Reference | None = None
    cascade: Cascade | None = None


class Running:
    """A model with its threads and counts."""

    def __init__(self, release: Release, model: Model, config: ServeConfig, metrics: Metrics) -> None:
        self.release = release
        self.engine = model.engine
        self.service = Service(model.engine, config, metrics, model.reference, model.cascade)
        self.explainer = Explainer(self.service, model.index)
        self.tally = Tally()
        self.in_use = 0
        self.retired = False


class Roster:
    """The loaded models of a replica. Made for one event loop.

    Args:
        release: the checkpoint of ``model``.
        model: answers everything until ``apply`` is called.
        config: the serve section.
        load: loads and checks a checkpoint, in a thread; raises if it may not take traffic.
    """

    def __init__(
        self, release: Release, model: Model, config: ServeConfig, load: Callable[[Release], Model] | None = None
    ) -> None:
        self.metrics = Metrics()
        self.lineup = Lineup(release, generation=0)
        self._config = config
        self._load = load
        self._running = {release: self._run(release, model)}
        self._split = Split(0)
        self._shadow: Shadow | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._tell()

    @property
    def stable(self) -> Running:
        """The model that answers unless another is picked."""
        return self._running[self.lineup.stable]

    @property
    def candidate(self) -> Running | None:
        """The model on trial."""
        return None if self.lineup.candidate is None else self._running[self.lineup.candidate]

    @property
    def loaded(self) -> list[Running]:
        """Stable, candidate and previous, as far as they are there."""
        return [self._running[r] for r in self.lineup.releases if r in self._running]

    @property
    def ready(self) -> bool:
        """Whether the stable model answers."""
        return self.stable.service.ready

    async def start(self) -> None:
        """Start the threads of the first model, and send one text through it."""
        await self.stable.service.start()

    async def stop(self) -> None:
        """Stop all threads."""
        self._end_shadow()
        for running in self._running.values():
            running.service.stop()
        await asyncio.gather(*self._stopping)

    def next(self) -> Running:
        """The model that answers the next request: the candidate for its share of them."""
        candidate = self.candidate
        return candidate if candidate is not None and self._split.next() else self.stable

    def asked(self, name: str | None) -> Running | None:
        """The model that the header ``x-broadsheet-release`` asks for, if it does.

        A candidate that is gone (promoted, or rolled back) is the stable model: no client breaks over it.

        Raises:
            Refused: it asks for something else.
        """
        if name is None:
            return None
        if name not in ("stable", "candidate"):
            raise Refused(
                "invalid", f"the header {RELEASE_HEADER} must be 'stable' or 'candidate'; got {ascii(name)[:40]}"
            )
        return (self.candidate if name == "candidate" else None) or self.stable

    def of_version(self, version: str) -> Running | None:
        """The loaded model of this version."""
        return next((r for r in self.loaded if r.engine.version == version), None)

    @contextmanager
    def hold(self, running: Running) -> Iterator[Running]:
        """Keep a model from being stopped. Nothing may be awaited between choosing it and this."""
        running.in_use += 1
        try:
            yield running
        finally:
            running.in_use -= 1
            self._let_go(running)

    async def classify(
        self, running: Running, texts: Sequence[str], cut: bool, pinned: bool = False
    ) -> tuple[Result, Running]:
        """Classify with a model that is held; returns the model that answered, too.

        Args:
            running: the model.
            texts: raw.
            cut: whether a text that is longer than the model reads may be cut.
            pinned: whether it must be this one; else the stable model answers for a candidate that cannot.

        Raises:
            TooLong, QueueFull, DeadlinePassed, ModelFailed, NotReady: as ``Service.classify``.
        """
        try:
            result = await running.service.classify(texts, cut)
        except (ModelFailed, QueueFull, NotReady):
            running.tally.refused()
            if pinned or running is self.stable:
                raise
            log.warning("the stable model answers for %s", running.release, exc_info=True)
            with self.hold(self.stable) as stable:
                return await self.classify(stable, texts, cut, pinned=True)
        except DeadlinePassed:
            running.tally.refused()
            raise
        running.tally.answered(result.probabilities, running.engine.labels, sum(result.phases.values()))
        return result, running

    def shadow(self, by: Running, texts: list[str], result: Result) -> Callable[[], None] | None:
        """What to call after an answer was sent, if it is to be compared with the candidate's."""
        shadow = self._shadow
        if shadow is None or by is not self.stable:
            return None
        return lambda: shadow.offer(texts, result.probabilities)

    async def apply(self, lineup: Lineup) -> None:
        """Load what is missing, and serve the lineup from then on. One call at a time.

        Raises:
            UserError: a checkpoint is damaged, has changed, or fails its golden rows.
            Exception: it cannot be loaded or run.
            Either way nothing has changed.
        """
        fresh: dict[Release, Running] = {}
        try:
            for release in (lineup.stable, lineup.candidate):
                if release is not None and release not in self._running:
                    fresh[release] = await self._started(release)
        except BaseException:
            for running in fresh.values():
                self._discard(running)
            raise
        self._swap(lineup, fresh)

    async def recall(self) -> None:
        """Load the previous model if it is not there: a replica that starts answers first, and is ready for a
        rollback then. One that cannot be loaded is left out."""
        release = self.lineup.previous
        if release is None or release in self._running or not self._config.keep_previous:
            return
        try:
            self._running[release] = await self._started(release)
            self._tell()
        except Exception as e:
            log.warning("%s is not kept for a rollback: %s", release, sentence(e))

    def _swap(self, lineup: Lineup, fresh: dict[Release, Running]) -> None:
        self._end_shadow()
        before = self._running
        self.lineup = lineup
        wanted = [r for r in lineup.releases if r != lineup.previous or self._config.keep_previous]
        self._running = {r: running for r, running in (before | fresh).items() if r in wanted}
        self._split = Split(lineup.share)
        for running in self._running.values():
            running.tally = Tally()  # models are compared over the same time
        candidate = self.candidate
        if lineup.shadow and candidate is not None:
            self._shadow = Shadow(self.stable, candidate, self.hold, self.metrics)
        self._tell()
        for release, running in before.items():
            if release not in self._running:
                running.retired = True
                self._let_go(running)

    def _let_go(self, running: Running) -> None:
        if running.retired and running.in_use == 0:
            running.retired = False
            self._discard(running)

    def _discard(self, running: Running) -> None:
        """Stop a model that nobody uses, without waiting for it, and let go of its memory."""
        if all(running.engine.version != other.engine.version for other in self._running.values()):
            running.service.metrics.close()
        task = asyncio.create_task(asyncio.to_thread(running.service.stop))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _started(self, release: Release) -> Running:
        if self._load is None:
            raise UserError("this endpoint serves one model only")
        running = self._run(release, await asyncio.to_thread(self._load, release))
        try:
            await running.service.start()
        except BaseException:
            self._discard(running)
            raise
        return running

    def _run(self, release: Release, model: Model) -> Running:
        return Running(release, model, self._config, self.metrics)

    def _end_shadow(self) -> None:
        if self._shadow is not None:
            self._shadow.stop()
            self._shadow = None

    def _tell(self) -> None:
        parts = {"stable": self.lineup.stable, "candidate": self.lineup.candidate, "previous": self.lineup.previous}
        found = {part: self._running.get(release) for part, release in parts.items() if release is not None}
        self.metrics.lineup({part: running.engine.version for part, running in found.items() if running is not None})


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return first if isinstance(error, (UserError, WorkFailed)) else f"{type(error).__name__}: {first}"
