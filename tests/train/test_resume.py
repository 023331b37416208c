"""A training whose worker is killed goes on from its last checkpoint and ends with the very same weights."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline import config as configuration
from pipeline import stages
from pipeline.config import Config
from pipeline.train import trainer


def small(folder: Path, name: str) -> Config:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    file = folder / "rows.csv"
    if not file.exists():
        file.write_text("text,label\n" + "\n".join(rows) + "\n")
    sets = [
        "model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=12",
        "train.batch_tokens=256", "train.evaluations=6", "train.workers=2",
    ]  # fmt: skip
    return configuration.load(None, sets, {"storage": str(folder / "runs"), "name": name, "data.train": (str(file),)})


def weights(config: Config, job: stages.Job) -> str:
    assert job.prepared is not None
    trained = trainer.train(job.config, job.prepared, job.model, None, job.run)
    assert trained.summary["steps"] == trained.history[-1]["step"]
    return hashlib.sha256((trained.checkpoint / "model.safetensors").read_bytes()).hexdigest()


def kill_a_worker_after_a_checkpoint(work: Path, killed: list[int]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and not killed:
        if list(work.glob("*/checkpoint_*/progress.json")):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if process.read_bytes().startswith(b"ray::RayTrainWorker"):
                        os.kill(int(process.parent.name), signal.SIGKILL)
                        killed.append(int(process.parent.name))
                        return
                except (OSError, ValueError):
                    continue
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers through /proc")
def test_a_killed_worker_costs_no_accuracy(tmp_path: Path, ray_session: None) -> None:
    calm = stages.begin(small(tmp_path, "calm"), short=False)
    stages.make_prepared(calm, None)
    undisturbed = weights(calm.config, calm)

    rough = stages.begin(small(tmp_path, "rough"), short=False)
    stages.make_prepared(rough, None)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(Path(str(rough.run)) / "train", killed))
    killer.start()
    disturbed = weights(rough.config, rough)
    killer.join()
    assert killed, "training ended before a worker could be killed"
    assert disturbed == undisturbed
