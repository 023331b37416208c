"""The command killed in the middle of training, then typed again: it goes on, and ends with the very same weights."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.config import load

SETS = [
    "model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=60",
    "train.batch_tokens=256", "train.evaluations=6", "train.workers=2",
]  # fmt: skip


def command(name: str) -> list[str]:
    sets = [word for item in SETS for word in ("--set", item)]
    return [sys.executable, "-m", "broadsheet", "train", "--data", "rows.csv", "--name", name, *sets]


def weights(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / f"runs/{name}/checkpoint/model.safetensors").read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("BROADSHEET_DATA", "RAY_ADDRESS")}


@pytest.mark.timeout(400)
def test_a_killed_command_resumes_with_the_same_command(tmp_path: Path, ray_session: None) -> None:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    killed = subprocess.Popen(command("rough"), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 150
    while not list((tmp_path / "runs/rough/train").glob("*/checkpoint_*/checkpoint.json")):
        assert killed.poll() is None, "training ended before the command could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "runs/rough/checkpoint").exists()

    done = subprocess.run(
        command("rough"), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert "resuming an unfinished training from step" in done.stdout, done.stdout
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/rough/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps)) == 6
    config = load(None, SETS, {"storage": f"{tmp_path}/runs", "name": "calm", "data.train": (f"{tmp_path}/rows.csv",)})
    stages.train(config, full=True, address=None)
    assert weights(tmp_path, "rough") == weights(tmp_path, "calm")
