"""How a replica follows the desk: asks for the lineup, has the roster serve it, and says how that went."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import Future
from typing import Any, Literal, Protocol

import ray

from serve.desk import NAMESPACE, Report
from serve.releases import Lineup
from serve.roster import Roster, sentence

log = logging.getLogger("ray.serve")

WAIT_S = 1.0  # of a question; also how often counts are told
ANSWER_S = 10.0  # more than that, and the desk is taken for gone
AGAIN_S = 1.0
RETRY_S = (5.0, 120.0)  # after a lineup could not be served: the first pause, and the longest


class Line(Protocol):
    """The way to the desk."""

    async def exchange(self, report: Report, wait_s: float) -> Lineup:
        """As ``Desk.exchange``."""


class RayLine:
    """The way to a desk that is an actor; finds it again after it was lost."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._desk: Any = None

    async def exchange(self, report: Report, wait_s: float) -> Lineup:
        """As ``Desk.exchange``; raises if there is no answer."""
        if self._desk is None:
            self._desk = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
        try:
            answer: Lineup = await asyncio.wait_for(self._desk.exchange.remote(report, wait_s), wait_s + ANSWER_S)
        except BaseException:
            self._desk = None
            raise
        return answer


def first(name: str, replica: str) -> Lineup | None:
    """The lineup to start with; None if the desk does not say."""
    try:
        desk = ray.get_actor(name, NAMESPACE)
        # Not ray.get, which minds the event loop that runs here.
        future: Future[Lineup] = desk.exchange.remote(Report(replica), WAIT_S).future()
        return future.result(ANSWER_S)
    except Exception as e:
        log.warning("starting without the lineup of %s: %s", name, sentence(e))
        return None


async def follow(roster: Roster, line: Line, replica: str) -> None:
    """Serve what the desk wants, until cancelled. What cannot be served is told, changes nothing, and is tried again: a
    replica that came up while the storage stumbled would serve an older model than the others for ever."""
    applying: asyncio.Task[None] | None = None
    known: Lineup | None = None
    tried, reason = 0, ""
    pause = again = 0.0

    def report() -> Report:
        loaded = roster.loaded
        serving = roster.lineup.generation
        state: Literal["serving", "failed", "loading"] = "loading"
        if known is not None and serving == known.generation:
            state = "serving"
        elif known is not None and reason and tried == known.generation:
            state = "failed"
        return Report(
            replica, known or roster.lineup, serving, state, reason if state == "failed" else "",
            roster.stable.engine.labels, {running.release: running.engine.version for running in loaded},
            {running.release: running.tally for running in loaded[: 1 + (roster.candidate is not None)]},
        )  # fmt: skip

    async def apply(lineup: Lineup) -> None:
        nonlocal reason, pause, again
        try:
            await roster.apply(lineup)
        except Exception as e:
            log.warning("generation %d cannot be served: %s", lineup.generation, sentence(e), exc_info=True)
            reason = sentence(e)
            pause = min(2 * pause or RETRY_S[0], RETRY_S[1])
            again = time.monotonic() + pause
            return
        await roster.recall()

    try:
        while True:
            try:
                # While something is loaded, the next question is asked soon: its end is news that somebody waits for.
                wait_s = 0.2 if applying is not None and not applying.done() else WAIT_S
                answer = await line.exchange(report(), wait_s)
            except Exception as e:
                log.info("the desk does not answer: %s", sentence(e))
                await asyncio.sleep(AGAIN_S)
                continue
            if known is None or answer.generation > known.generation:
                known = answer
            if known.generation > tried:
                pause = 0.0
            elif not reason or time.monotonic() < again:
                continue
            if applying is None or applying.done():
                tried, reason = known.generation, ""
                applying = asyncio.create_task(apply(known))
                await asyncio.sleep(0)
    finally:
        if applying is not None:
            applying.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(line.exchange(Report(replica, state="leaving"), 0), AGAIN_S)
