"""The same commands on a cluster of two nodes, both on this machine: through ``--address`` and as a Ray job."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cloud_metadata import served
from conftest import unused_port

from pipeline.errors import WorkFailed
from serve import client

pytestmark = pytest.mark.slow

SETS = [
    "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=4", "train.batch_tokens=512",
    "train.evaluations=2",
]  # fmt: skip


SECOND_NODE = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
print(next(n["NodeID"] for n in ray.nodes() if "node:__internal_head__" not in n["Resources"]))
"""

LONE_SEAT = """
import ray, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(sys.argv[2], soft=False))
def told():
    from pipeline.train.seat import LoneSeat
    seat = LoneSeat(print, gpu=False)
    while not (nodes := seat.leaving()):
        time.sleep(0.2)
    return nodes

print(*ray.get(told.remote()))
"""


@dataclass
class TwoNodes:
    """A head and a second node of two logical CPUs each."""

    address: str
    dashboard: str
    folder: Path
    environment: dict[str, str]

    def broadsheet(self, *arguments: str, address: str | None = None) -> str:
        """Run a command and return what it printed; it must succeed."""
        verb, *rest = arguments
        command = [sys.executable, "-m", "broadsheet", verb, "--address", address or self.address, *rest]
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
    known["PATH"] = f"{Path(sys.executable).parent}:{known['PATH']}"  # as where the environment is activated
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


@contextmanager
def fragile(url: str) -> Iterator[str]:
    """A way to ``url`` that breaks once, when the job has said how many rows it has read."""
    host, port = url.removeprefix("http://").split(":")
    broken = threading.Event()

    def carry(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if b"rows read" in piece and not broken.is_set():
                    broken.set()
                    break
                to.sendall(piece)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    assert broken.is_set()


@pytest.mark.timeout(400)
def test_the_whole_run_as_a_job_over_a_connection_that_breaks(cluster: TwoNodes) -> None:
    run = ["run", *cluster.what("job"), "--port", str(unused_port())]
    with fragile(cluster.dashboard) as address:
        said = cluster.broadsheet("submit", "--", *run, address=address)
    assert "the connection broke" in said
    assert said.count("270 rows read") == 1
    assert "endpoint stopped" in said
    assert (cluster.folder / "runs/job/report/index.html").exists()
    assert "SUCCEEDED" in cluster.broadsheet("status", address=cluster.dashboard)
    assert cluster.broadsheet("logs", "job").count("270 rows read") == 1  # the head's address will do on the head
    assert "is over already: succeeded" in cluster.broadsheet("stop", "job", address=cluster.dashboard)


@pytest.mark.timeout(400)
def test_an_endpoint_that_stays_and_is_stopped(cluster: TwoNodes) -> None:
    port = str(unused_port())
    said = cluster.broadsheet(
        "serve", str(cluster.folder / "runs/direct"), "--port", port, "--set", "serve.engine=torch"
    )
    assert f"--port {port} --address {cluster.address} --status" in said
    answers = client.classify(f"http://127.0.0.1:{port}", ["red green blue 3"], top_k=1)
    assert answers[0][0]["label"] in ("a", "b", "c")
    assert "runs/direct" in cluster.broadsheet("serve", "--status")
    assert "endpoint stopped" in cluster.broadsheet("serve", "--stop")
    with pytest.raises(WorkFailed):
        client.classify(f"http://127.0.0.1:{port}", ["red"], top_k=1)


@pytest.mark.timeout(400)
def test_a_spot_node_is_taken_away_with_notice(cluster: TwoNodes) -> None:
    """The last test of this file: the second node takes nothing more afterwards."""
    asked = [sys.executable, "-c", SECOND_NODE, cluster.address]
    node = subprocess.check_output(asked, env=cluster.environment, text=True).split()[-1]
    log = cluster.folder / "notice.log"
    sets = ["--set", "train.epochs=40", "--set", "train.batch_tokens=64", "--set", "train.checkpoint_seconds=3600"]
    sets += ["--set", "train.keep_checkpoints=1000"]
    command = [
        sys.executable,
        "-m",
        "broadsheet",
        "train",
        "--address",
        cluster.address,
        *cluster.what("notice"),
        *sets,
    ]
    with served("aws") as aws, log.open("wb") as out:
        lone = subprocess.Popen(  # a trial of a search has nobody who tells it
            [sys.executable, "-c", LONE_SEAT, cluster.address, node],
            env=cluster.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        training = subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, stdout=out, stderr=out)
        watch = [sys.executable, "-m", "pipeline.spot", "--metadata", aws.url]
        watch += ["--address", cluster.address, "--node-id", node]
        watching = subprocess.Popen(
            watch, cwd=cluster.folder, env=cluster.environment, stdout=subprocess.PIPE, text=True
        )
        try:
            until = time.monotonic() + 200
            while "4 workers x 1 CPU" not in log.read_text():
                assert training.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
            aws.seconds = 600  # long enough for this training to end before
            assert lone.poll() is None
            said, _ = watching.communicate(timeout=100)
            assert said.endswith("Ray knows, and empties the node\n")
            assert lone.communicate(timeout=60)[0].split() == [node]
            while "a node will be taken away: step " not in log.read_text():
                assert training.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
            step = log.read_text().partition("a node will be taken away: step ")[2].split()[0].replace(",", "")
            kept = cluster.folder / "runs" / "notice" / "train"
            while not list(kept.glob(f"*/checkpoint_{int(step):08d}/checkpoint.json")):
                assert training.poll() is None, log.read_text()
                time.sleep(0.1)
            assert training.wait(300) == 0, log.read_text()
        finally:
            for process in (lone, watching, training):
                if process.poll() is None:
                    process.kill()
                    process.wait()
