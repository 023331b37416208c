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
        ({"sets": ("serve.feedback=said",)}, "serve.feedback 'said' is relative.*--set serve.feedback=/mnt/shared/"),
        ({"sets": ("serve.feedback=said",), "working_dir": "."}, "serve.feedback 'said' is relative"),
        ({"options": {"from_feedback": "runs/old"}}, "'runs/old' is relative"),
        ({"sets": ("serve.keys=keys.json",)}, "'keys.json' is relative"),
        ({"sets": ("serve.tls_cert=cert.pem", "serve.tls_key=/etc/key.pem")}, "'cert.pem' is relative"),
        ({"sets": ("serve.tls_cert=/etc/cert.pem", "serve.tls_key=key.pem")}, "'key.pem' is relative"),
        ({"sets": ("data.corrections=right.csv",)}, "'right.csv' is relative"),
        ({"sets": ("model.name=./missing",)}, "'./missing' is relative"),
        ({"options": {"compare": ("/mnt/runs/a", "runs/b")}}, "'runs/b' is relative"),
        ({"options": {"show": "runs/search"}}, "'runs/search' is relative"),
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


def test_files_that_travel_and_feedback_that_stays() -> None:
    relative = (
        "serve.keys=keys.json",
        "serve.tls_cert=cert.pem",
        "serve.tls_key=key.pem",
        "data.corrections=right.csv",
    )
    sets = (*relative, "serve.feedback=s3://bucket/said")
    assert made("run", sets=sets, working_dir=".", options={"from_feedback": ""}).verb == "run"


def test_not_every_command_is_a_job() -> None:
    with pytest.raises(UserError, match="not 'keys'"):
        made("keys", "list")


def test_a_command_that_is_given_its_run_needs_no_storage() -> None:
    wanted = made("serve", "/mnt/runs/best", sets=("storage=runs",), options={"where": "/mnt/runs/best"})
    assert wanted.entrypoint == "python -m broadsheet serve /mnt/runs/best"
    for named in ({"status": True}, {"update": "/mnt/runs/two"}, {"stop": True}, {"checkpoint": "s3://b/runs/one"}):
        assert made("serve", sets=("storage=runs",), options=named).verb == "serve"


def test_a_job_is_called_after_what_it_serves() -> None:
    assert made("serve", "/mnt/runs/mine", options={"where": "/mnt/runs/mine/"}).run == "mine"
    assert made("evaluate", options={"where": "s3://b/runs/mine/checkpoint"}).run == "mine"
    assert made("serve", options={"where": "s3://b/runs/mine?endpoint_override=http://h:9000"}).run == "mine"


def test_the_same_run_is_known_however_it_is_written() -> None:
    one, other = (made("train", sets=("name=m", f"storage={s}")) for s in ("s3://b/runs", "s3://b/runs/"))
    assert one.metadata == other.metadata
    assert made("tune").run == made("tune", sets=("name=search",)).run == "search"
    assert made("run").run == "default"


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
        self.asked = 0

    def get_job_logs(self, job: str) -> str:
        return "one\ntwo\nlast\n"

    async def tail_job_logs(self, job: str) -> Any:
        for piece in self._tails.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            if piece == "silence":
                await asyncio.sleep(60)
            yield piece

    def get_job_info(self, job: str) -> Any:
        self.asked += 1
        status = "RUNNING" if self._tails else self._status
        return SimpleNamespace(
            status=SimpleNamespace(value=status), driver_exit_code=self._code, message="it ended", submission_id=job
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    monkeypatch.setattr(jobs, "SILENCE_S", 0.05)
    monkeypatch.setattr(jobs, "LONGEST_SILENCE_S", 0.2)


def test_following_survives_breaks_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(["one\n", OSError("cut")], [RuntimeError("abnormal")], ["one\n", "two\n", "silence"],
                    ["one\n", "two\n", "three\n"], status="FAILED", code=2)  # fmt: skip
    assert jobs.follow(server, "job") == 2
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert said.count("the connection broke (cut)") == 1
    assert "connected again" in said


def test_the_log_is_sent_again_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    real = jobs._tail

    async def tail(client: Any, job: str, shown: jobs.Shown, silence: float) -> bool:
        waited.append(silence)
        return await real(client, job, shown, silence)

    monkeypatch.setattr(jobs, "_tail", tail)
    quiet: list[str | BaseException] = ["one\n", "silence"]
    server = Server(quiet, quiet, quiet, quiet, quiet, ["one\n", "two\n", "silence"], ["one\n", "two\n"])
    assert jobs.follow(server, "job") == 0
    assert waited == [0.05, 0.05, 0.1, 0.2, 0.2, 0.2, 0.05]
    assert server.asked > len(waited)  # in between only whether the job is over


def test_a_job_that_ends_behind_a_dead_connection(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.follow(Server(["one\n", "silence"]), "job") == 0
    assert capsys.readouterr().out == "one\ntwo\nlast\n"


def test_a_log_that_ended_before_its_job_is_not_asked_for_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(jobs.time, "sleep", slept.append)
    assert jobs.follow(Server(["one\n"], ["one\n"], ["one\n", "two\n"]), "job") == 0
    assert slept == [jobs.RETRY_S] * 2


class Listed:
    """A job server with jobs, ``(id, verb, status)``, the newest first."""

    def __init__(self, *jobs: tuple[str, str, str]) -> None:
        self.stopped: list[str] = []
        self._jobs = [
            SimpleNamespace(
                submission_id=name, start_time=100 - i, status=SimpleNamespace(value=status),
                metadata={"run": "mine", "broadsheet": verb},
            )
            for i, (name, verb, status) in enumerate(jobs)
        ]  # fmt: skip

    def list_jobs(self) -> list[Any]:
        return self._jobs[::-1]

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
        self.get_job_info(job).status.value = "STOPPED"

    def get_job_info(self, job: str) -> Any:
        return next(j for j in self._jobs if j.submission_id == job)


@pytest.mark.parametrize(
    ("listed", "meant"),
    [
        ([("d", "doctor", "SUCCEEDED"), ("t", "train", "RUNNING")], "t"),
        ([("d", "doctor", "RUNNING"), ("e", "evaluate", "PENDING"), ("p", "predict", "PENDING")], "p"),
        ([("s", "serve", "RUNNING"), ("t", "train", "FAILED")], "s"),
        ([("t", "train", "FAILED"), ("e", "evaluate", "RUNNING")], "e"),
    ],
)
def test_a_runs_name_means_the_job_that_works_on_it(listed: list[tuple[str, str, str]], meant: str) -> None:
    server = Listed(*listed)
    jobs.stop(server, "mine")
    assert server.stopped == [meant]


def test_of_several_jobs_one_is_named_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    server = Listed(("p", "predict", "RUNNING"), ("t", "train", "RUNNING"), ("d", "doctor", "FAILED"))
    with pytest.raises(UserError, match="2 jobs of run 'mine' are not over; name one of them instead: p, t"):
        jobs.stop(server, "mine")
    jobs.stop(server, "t")
    assert server.stopped == ["t"]
    jobs.stop(server, "mine")
    assert server.stopped == ["t", "p"]
    jobs.stop(server, "mine")
    assert "job p is over already: stopped" in capsys.readouterr().out
    with pytest.raises(UserError, match="no job 'other' on this cluster; it has: mine"):
        jobs.stop(server, "other")


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
