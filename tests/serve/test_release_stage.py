"""The flags of the command, notes of where an endpoint runs, and the table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError, WorkFailed
from serve import client, endpoints, release_stage, status
from serve.desk import Report, State
from serve.release_stage import Wanted, run
from serve.releases import Lineup, Release
from serve.tally import Tally

A, B = Release("/runs/a", "aaa"), Release("/runs/b", "bbb")


@pytest.mark.parametrize(
    ("wanted", "where", "sentence"),
    [
        (Wanted(update="x", promote=True), None, "--update and --promote exclude each other"),
        (Wanted(rollback=True, status=True), None, "--rollback and --status exclude each other"),
        (Wanted(canary="10%"), None, "--canary goes with --update RUN"),
        (Wanted(shadow=True), None, "--shadow goes with --update RUN"),
        (Wanted(promote=True, unchecked=True), None, "--unchecked goes with --update RUN"),
        (Wanted(update="x", canary="10%", shadow=True), None, "--canary and --shadow exclude each other"),
        (Wanted(status=True), "runs/x", "--status changes a running endpoint and takes no RUN: leave 'runs/x' away"),
        (Wanted(update="x", canary="110%"), None, "--canary 110%: name a share between 0% and 100%"),
    ],
)
def test_flags_that_do_not_go_together(wanted: Wanted, where: str | None, sentence: str) -> None:
    assert wanted.anything
    with pytest.raises(UserError, match=re.escape(sentence)):
        run(Config(), wanted, where, None)
    assert not Wanted().anything


def test_where_an_endpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROADSHEET_CACHE", str(tmp_path))
    assert endpoints.find(8000) is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    endpoints.remember(8000, "127.0.0.1:1")
    monkeypatch.delenv("RAY_AUTH_MODE")
    endpoints.remember(8001, "127.0.0.1:2")
    assert (endpoints.find(8000), endpoints.find(8001)) == ("127.0.0.1:1", "127.0.0.1:2")
    assert (endpoints.auth(8000), endpoints.auth(8001), endpoints.auth(8002)) == ("token", "", "")
    endpoints.forget("127.0.0.1:1")
    assert (endpoints.find(8000), endpoints.find(8001)) == (None, "127.0.0.1:2")
    monkeypatch.setenv("BROADSHEET_CACHE", "/proc/nothing")
    endpoints.remember(8000, "x")  # serving goes on all the same
    assert endpoints.find(8000) is None


def test_models_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from pipeline import console

    monkeypatch.setattr(console, "out", Console(width=120, highlight=False, soft_wrap=True))
    lineup = Lineup(A, 4, candidate=B, shadow=True)
    tallies = {A: Tally(), B: Tally(compared=2, agreed=1, skipped=3)}
    tallies[A].answered(np.array([[0.9, 0.1], [0.7, 0.3]]), ["x", "y"], 0.01)
    tallies[B].answered(np.array([[0.2, 0.8]]), ["x", "y"], 0.02)
    reports = {
        name: Report(name, lineup, 4, "serving", versions={A: "aaa", B: "bbb"}, tallies=tallies)
        for name in ("r1", "r2")
    }
    reports["r3"] = Report("r3", lineup, 3, "failed", "no room", tallies=tallies)
    status.show(State(lineup, ServeConfig(), reports, frozenset()))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        "checkpoint /runs/a /runs/b", "version aaa bbb", "requests 100% shadow", "asked 2 2", "failed 0 0", "texts 4 2",
        "confidence 0.800 0.800", "agrees with stable 50.00% of 4 texts", "not copied 6 requests", "x 100.0% 0.0%",
        "serve 2 of 3 replicas serve change 4; counts since then:", "serve warning: replica r3: failed no room",
    ):  # fmt: skip
        assert row.split() in lines, row


class Asleep:
    """The desk of an endpoint without replicas; ``wake`` starts one, which leaves again whenever it was updated."""

    def __init__(self, min_replicas: int) -> None:
        self.config = ServeConfig(min_replicas=min_replicas, port=8123)
        self.lineup = Lineup(B, 4, previous=A)
        self.awake, self.asked = False, list[str]()

    def state(self) -> State:
        report = Report("r1", self.lineup, self.lineup.generation, "serving")
        return State(self.lineup, self.config, {"r1": report} if self.awake else {}, frozenset())

    def put(self, lineup: Lineup) -> bool:
        self.lineup, self.awake = lineup, False
        return True

    def wake(self, url: str, **_: object) -> None:
        self.asked.append(url)
        self.awake = True


def test_an_endpoint_that_sleeps_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Asleep(min_replicas=0)
    monkeypatch.setattr(release_stage, "_desk", lambda *_: desk)
    monkeypatch.setattr(client, "request", desk.wake)
    run(Config(), Wanted(rollback=True), None, None)
    assert desk.lineup.stable == A
    assert desk.asked == ["http://127.0.0.1:8123/ready"] * 2  # once to know what is there, once more for the change

    def refuses(url: str, **_: object) -> None:
        raise WorkFailed(f"{url} did not answer: refused")

    desk.awake = False
    monkeypatch.setattr(client, "request", refuses)
    with pytest.raises(WorkFailed, match=r"none could be woken: http://127.0.0.1:8123/ready did not answer"):
        run(Config(), Wanted(rollback=True), None, None)
    desk = Asleep(min_replicas=1)
    with pytest.raises(WorkFailed, match="no replica of the endpoint has said anything"):
        run(Config(), Wanted(rollback=True), None, None)
