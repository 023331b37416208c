"""``prepare`` killed in the middle: nothing passes for data, and the same command ends with the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import Config, load
from pipeline.data import named, prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.model.source import resolve

SETS = ["data.shard_mb=1", "model.name=lstm", "model.vocab_size=500"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_when(folder: Path, pattern: str, sets: list[str]) -> None:
    """Run the command and kill it as soon as a file is there."""
    flags = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", "rows.csv", *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((folder / "runs" / "prepared").glob(pattern)):
        assert process.poll() is None, f"it ended before {pattern} was there"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("megabytes", [0, 64], ids=["on Ray", "in process"])
def test_killed_and_started_again(
    megabytes: int,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("BROADSHEET_DATA", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    generator = random.Random(3)
    words = [f"{generator.getrandbits(24):x}" for _ in range(2_000)]
    with (tmp_path / "rows.csv").open("w") as f:
        f.write("text,label\n")
        for i in range(30_000):
            f.write(f"{' '.join(generator.choices(words, k=30))},{'abc'[i % 3]}\n")

    def finish(storage: Path) -> Prepared:
        config: Config = load(None, sets, {"storage": str(storage), "data.train": (str(tmp_path / "rows.csv"),)})
        return prepare.prepare(named.resolve(config)[0], resolve("lstm"))[0]

    sets = [*SETS, f"data.in_process_mb={megabytes}"]
    undisturbed = finish(tmp_path / "calm")
    assert undisturbed.manifest["shards"] > 4

    kill_when(tmp_path, "*.work/parts/*.arrow", sets)
    (unfinished,) = (tmp_path / "runs" / "prepared").glob("*.work")
    with pytest.raises(UserError, match=r"not prepared data \(no manifest"):
        Prepared.open(unfinished.with_suffix(""))
    kill_when(tmp_path, "*.work/done-*.json", sets)
    finished = {p: p.stat().st_mtime_ns for p in unfinished.with_suffix("").glob("train/*.parquet")}
    assert finished
    capsys.readouterr()

    again = finish(tmp_path / "runs")
    said = capsys.readouterr().out
    assert "all rows are read and cleaned" in said
    assert "shards are finished already" in said
    assert content(Path(again.place.uri)) == content(Path(undisturbed.place.uri))
    done_before = [p for p, written in finished.items() if p.stat().st_mtime_ns == written]
    assert done_before, "finished shards were written again"
    assert not list((tmp_path / "runs" / "prepared").glob("*.work"))
