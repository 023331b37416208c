"""The two ways a command can end badly, each with one clear sentence, and what to quote of other exceptions."""


class UserError(Exception):
    """The request was wrong (exit code 2): the message names the file, row, key or flag, and the way out."""

    exit_code = 2


class WorkFailed(Exception):
    """The work itself failed (exit code 1): the message says what stopped it and what is left."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
