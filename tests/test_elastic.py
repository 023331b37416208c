"""Two nodes, one of which is lost in the middle of a training and comes back."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import unused_port

SETS = [
    "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[32]", "train.epochs=300", "train.batch_tokens=64",
    "train.evaluations=3", "train.workers=2", "train.checkpoint_seconds=1",
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


@pytest.mark.timeout(900)
def test_a_lost_node_comes_back(tmp_path: Path, nodes: Nodes) -> None:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    def command(name: str, *sets: str) -> list[str]:
        items = [word for item in (*SETS, *sets) for word in ("--set", item)]
        where = ["--data", f"{tmp_path}/rows.csv", "--storage", f"{tmp_path}/runs", "--model", "lstm", "--name", name]
        return [sys.executable, "-m", "broadsheet", "train", "--address", nodes.address, *where, *items]

    nodes.add()
    second = nodes.add()
    log = tmp_path / "elastic.log"
    with log.open("wb") as out:
        training = subprocess.Popen(
            command("elastic", "train.min_workers=1"), cwd=tmp_path, env=nodes.environment, stdout=out, stderr=out
        )
    try:
        wait_for(lambda: bool(list(tmp_path.glob("runs/elastic/train/*/checkpoint_*/checkpoint.json"))), training)
        nodes.lose(second)
        wait_for(lambda: "a worker was lost: resuming with 1 of 2 workers" in log.read_text(), training)
        nodes.add()
        wait_for(lambda: "there is room for more workers: resuming with 2 of 2 workers" in log.read_text(), training)
        assert training.wait(PATIENCE) == 0, log.read_text()
    finally:
        if training.poll() is None:
            training.kill()
            training.wait()

    calm = subprocess.run(command("calm"), cwd=tmp_path, env=nodes.environment, capture_output=True, timeout=PATIENCE)
    assert calm.returncode == 0, calm.stderr
    elastic, undisturbed = (
        json.loads((tmp_path / f"runs/{name}/checkpoint/broadsheet.json").read_text())["training"]
        for name in ("elastic", "calm")
    )
    # The same steps over the same rows; float sums in another order.
    for one, other in zip(elastic["history"], undisturbed["history"], strict=True):
        assert (one["step"], one["epoch"]) == (other["step"], other["epoch"])
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05, abs=0.01)
        assert one["validation_accuracy"] == pytest.approx(other["validation_accuracy"], abs=0.05)
