"""The same commands on a cluster of two nodes, both on this machine: through ``--address`` and as a Ray job."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import unused_port

SETS = [
    "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=4", "train.batch_tokens=512",
    "train.evaluations=2",
]  # fmt: skip


@dataclass
class TwoNodes:
    """A head and a second node of two logical CPUs each."""

    address: str
    dashboard: str
    folder: Path
    environment: dict[str, str]

    def broadsheet(self, *arguments: str, job: bool = False) -> str:
        """Run a command and return what it printed; it must succeed."""
        command = [sys.executable, "-m", "broadsheet", *arguments]
        if job:
            command = [script("ray"), "job", "submit", "--address", self.dashboard, "--", *command]
        else:
            command += ["--address", self.address]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=350
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    def what(self, name: str) -> list[str]:
        """The flags of a run."""
        sets = [word for item in SETS for word in ("--set", item)]
        where = ["--data", str(self.folder / "rows.csv"), "--set", f"storage={self.folder}/runs", "--name", name]
        return [*where, "--model", "lstm", *sets]


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, haproxy_script: Path) -> Iterator[TwoNodes]:
    from pipeline.config import ServeConfig
    from serve.haproxy import environment as haproxy_environment

    folder = tmp_path_factory.mktemp("cluster")
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(90) for k in "abc"]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    known = {k: v for k, v in os.environ.items() if k not in ("BROADSHEET_DATA", "RAY_ADDRESS")}
    environment = known | haproxy_environment(ServeConfig(), script=haproxy_script)
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    port, dashboard = unused_port(), unused_port()
    head = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    head += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={unused_port()}"]
    second = [f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.1"]
    second += [f"--dashboard-agent-listen-port={unused_port()}"]
    nodes: list[subprocess.Popen[bytes]] = []
    two = TwoNodes(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder, environment)
    try:
        for i, arguments in enumerate((head, second)):
            log = (folder / f"node-{i}.log").open("wb")
            start = [script("ray"), "start", "--block", "--num-cpus=2", "--object-store-memory=200000000", *arguments]
            nodes.append(subprocess.Popen(start, cwd=folder, env=environment, stdout=log, stderr=log))
            until = time.monotonic() + 60
            while b"Ray runtime started" not in (folder / f"node-{i}.log").read_bytes():
                assert nodes[-1].poll() is None, (folder / f"node-{i}.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
        yield two
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in reversed(nodes):
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:  # its raylet dies with it
                node.kill()
                node.wait()


@pytest.mark.timeout(400)
def test_training_on_two_nodes(cluster: TwoNodes) -> None:
    said = cluster.broadsheet("doctor", "--data", "rows.csv", "--model", "lstm", "--set", f"serve.port={unused_port()}")
    assert "2 nodes, 4 CPUs" in said
    assert "2 of 2 connections between nodes" in said
    assert "written, and read by the others, on all 2 nodes" in said
    said = cluster.broadsheet("train", *cluster.what("direct"))
    assert "4 workers x 1 CPU = 4 CPUs" in said
    assert (cluster.folder / "runs/direct/checkpoint/broadsheet.json").exists()


@pytest.mark.timeout(400)
def test_the_whole_run_as_a_job(cluster: TwoNodes) -> None:
    said = cluster.broadsheet("run", *cluster.what("job"), "--port", str(unused_port()), job=True)
    assert "270 rows read" in said
    assert "endpoint stopped" in said
    assert (cluster.folder / "runs/job/report/index.html").exists()
