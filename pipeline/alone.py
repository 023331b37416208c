"""One command at a time on what two would spoil: prepared data, a training, scored files.

A lock of the operating system on a file beside the place, which ends with the process that holds it, however that
ends. It binds commands that see the same disk. Object stores have no such lock: there, it is for the user to keep two
commands on one name apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage import Place

LOCKED = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def waiting(place: Place, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a place for this command, after others that hold it.

    Args:
        place: what is about to be written.
        tell: told who holds it, if there is something to wait for.
    """
    with _held(place, tell):
        yield


@contextmanager
def refusing(place: Place, what: str, way: str) -> Iterator[None]:
    """Hold a place for this command.

    Args:
        place: what is about to be written.
        what: it is, in the message.
        way: out, in the message.

    Raises:
        UserError: another command holds it.
    """

    def refuse(holder: str) -> None:
        raise UserError(f"{what} {place} is being written by another command ({holder}): wait for it, or {way}")

    with _held(place, refuse):
        yield


@contextmanager
def _held(place: Place, busy: Callable[[str], None]) -> Iterator[None]:
    if not place.is_local:
        yield
        return
    path = Path(place.uri)
    handle = _opened(path.parent / f".{path.name}.lock")
    if handle is None:
        yield
        return
    try:
        if not _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            busy(os.pread(handle, 200, 0).decode(errors="replace") or "which has just begun")
            _lock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # another user's: he who waits is told of nobody
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.close(handle)  # which unlocks


def _opened(file: Path) -> int | None:
    """The lock's file, which stays for good: one that came and went could be locked twice. None where nobody may write;
    whoever writes there says so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            return os.open(file, os.O_RDONLY)
    except OSError:
        return None


def _lock(handle: int, how: int) -> bool:
    """Whether the lock is ours now, or the file system has none; without LOCK_NB it is waited for."""
    try:
        fcntl.flock(handle, how)
    except OSError as e:
        if e.errno in LOCKED:
            return False
        if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True
