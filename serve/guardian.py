"""What keeps the port answered when HAProxy is killed, and frees it when there is no Ray any more.

Ray asks its HAProxy every few seconds whether it is alive, and then starts the actor anew that holds it: the port is
closed for as long as that takes. And Ray's end, if it is a sudden one, leaves HAProxy running on the port. So
``broadsheet-haproxy`` forks before it becomes HAProxy, and the child looks after its parent:

- HAProxy dies, and Ray has not put another in its place: the same configuration is served again at once, by a stand-in
  that leaves when Ray's own comes up, or when the actor is gone for good.
- The actor dies, Ray starts it anew, and that starts an HAProxy of its own: the older one makes way.
- The raylet dies: nothing will ever answer behind this HAProxy, so it is ended.

Linux only (pidfd), as HAProxy is. Standard library only: see ``haproxy``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence

from serve import haproxy_processes

EVERY_S = 0.1
ACTOR_RETURNS_S = 15.0  # Ray starts the actor anew in a few seconds, on a busy machine in many
MOST_RESTARTS = 20


def watch(command: Sequence[str]) -> None:
    """Fork; the parent returns and becomes HAProxy, the child looks after it and never returns.

    Args:
        command: HAProxy with its arguments, as the parent will run it.
    """
    own = os.getpid()
    actor = os.getppid()
    raylet = haproxy_processes.parent(actor)
    if not hasattr(os, "pidfd_open") or actor <= 1 or raylet <= 1 or os.fork():
        return
    code = 1
    with contextlib.suppress(BaseException):
        os.setsid()  # a Ctrl-C in the terminal is for others
        _look_after(own, actor, raylet, list(command))
        code = 0
    os._exit(code)


def _look_after(own: int, actor: int, raylet: int, command: list[str]) -> None:
    haproxy, manager, node = _Alive(own), _Alive(actor), _Alive(raylet)
    file = command[command.index("-f") + 1]
    while haproxy and node:
        watched = [haproxy.handle, node.handle, *([manager.handle] if manager else [])]
        select.select(watched, [], [], None if manager else 1.0)
        if not manager and haproxy and _others(file, own):  # of the actor that Ray started anew: this one knows no
            haproxy.send(signal.SIGUSR1)  # replica that comes from now on, and would still get half of the connections
    if not node:  # the first of both, or both at once
        haproxy.end()
        return
    if not manager or _others(file):  # Serve is shut down; or it was told to leave, as Ray has started another
        return
    _stand_in(command, file, manager, node)


def _stand_in(command: list[str], file: str, manager: _Alive, node: _Alive) -> None:
    """Serve the configuration until Ray's own HAProxy does."""
    fresh = [*command[: command.index("-sf")]] if "-sf" in command else command  # nobody is there to take over from
    left = time.monotonic() + ACTOR_RETURNS_S
    for _ in range(MOST_RESTARTS):
        process = subprocess.Popen(fresh, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(EVERY_S)
            if manager:
                left = time.monotonic() + ACTOR_RETURNS_S
            if not node or time.monotonic() > left:
                process.terminate()
                process.wait()
                return
            if _others(file, process.pid):
                process.send_signal(signal.SIGUSR1)  # no new connections; what is under way is answered
                process.wait()
                return
        if process.returncode >= 0 or process.returncode == -signal.SIGTERM:
            return  # it ended as asked to, or cannot run


def _others(file: str, but: int = 0) -> list[int]:
    """Other processes of HAProxy with this configuration that listen, not such that finish what they began."""
    return [pid for pid, _ in haproxy_processes.running(file) if pid != but and haproxy_processes.listens(pid)]


class _Alive:
    """A process, by a handle that cannot come to mean another one. True while it runs."""

    def __init__(self, pid: int) -> None:
        self.handle = os.pidfd_open(pid)

    def __bool__(self) -> bool:
        return not select.select([self.handle], [], [], 0)[0]

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.handle, number)

    def end(self, patience_s: float = 5.0) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.send(number)
            if select.select([self.handle], [], [], patience_s)[0]:
                return
