"""``prepare`` killed in the middle: nothing passes for data, and the same command ends with the same bytes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from preparing import prepared, write_csv

from pipeline.config import load
from pipeline.data import job
from pipeline.data import prepare as preparation
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError, WorkFailed
from pipeline.model import source

SETS = ["data.shard_mb=1", "model.name=lstm", "model.vocab_size=300"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_when(folder: Path, rows: str, pattern: str, sets: list[str], victim: str = "") -> tuple[int, str]:
    """Run the command, and as soon as a file is there kill it, or a process that it started.

    Returns:
        The exit code and what was said on stderr.
    """
    flags = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", rows, *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list((folder / "runs" / "prepared").glob(pattern)):
        assert process.poll() is None, f"it ended before {pattern} was there"
        assert time.monotonic() < until
        time.sleep(0.01)
    if victim:
        (pid,) = (c.pid for c in psutil.Process(process.pid).children(recursive=True) if c.name() == victim)
        os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """15,000 rows, 3 MB; each twentieth once more with one word changed."""
    generator = random.Random(3)
    words = [f"{generator.getrandbits(24):x}" for _ in range(2_000)]
    texts = [generator.choices(words, k=30) for _ in range(14_000)]
    texts += [["another", *text[1:]] for text in texts[::14]]
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    return write_csv(path, ((" ".join(text), "abc"[i % 3]) for i, text in enumerate(texts)))


@pytest.fixture(scope="module")
def undisturbed(rows: str, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    done = prepared(tmp_path_factory.mktemp("calm"), {"train": rows}, *SETS)
    assert done.manifest["shards"] > 2
    assert done.ledger["duplicates"] > 500
    return done


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "megabytes", [pytest.param(0, id="on Ray", marks=pytest.mark.slow), pytest.param(64, id="in process")]
)
def test_killed_and_started_again(
    megabytes: int,
    rows: str,
    undisturbed: Prepared,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("BROADSHEET_DATA", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sets = [*SETS, f"data.in_process_mb={megabytes}"]

    if megabytes:
        kill_when(tmp_path, rows, "*.work/parts/*.arrow", sets)
        assert kill_when(tmp_path, rows, "*.work/pairs/*.arrow", sets) == (-signal.SIGKILL, "")
    else:  # Ray breaks under the command: one sentence, and no file that tells of a bug
        code, said = kill_when(tmp_path, rows, "*.work/pairs/*.arrow", sets, "raylet")
        assert code == 1
        # Ray's C++ side may log a line of its own before this process hears of the death.
        assert [line for line in said.splitlines() if not re.match(r"\[\d{4}-\d\d-\d\d .*\.cc:\d+\]", line)] == [
            "error: Ray's own process on this machine, the raylet, died. "
            "What is finished is kept: run the same command to go on"
        ]
        assert sorted(os.listdir(tmp_path)) == ["runs"]
    (unfinished,) = (tmp_path / "runs" / "prepared").glob("*.work")
    (unfinished / "near.json").unlink(missing_ok=True)  # as if killed before it, however slow this process is
    with pytest.raises(UserError, match=r"not prepared data \(no manifest"):
        Prepared.open(unfinished.with_suffix(""))

    kill_when(tmp_path, rows, "*.work/done-*.json", sets)
    finished = {p: p.stat().st_mtime_ns for p in unfinished.with_suffix("").glob("train/*.parquet")}
    assert finished
    capsys.readouterr()

    again = prepared(tmp_path / "runs", {"train": rows}, *sets)
    said = capsys.readouterr().out
    assert "all rows are read and cleaned" in said
    assert "shards are finished already" in said
    assert content(Path(again.place.uri)) == content(Path(undisturbed.place.uri))
    done_before = [p for p, written in finished.items() if p.stat().st_mtime_ns == written]
    assert done_before, "finished shards were written again"
    assert not list((tmp_path / "runs" / "prepared").glob("*.work"))


def test_a_cluster_that_is_not_there_costs_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "\n".join(f"{word} {i},{word}" for i in range(60) for word in ("red", "blue")))
    config = load(
        None, ["model.name=lstm", "model.vocab_size=300"], {"storage": str(tmp_path), "data.train": (str(rows),)}
    )
    model = source.resolve("lstm")

    def stops(*_: object) -> None:
        raise WorkFailed("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "_second_pass", stops)
        with pytest.raises(WorkFailed, match="the disk is full"):
            preparation.prepare(config, model)
    work = sorted(p.name for p in tmp_path.glob("prepared/*.work/*"))
    assert work

    def nobody(*_: object) -> None:
        raise UserError("no Ray cluster listens at 127.0.0.1:1")

    monkeypatch.setattr(preparation, "choose", nobody)  # the suite's Ray would be taken for it
    with pytest.raises(UserError, match="no Ray cluster listens"):
        preparation.prepare(config, model, "127.0.0.1:1")
    assert sorted(p.name for p in tmp_path.glob("prepared/*.work/*")) == work
