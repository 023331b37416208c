"""Nodes that are lost, come back or join while a command runs."""

from __future__ import annotations

import glob
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import unused_port

from pipeline.data.prepared import Prepared
from pipeline.train.batches import Plan

EPOCHS = 240
SETS = [
    "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[32]", f"train.epochs={EPOCHS}",
    "train.batch_tokens=64", "train.evaluations=3", "train.workers=2", "train.min_workers=1",
    "train.checkpoint_seconds=1",
]  # fmt: skip
PATIENCE = 240.0


class Nodes:
    """Ray nodes of one logical CPU each, on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, unused_port()
        self.address = f"127.0.0.1:{self._port}"
        known = {k: v for k, v in os.environ.items() if k not in ("BROADSHEET_DATA", "RAY_ADDRESS")}
        self.environment = {**known, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.running: list[subprocess.Popen[bytes]] = []

    def add(self) -> subprocess.Popen[bytes]:
        """Start a node (the first is the head) and wait until it runs."""
        place = [f"--address={self.address}"] if self.running else ["--head", f"--port={self._port}"]
        place += ["--include-dashboard=false"] if not self.running else []
        log = self._folder / f"node-{len(self.running)}.log"
        ray = str(Path(sys.executable).with_name("ray"))
        start = [ray, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000", *place]
        start += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={unused_port()}"]
        with log.open("wb") as out:
            node = subprocess.Popen(start, cwd=self._folder, env=self.environment, stdout=out, stderr=out)
        self.running.append(node)
        wait_for(lambda: b"Ray runtime started" in log.read_bytes(), node)
        return node

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node: its raylet and workers die with the process that started it."""
        node.kill()
        node.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    try:
        yield made
    finally:
        for node in reversed(made.running):
            if node.poll() is None:
                node.terminate()
                try:
                    node.wait(10)
                except subprocess.TimeoutExpired:
                    node.kill()
                    node.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_comes_back(tmp_path: Path, nodes: Nodes) -> None:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    items = [word for item in SETS for word in ("--set", item)]
    where = ["--data", f"{tmp_path}/rows.csv", "--storage", f"{tmp_path}/runs", "--model", "lstm", "--name", "elastic"]
    command = [sys.executable, "-m", "broadsheet", "train", "--address", nodes.address, *where, *items]
    nodes.add()
    second = nodes.add()
    log = tmp_path / "elastic.log"
    with log.open("wb") as out:
        training = subprocess.Popen(command, cwd=tmp_path, env=nodes.environment, stdout=out, stderr=out)
    try:
        wait_for(lambda: bool(glob.glob(f"{tmp_path}/runs/elastic/train/*/checkpoint_*/checkpoint.json")), training)
        nodes.lose(second)
        wait_for(lambda: "a worker was lost: resuming with 1 of 2 workers" in log.read_text(), training)
        nodes.add()
        wait_for(lambda: "there is room for more workers: resuming with 2 of 2 workers" in log.read_text(), training)
        assert training.wait(PATIENCE) == 0, log.read_text()
    finally:
        if training.poll() is None:
            training.kill()
            training.wait()

    facts = json.loads((tmp_path / "runs/elastic/checkpoint/broadsheet.json").read_text())["training"]
    # However many workers there were, the steps are those of the plan, which holds every row once an epoch.
    (prepared,) = (tmp_path / "runs/prepared").glob("*/manifest.json")
    lengths = Prepared.open(prepared.parent).tokens("train").lengths
    plan = Plan(lengths, 64, EPOCHS, seed=17)
    assert facts["steps"] == plan.steps
    assert [entry["epoch"] for entry in facts["history"]] == pytest.approx(
        [EPOCHS / 3, 2 * EPOCHS / 3, EPOCHS], abs=0.5
    )
    assert facts["history"][-1]["validation_accuracy"] > 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_joins_helps_to_prepare_at_once(tmp_path: Path, nodes: Nodes) -> None:
    rows = (f"the {i % 7919} of {i} comes to {i * i % 100_003} in a place where {i % 13} grow,{i % 3}"
            for i in range(1_000_000))  # fmt: skip
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    where = ["--data", f"{tmp_path}/rows.csv", "--storage", f"{tmp_path}/runs", "--model", "lstm"]
    small = ["--set", "data.in_process_mb=0", "--set", "data.near_duplicates=keep", "--set", "model.vocab_size=300"]
    nodes.add()
    log = tmp_path / "prepare.log"
    command = [sys.executable, "-m", "broadsheet", "prepare", "--address", nodes.address, *where, *small]
    with log.open("wb") as out:
        preparing = subprocess.Popen(command, cwd=tmp_path, env=nodes.environment, stdout=out, stderr=out)
    try:  # the first pass, of which each node is to do a share
        wait_for(lambda: any("clean_block" in name for name in works_on(nodes.running[0])), preparing)
        second = nodes.add()
        wait_for(lambda: any("clean_block" in name for name in works_on(second)), preparing)
        assert preparing.wait(PATIENCE) == 0, log.read_text()
    finally:
        if preparing.poll() is None:
            preparing.kill()
            preparing.wait()
    assert "1,000,000 rows read" in log.read_text()


def works_on(node: subprocess.Popen[bytes]) -> list[str]:
    """What the worker processes of a node are at, in Ray's words."""
    found = []
    for process in psutil.Process(node.pid).children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [name for name in found if name.startswith("ray::")]
