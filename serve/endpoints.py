"""Which Ray the endpoint on a port of this machine runs in: a note that its command leaves for later ones.

The Ray that ``broadsheet serve`` starts for itself is written down nowhere else, and several may run on a machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

from pipeline import cluster
from pipeline.fetch import cache_dir


def _file(port: int) -> Path:
    host = re.sub(r"[^\w.-]", "_", platform.node())  # homes may be shared by machines
    return cache_dir() / "endpoints" / f"{host}-{port}.json"


def remember(port: int, address: str) -> None:
    """Note that the endpoint on ``port`` runs in the Ray at ``address``, and whether that demands a token. Failing to
    is no reason not to serve."""
    try:
        _file(port).parent.mkdir(parents=True, exist_ok=True)
        note = {"address": address, "auth": os.environ.get(cluster.AUTH_MODE, "")}
        _file(port).write_text(json.dumps(note), encoding="utf-8")
    except OSError:
        pass


def forget(address: str) -> None:
    """Remove the notes of a Ray."""
    for file in _file(0).parent.glob("*.json"):
        if _read(file)[0] == address:
            file.unlink(missing_ok=True)


def find(port: int) -> str | None:
    """The address of the Ray that the endpoint on ``port`` was started in; it may be gone."""
    return _read(_file(port))[0]


def auth(port: int) -> str:
    """RAY_AUTH_MODE of that Ray; empty where it was not set."""
    return _read(_file(port))[1]


def _read(file: Path) -> tuple[str | None, str]:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return str(note["address"]), str(note.get("auth", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, ""
