"""API keys: made, revoked and found in a file that holds a digest of each."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from starlette.requests import Request

from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from serve.errors import Refused

Scope = Literal["classify", "admin"]

DEFAULT_FILE = "broadsheet-keys.json"
PREFIX = "bs_"
MAY = "broadsheet.scope"  # in the ASGI scope of a request: what its key may do
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Key(NamedTuple):
    """One key as it is kept.

    Attributes:
        name: who holds it.
        sha256: of the key, which is 32 random bytes: nothing to guess, so no slow hash that each request would pay for.
        created: date and time in UTC, ISO 8601.
        scope: what it may do.
    """

    name: str
    sha256: bytes
    created: str
    scope: Scope


def need_admin(request: Request) -> None:
    """Refuse a key that may only classify. Asked for in a route itself: there the path is beyond doubt.

    Raises:
        Refused: 403.
    """
    if request.scope.get(MAY, "admin") != "admin":  # a server without keys lets everybody do everything
        raise Refused("forbidden", "this API key may only classify: this path asks for one of scope 'admin'")


def digest(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def find(keys: Sequence[Key], secret: bytes) -> Key | None:
    """The key that a client showed. Takes the same time wherever it stands, and however much of one matches."""
    shown = digest(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, shown):
            found = key
    return found


def parse(data: bytes) -> tuple[Key, ...]:
    """The keys in a file's content.

    Raises:
        ValueError: it is damaged.
    """
    rows = json.loads(data)["keys"]
    keys = tuple(Key(row["name"], bytes.fromhex(row["sha256"]), row["created"], row["scope"]) for row in rows)
    for key in keys:
        texts = (key.name, key.created, key.scope)
        if not all(isinstance(t, str) for t in texts) or len(key.sha256) != 32 or key.scope not in get_args(Scope):
            raise ValueError(f"entry {key.name!r}")
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("a name stands there twice")
    return keys


def render(keys: Sequence[Key]) -> bytes:
    """The content of a file, one key a line."""
    rows = [
        json.dumps({"name": k.name, "sha256": k.sha256.hex(), "created": k.created, "scope": k.scope}) for k in keys
    ]
    return ('{"keys": [\n' + ",\n".join(rows) + "\n]}\n").encode()


def read(place: Place) -> tuple[Key, ...]:
    """The keys in a file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        data = Path(place.uri).read_bytes() if place.is_local else place.read_bytes()
        return parse(data)
    except FileNotFoundError:
        raise UserError(f"no such file of keys: {place}; make it with 'broadsheet keys add NAME'") from None
    except (OSError, WorkFailed) as e:
        raise UserError(f"cannot read the keys in {place}: {getattr(e, 'strerror', None) or e}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} is damaged, or no file of keys: remove it and add keys anew") from None


def add(place: Place, name: str, scope: Scope = "classify") -> str:
    """Make a key and return it; the file, made if need be, keeps only its digest.

    Raises:
        UserError: the name is taken or not a name, or the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot name a key: use letters, digits, '.', '_' and '-', at most 64")
    secret = PREFIX + secrets.token_urlsafe(32)
    with _alone(place):
        keys = read(place) if _exists(place) else ()
        if any(key.name == name for key in keys):
            raise UserError(f"{place} has a key '{name}' already: revoke it with 'broadsheet keys revoke {name}'")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        _write(place, (*keys, Key(name, digest(secret.encode()), now, scope)))
    return secret


def revoke(place: Place, name: str) -> None:
    """Take a key out of the file.

    Raises:
        UserError: it is not there.
    """
    with _alone(place):
        keys = read(place)
        if all(key.name != name for key in keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise UserError(f"{place} has no key '{name}'; it has: {known}")
        _write(place, tuple(key for key in keys if key.name != name))


def _exists(place: Place) -> bool:
    return os.path.lexists(place.uri) if place.is_local else place.exists()


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """No other command changes a local file meanwhile: two at once would lose one of the changes."""
    if not place.is_local:
        yield
        return
    import fcntl

    folder = Path(place.uri).parent
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise UserError(f"cannot use the folder {folder}: {e.strerror}; choose another file with --file") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(place: Place, keys: Sequence[Key]) -> None:
    """The whole file at once, for its owner only."""
    data = render(keys)
    try:
        if not place.is_local:
            place.write_bytes(data)
            return
        path = Path(os.path.realpath(place.uri))  # a link stays one
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, WorkFailed) as e:
        raise UserError(f"cannot write the keys to {place}: {getattr(e, 'strerror', None) or e}") from None
