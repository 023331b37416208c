"""The desk, and replicas that follow it, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from test_roster import A, B, C, Loader, until

from pipeline.config import ServeConfig
from serve import desk as desks
from serve import follow as following
from serve import memory
from serve.desk import Desk, Report
from serve.follow import follow
from serve.releases import Lineup
from serve.roster import Roster


class Line:
    """A desk in the same process, which can be cut off."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.cut = False
        self.asked = 0

    async def exchange(self, report: Report, wait_s: float) -> Lineup:
        self.asked += 1
        if self.cut:
            raise ConnectionError("the desk is gone")
        return await self.desk.exchange(report, wait_s)


def run(body: Callable[[Line, Roster, Loader], Awaitable[None]]) -> None:
    async def inside() -> None:
        load = Loader()
        roster = Roster(A, load(A), ServeConfig(), load)
        await roster.start()
        line = Line(Desk(A, ServeConfig()))
        task = asyncio.create_task(follow(roster, line, "one"))
        try:
            await body(line, roster, load)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await roster.stop()
        assert "one" not in (await line.desk.state()).reports  # it took its leave
        assert not (await line.desk.state()).lost

    asyncio.run(inside())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WAIT_S", 0.05)
    monkeypatch.setattr(following, "AGAIN_S", 0.05)
    monkeypatch.setattr(following, "RETRY_S", (0.2, 0.4))
    monkeypatch.setattr(desks, "RECALL_S", 0.1)


async def report(line: Line) -> Report:
    return (await line.desk.state()).reports["one"]


async def until_told(line: Line, **facts: Any) -> Report:
    while True:
        found = await report(line) if (await line.desk.state()).reports else None
        if found is not None and all(getattr(found, name) == value for name, value in facts.items()):
            return found
        await asyncio.sleep(0.01)


def test_a_replica_serves_what_the_desk_wants_and_says_so() -> None:
    async def body(line: Line, roster: Roster, load: Loader) -> None:
        await until_told(line, state="serving", serving=1)
        assert await line.desk.put(Lineup(A).update(B))
        told = await until_told(line, state="serving", serving=2)
        assert told.versions == {A: "a", B: "b"}
        assert told.labels == roster.stable.engine.labels
        assert roster.stable.release == B

    run(body)


def test_a_replica_that_cannot_says_why_and_goes_on() -> None:
    async def body(line: Line, roster: Roster, load: Loader) -> None:
        await until_told(line, state="serving")
        load.refused = {B}
        lineup = Lineup(A).update(B)
        assert await line.desk.put(lineup)
        told = await until_told(line, state="failed")
        assert (told.reason, told.serving) == ("/b (b) may not take traffic", 1)
        assert roster.stable.release == A
        assert roster.ready
        starting = await line.desk.exchange(Report("two"), 0)
        assert starting.stable == A  # what nobody could load is nothing to start with
        assert await line.desk.put(Lineup(A).instead(lineup))
        await until_told(line, state="serving", serving=3)
        assert (await line.desk.exchange(Report("two"), 0)).generation == 3

    run(body)


def test_without_the_desk_a_replica_goes_on_and_comes_back_to_it() -> None:
    async def body(line: Line, roster: Roster, load: Loader) -> None:
        await until_told(line, state="serving")
        assert await line.desk.put(Lineup(A).canary(B, 0.5))
        await until_told(line, state="serving", serving=2)
        line.cut = True
        asked = line.asked
        await until(lambda: line.asked > asked + 2)
        assert roster.candidate is not None
        line.desk = Desk(A, ServeConfig())  # it has forgotten everything, and its memory is gone, too
        line.cut = False
        await until_told(line, state="serving", serving=2)
        state = await line.desk.state()
        assert state.lineup == Lineup(A).canary(B, 0.5)
        assert (await line.desk.exchange(Report("two"), 0)) == state.lineup
        assert await line.desk.put(state.lineup.promote())
        await until_told(line, state="serving", serving=3)
        assert roster.stable.release == B

    run(body)


def test_only_one_of_two_commands_changes_the_lineup() -> None:
    async def inside() -> None:
        desk = Desk(A, ServeConfig())
        assert await desk.put(Lineup(A).update(B))
        assert not await desk.put(Lineup(A).update(C))
        assert (await desk.state()).lineup.stable == B

    asyncio.run(inside())


