"""The two ways a command can end badly, each with one clear sentence, and what to quote of other exceptions."""

from __future__ import annotations

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = {
    errno.EACCES: "this user may not",
    errno.EPERM: "this user may not",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.ENAMETOOLONG: "the name is too long",
}


class UserError(Exception):
    """The request was wrong (exit code 2): the message names the file, row, key or flag, and the way out."""

    exit_code = 2


class WorkFailed(Exception):
    """The work itself failed (exit code 1): the message says what stopped it and what is left."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def of_system(error: BaseException | None) -> UserError | WorkFailed | None:
    """What an error of the operating system about a file means to a person; None where it is about something else.

    Args:
        error: what was caught; one that Ray has brought from a worker holds it as its ``cause``.
    """
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = getattr(error, "cause", None) or error.__cause__
    if not isinstance(error, OSError):
        return None
    named = isinstance(error.filename, str)
    where = error.filename if named else first_line(error)
    if error.errno in _FULL:
        return WorkFailed(f"the disk is full ({where}): make room, and the same command goes on from what is finished")
    about_file = named or "/" in where  # pyarrow has the name in its sentence only
    if error.errno in _NO_WAY and about_file and not (error.errno == errno.EEXIST and os.path.isdir(where)):
        why = _NO_WAY[error.errno]
        return UserError(f"{where}: cannot be used, {why}: name another place (--storage, --out), or put that right")
    return None
