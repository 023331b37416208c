"""Ray's token on this machine. Whoever can read it can run code as the user while a Ray of his is up."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline import console


def keep_private() -> None:
    """Make the token that a local Ray would make at its first start, which leaves it open to every account (2.60).

    Nothing happens where RAY_AUTH_MODE says that there is to be none, or the user keeps one elsewhere.

    One that is there already, is this user's own and open to others is closed to them, and that is said.
    """
    own = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if own or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    try:
        file = Path.home() / ".ray" / "auth_token"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent)  # for this user's eyes only
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another command was first
                os.link(temporary, file)
            os.unlink(temporary)
        elif file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
            console.say("ray", f"{file} was open to other accounts of this machine, and is closed to them now")
    except (OSError, RuntimeError):
        return  # no home, or a home that cannot be written to: Ray says what it makes of that