def test_a_silent_replica_is_lost_and_one_that_takes_its_leave_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside() -> None:
        desk = Desk(A, ServeConfig())
        gone = Report("gone", Lineup(A), 1, "serving")
        await desk.exchange(gone, 0)
        await desk.exchange(replace(gone, replica="left"), 0)
        await desk.exchange(replace(gone, replica="left", state="leaving"), 0)
        assert set((await desk.state()).reports) == {"gone"}
        monkeypatch.setattr(desks, "LOST_S", -1.0)
        state = await desk.state()
        assert (state.reports, state.lost) == ({}, {"gone"})
        monkeypatch.setattr(desks, "LOST_S", 15.0)
        await desk.exchange(gone, 0)  # it was only slow
        assert not (await desk.state()).lost

    asyncio.run(inside())


def test_desks_that_it_replaces_go_once_a_replica_serves() -> None:
    async def inside() -> None:
        gone: list[int] = []
        desk = Desk(A, ServeConfig(), up=lambda: gone.append(1))
        first = await desk.exchange(Report("one"), 0)  # starts
        assert gone == []
        for replica in ("one", "two"):
            await desk.exchange(Report(replica, first, state="serving"), 0)
        assert gone == [1]

    asyncio.run(inside())


class Kept:
    """The memory of a desk, as JSON."""

    def __init__(self) -> None:
        self.content: str | None = None

    def read(self) -> tuple[Lineup, Lineup] | None:
        if self.content is None:
            return None
        wanted, proven = map(memory.from_json, json.loads(self.content))
        return wanted, proven

    def write(self, wanted: Lineup, proven: Lineup) -> None:
        self.content = json.dumps([asdict(wanted), asdict(proven)])


def test_a_desk_that_was_restarted_knows_the_lineup_though_no_replica_runs() -> None:
    async def inside() -> None:
        kept = Kept()
        desk = Desk(A, ServeConfig(), kept)
        kept_one = replace(B, kept="/somewhere")
        updated = Lineup(A).update(kept_one)
        assert await desk.put(updated)
        assert (await Desk(A, ServeConfig(), kept).exchange(Report("new"), 0)).stable == A  # nobody has served B yet
        await desk.exchange(Report("one", updated, 2, "serving"), 0)
        await asyncio.sleep(0.1)  # it is written in a thread
        again = Desk(A, ServeConfig(), kept)
        assert (await again.state()).lineup == updated
        assert (await again.exchange(Report("new"), 0)) == updated
        assert await again.put(updated.canary(C, 0.25))
        assert (await Desk(A, ServeConfig(), kept).state()).lineup == updated.canary(C, 0.25)

    asyncio.run(inside())


def test_what_could_not_be_served_is_tried_again() -> None:
    async def body(line: Line, roster: Roster, load: Loader) -> None:
        await until_told(line, state="serving")
        load.refused = {B}  # as where the storage stumbles
        assert await line.desk.put(Lineup(A).update(B))
        await until_told(line, state="failed")
        load.refused = set()
        await until_told(line, state="serving", serving=2)
        assert roster.stable.release == B

    run(body)


def test_a_lineup_that_kills_the_replica_that_loads_it_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside() -> None:
        desk = Desk(A, ServeConfig())
        serving = Report("one", Lineup(A), 1, "serving")
        await desk.exchange(serving, 0)
        new = Lineup(A).update(B)
        assert await desk.put(new)
        assert await desk.exchange(serving, 0) == new
        monkeypatch.setattr(desks, "LOST_S", -1.0)  # it died of it, and the command is gone, too
        assert await desk.exchange(Report("two"), 0) == Lineup(A)
        monkeypatch.setattr(desks, "LOST_S", 15.0)
        back = await desk.exchange(Report("two", Lineup(A), 1, "serving"), 0)
        assert (back.stable, back.generation) == (A, 3)
        await desk.exchange(Report("two", back, 3, "serving"), 0)
        assert await desk.put(back.update(C))  # one that works, of which a replica dies by chance
        await desk.exchange(Report("three", back, 3, "serving"), 0)
        await desk.exchange(Report("two", back.update(C), 4, "serving"), 0)
        monkeypatch.setattr(desks, "LOST_S", -1.0)
        assert (await desk.state()).lineup.stable == C

    asyncio.run(inside())
