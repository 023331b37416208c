"""What is sent to a cluster, what is refused before anybody is asked, and how a log is followed. No Ray."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import config, jobs
from pipeline.errors import UserError, WorkFailed
from pipeline.submission import Submission, plan


def made(*command: str, sets: tuple[str, ...] = (), out: Any = None, **more: Any) -> Submission:
    options = {"address": more.pop("address", None), "out": out, **more.pop("options", {})}
    return plan(command, options, config.load(None, ["storage=/mnt/runs", *sets], {}), **more)


def test_the_command_as_the_heads_shell_runs_it() -> None:
    wanted = made("run", "--data", "s3://bucket/a file.csv", sets=("name=mine",))
    assert wanted.entrypoint == "python -m broadsheet run --data 's3://bucket/a file.csv'"
    assert wanted.metadata == {"broadsheet": "run", "run": "mine", "storage": "/mnt/runs"}
    assert wanted.runtime_env == {}
    assert wanted.id(0.0) == "run-mine-700101-000000"


def test_what_travels(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("# why\nemoji==2.14.1\n\n")
    wanted = made("run", sets=("data.train=rows.csv",), working_dir=str(tmp_path), variables=("A=1", "B=x=y"),
                  requirements=str(tmp_path / "more.txt"))  # fmt: skip
    assert wanted.runtime_env["working_dir"] == str(tmp_path)
    assert ".git" in wanted.runtime_env["excludes"]
    assert wanted.runtime_env["pip"] == ["emoji==2.14.1"]
    assert wanted.runtime_env["env_vars"] == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sets": ("storage=runs",)}, "--storage 'runs' is relative"),
        ({"sets": ("storage=runs",), "working_dir": "."}, "storage 'runs' is relative"),
        ({"out": "scored", "working_dir": "."}, "--out 'scored' is relative"),
        ({"sets": ("data.train=rows.csv",)}, "'rows.csv' is relative to this folder.*--working-dir"),
        ({"options": {"config_file": "my.yaml"}}, "'my.yaml' is relative"),
        ({"options": {"where": "runs/default"}}, "'runs/default' is relative"),
        ({"sets": ("model.name=tests",)}, "'tests' is relative"),
        ({"address": "auto"}, "leave --address away"),
        ({"working_dir": "/nowhere"}, "--working-dir /nowhere: no such folder"),
        ({"requirements": "/nowhere.txt"}, "--requirements /nowhere.txt: No such file"),
        ({"variables": ("A",)}, "--env A: write NAME=VALUE"),
    ],
)
def test_what_cannot_work_elsewhere(more: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(UserError, match=says):
        made("run", **more)


def test_not_every_command_is_a_job() -> None:
    with pytest.raises(UserError, match="not 'keys'"):
        made("keys", "list")


def test_a_command_that_is_given_its_run_needs_no_storage() -> None:
    wanted = made("serve", "/mnt/runs/best", sets=("storage=runs",), options={"where": "/mnt/runs/best"})
    assert wanted.entrypoint == "python -m broadsheet serve /mnt/runs/best"


def test_a_job_is_called_after_what_it_serves() -> None:
    assert made("serve", "/mnt/runs/best", options={"where": "/mnt/runs/best/"}).run == "best"


def test_a_log_sent_twice_is_shown_once() -> None:
    said: list[str] = []
    shown = jobs.Shown(said.append)
    shown.add("one\ntw")
    shown.again()
    shown.add("on")
    shown.add("e\ntwo\nthr")
    shown.again()
    for piece in ("one\n", "two\n", "three\n"):
        shown.add(piece)
    assert "".join(said) == "one\ntwo\nthree\n"


class Server:
    """Answers as Ray's client does, with breaks in its connection. (``tests/test_two_nodes.py`` has the real one.)"""

    def __init__(self, *tails: list[str | BaseException], status: str = "SUCCEEDED", code: int | None = 0) -> None:
        self._tails, self._status, self._code = list(tails), status, code

    async def tail_job_logs(self, job: str) -> Any:
        for piece in self._tails.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            if piece == "silence":
                await asyncio.sleep(60)
            yield piece

    def get_job_info(self, job: str) -> Any:
        status = "RUNNING" if self._tails else self._status
        return SimpleNamespace(
            status=SimpleNamespace(value=status), driver_exit_code=self._code, message="it ended", submission_id=job
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    monkeypatch.setattr(jobs, "SILENCE_S", 0.05)


def test_following_survives_breaks_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(["one\n", OSError("cut")], [RuntimeError("abnormal")], ["one\n", "two\n", "silence"],
                    ["one\n", "two\n", "three\n"], status="FAILED", code=2)  # fmt: skip
    assert jobs.follow(server, "job") == 2
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert said.count("the connection broke (cut)") == 1
    assert "connected again" in said


@pytest.mark.parametrize(("status", "code", "given"), [("FAILED", None, 1), ("STOPPED", None, 1), ("FAILED", 130, 130)])
def test_the_exit_code_is_the_jobs(status: str, code: int | None, given: int) -> None:
    assert jobs.follow(Server([], status=status, code=code), "job") == given


def test_ctrl_c_leaves_the_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.follow(Server(["one\n", KeyboardInterrupt()], []), "job-1") == 130
    assert "come back with 'broadsheet logs job-1', end it with 'broadsheet stop job-1'" in capsys.readouterr().err


def test_a_cluster_that_was_started_anew() -> None:
    with pytest.raises(WorkFailed, match="knows no job gone"):
        jobs.follow(Server([RuntimeError("Request failed with status code 404: no such job")], []), "gone")


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", -1.0)
    with pytest.raises(WorkFailed, match="come back with 'broadsheet logs job'"):
        jobs.follow(Server([OSError("cut")], [OSError("cut")], []), "job")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(UserError, match=r"no Ray job server answers there.*ray dashboard"):
            jobs.connect(f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match="no Ray cluster listens there"):
            jobs.connect(f"127.0.0.1:{port}")
