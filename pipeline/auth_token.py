"""Ray's token on this machine. Whoever can read it can run code as the user while a Ray of his is up."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pipeline import console


def keep_private() -> None:
    """Make the token that a local Ray would make at its first start, which leaves it open to every account (2.60).

    One that is there already, is this user's own and open to others is closed to them, and that is said.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # the user's own, wherever he keeps it
    file = Path.home() / ".ray" / "auth_token"
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(secrets.token_hex(32))
        elif file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
            console.say("ray", f"{file} was open to other accounts of this machine, and is closed to them now")
    except OSError:
        return  # a home that cannot be written to: Ray says what it makes of that
