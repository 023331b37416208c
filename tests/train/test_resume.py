"""Trainings that are cut off, damaged or run away go on from the last good checkpoint, or stop with the reason."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import config as configuration
from pipeline import stages
from pipeline.config import Config
from pipeline.errors import WorkFailed
from pipeline.storage import Place
from pipeline.train import trainer
from pipeline.train.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers through /proc")]


SETS = [
    "model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[64]", "train.epochs=60",
    "train.batch_tokens=256", "train.evaluations=3", "train.workers=2", "train.checkpoint_seconds=0",
]  # fmt: skip


def small(folder: Path, name: str, *sets: str) -> Config:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    file = folder / "rows.csv"
    if not file.exists():
        file.write_text("text,label\n" + "\n".join(rows) + "\n")
    flags = {"storage": str(folder / "runs"), "name": name, "data.train": (str(file),)}
    return configuration.load(None, [*SETS, *sets], flags)


def begin(config: Config) -> stages.Job:
    job = stages.begin(config, short=False)
    stages.make_prepared(job, None)
    return job


def weights(job: stages.Job) -> str:
    assert job.prepared is not None
    trained = trainer.train(job.config, job.prepared, job.model, None, job.run)
    assert trained.summary["steps"] == trained.history[-1]["step"]
    assert 0 <= trained.summary["stall_share"] < 1
    assert not (trained.checkpoint / "checkpoint.json").exists()
    return digest(job.run)


def digest(run: Place) -> str:
    return hashlib.sha256((run / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()


def workers() -> list[int]:
    """The training workers of this process's own Ray."""
    parents: dict[int, int] = {}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            parents[pid] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(pid)

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


def finished(work: Path) -> list[str]:
    """The checkpoints of a training that goes on; unlike ``Path.glob``, this minds no folder that goes meanwhile."""
    return glob.glob(f"{work}/*/checkpoint_*/checkpoint.json")


class AfterCheckpoints(threading.Thread):
    """Does something to the workers of a run, once it has so many checkpoints."""

    def __init__(self, run: Path, at_least: int, do: Callable[[int], object]) -> None:
        super().__init__(daemon=True)
        self._work, self._at_least, self._do, self._over = run / "train", at_least, do, threading.Event()
        self.done: list[int] = []
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.02) and not self.done:
            if len(finished(self._work)) >= self._at_least:
                for pid in workers():
                    self._do(pid)
                    self.done.append(pid)

    def finish(self) -> None:
        self._over.set()
        self.join()
        assert self.done, "training ended before anything could be done to a worker"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, str]:
    """A folder with the data, and the weights of a training that nothing happened to."""
    folder = tmp_path_factory.mktemp("resume")
    return folder, weights(begin(small(folder, "calm")))


@pytest.mark.timeout(400)
def test_a_killed_command_resumes_with_the_same_command(undisturbed: tuple[Path, str]) -> None:
    folder, calm = undisturbed
    items = [word for item in SETS for word in ("--set", item)]
    words = [sys.executable, "-m", "broadsheet", "train", "--data", str(folder / "rows.csv"), "--name", "typed", *items]
    environment = {k: v for k, v in os.environ.items() if k not in ("BROADSHEET_DATA", "RAY_ADDRESS")}
    killed = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 150
    while not finished(folder / "runs/typed/train"):
        assert killed.poll() is None, "training ended before the command could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "runs/typed/checkpoint").exists()

    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "resuming an unfinished training from step" in done.stdout, done.stdout
    steps = [json.loads(line)["step"] for line in (folder / "runs/typed/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps)) == 3
    assert digest(Place.of(folder / "runs" / "typed")) == calm


@pytest.mark.timeout(400)
def test_a_killed_worker_costs_no_accuracy(undisturbed: tuple[Path, str]) -> None:
    folder, calm = undisturbed
    job = begin(small(folder, "rough"))
    killer = AfterCheckpoints(Path(str(job.run)), 1, kill)
    assert weights(job) == calm
    killer.finish()


@pytest.mark.timeout(400)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    undisturbed: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, calm = undisturbed
    job = begin(small(folder, "damaged", "train.max_failures=0"))
    killer = AfterCheckpoints(Path(str(job.run)), 2, kill)
    with pytest.raises(WorkFailed, match="a worker process was killed, 1 time in a row"):
        weights(job)
    killer.finish()
    (place,) = [p for p in (job.run / "train").folders() if not p.name.startswith("initial")]
    store = Store(place, 2)
    latest, before = store.steps()[:2]
    file = Path(f"{place}/checkpoint_{latest:08d}/optimizer.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert weights(job) == calm
    said = capsys.readouterr().out
    assert f"checkpoint_{latest:08d} is damaged (optimizer.safetensors has other bytes than were written)" in said
    assert f"resuming an unfinished training from step {before}" in said


@pytest.mark.timeout(400)
def test_a_disk_without_room_stops_at_once_and_keeps_the_last_checkpoint(undisturbed: tuple[Path, str]) -> None:
    folder, calm = undisturbed
    job = begin(small(folder, "full"))

    def no_room(pid: int) -> None:  # from here on no file of this process may grow beyond 100 kB
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    limiter = AfterCheckpoints(Path(str(job.run)), 1, no_room)
    with pytest.raises(WorkFailed, match=r"cannot write to .*checkpoint_\d+: .*The last good checkpoint is kept"):
        weights(job)
    limiter.finish()
    assert weights(job) == calm


@pytest.mark.timeout(400)
def test_a_training_that_runs_away_stops_at_once(undisturbed: tuple[Path, str]) -> None:
    folder, _ = undisturbed
    job = begin(small(folder, "away", "train.learning_rate=1e38", "train.clip_norm=1e30"))
    with pytest.raises(WorkFailed, match=r"no longer finite at step \d+: lower train.learning_rate"):
        weights(job)
    (place,) = [p for p in (job.run / "train").folders() if not p.name.startswith("initial")]
    for step in Store(place, 2).steps():
        with Store(place, 2).opened(step) as (_, damage):
            assert damage is None
