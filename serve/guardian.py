"""What keeps the port answered when HAProxy is killed, and frees it when there is no Ray any more.

Ray asks its HAProxy every few seconds whether it is alive, and then starts the actor anew that holds it: the port is
closed for as long as that takes. And Ray's end, if it is a sudden one, leaves HAProxy running on the port. So
``broadsheet-haproxy`` forks before it becomes HAProxy, and the child looks after its parent:

- HAProxy dies while its actor lives: the same configuration is served again at once, by a stand-in, until the next
  HAProxy is started (``make_way``) or Ray takes too long. A stand-in has no admin socket, as Ray would take an answer
  there for one of its own HAProxy, and leave it at that.
- The raylet dies: nothing will ever answer behind this HAProxy, so it is ended.

Linux only (pidfd), as HAProxy is. Standard library only: see ``haproxy``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serve import haproxy_processes
from serve.haproxy_processes import STAND_IN

EVERY_S = 0.1
SHUTDOWN_S = 0.2  # where Serve is shut down, the actor dies right after its HAProxy
ACTOR_RETURNS_S = 30.0  # Ray sees the loss within some seconds, and starts the actor anew in as many
MOST_RESTARTS = 20
LEAVE_S = 5.0


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
    try:
        os.setsid()  # a Ctrl-C in the terminal is for others
        _look_after(own, actor, raylet, list(command))
    except BaseException as e:  # nothing of this may return into the program that was forked
        print(f"broadsheet-haproxy: HAProxy {own} is not looked after any more: {e!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def make_way(arguments: Sequence[str]) -> None:
    """Before an HAProxy starts: have those make way that serve the same configuration and that it will not replace
    itself (``-sf``): a stand-in, and one that outlived its actor, which knows no replica that came since.

    They accept nothing more, and end when what they began is answered.

    Args:
        arguments: of the HAProxy that starts.
    """
    leaving = others(arguments)
    for pid in leaving:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + LEAVE_S
    while any(map(haproxy_processes.listens, leaving)) and time.monotonic() < until:
        time.sleep(0.01)


def others(arguments: Sequence[str]) -> list[int]:
    """Processes that serve the configuration of these arguments and are not named in them (``-sf``)."""
    file = arguments[arguments.index("-f") + 1]
    known = set(arguments[arguments.index("-sf") + 1 :]) if "-sf" in arguments else set()
    return [pid for pid, _ in haproxy_processes.running(file) if str(pid) not in known]


def _look_after(own: int, actor: int, raylet: int, command: list[str]) -> None:
    haproxy, manager, node = _Alive(own), _Alive(actor), _Alive(raylet)
    file = command[command.index("-f") + 1]
    select.select([haproxy.handle, node.handle], [], [])
    if not node:  # the first of both, or both at once
        haproxy.end()
        return
    select.select([manager.handle], [], [], SHUTDOWN_S)
    rest = [pid for pid, _ in haproxy_processes.running(file)]
    if not manager or any(map(haproxy_processes.listens, rest)):  # Serve is shut down; or it made way for the next
        return
    with open(file + STAND_IN + ".lock", "w") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two may have been killed at once
        _stand_in(command, file, manager, node)


def _stand_in(command: list[str], file: str, manager: _Alive, node: _Alive) -> None:
    """Serve the configuration until Ray's next HAProxy does."""
    text = re.sub(r"^\s*stats socket .*\n", "", Path(file).read_text(), flags=re.MULTILINE)
    Path(file + STAND_IN).write_text(text)
    fresh = command[: command.index("-sf")] if "-sf" in command else list(command)  # nobody is there to take over from
    fresh[fresh.index("-f") + 1] = file + STAND_IN
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
        if process.returncode >= 0 or process.returncode == -signal.SIGTERM:
            return  # it made way, ended as asked to, or cannot run


class _Alive:
    """A process, by a handle that cannot come to mean another one. True while it runs."""

    def __init__(self, pid: int) -> None:
        self.handle = os.pidfd_open(pid)

    def __bool__(self) -> bool:
        return not select.select([self.handle], [], [], 0)[0]

    def end(self, patience_s: float = 5.0) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        with contextlib.suppress(OSError):
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(self.handle, number)
                if select.select([self.handle], [], [], patience_s)[0]:
                    return
