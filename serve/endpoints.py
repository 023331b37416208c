"""Which Ray the endpoint on a port of this machine runs in: a note that its command leaves for later ones.

The Ray that ``broadsheet serve`` starts for itself is written down nowhere else, and several may run on a machine.
"""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

from pipeline.fetch import cache_dir


def _file(port: int) -> Path:
    host = re.sub(r"[^\w.-]", "_", platform.node())  # homes may be shared by machines
    return cache_dir() / "endpoints" / f"{host}-{port}.json"


def remember(port: int, address: str) -> None:
    """Note that the endpoint on ``port`` runs in the Ray at ``address``. Failing to is no reason not to serve."""
    try:
        _file(port).parent.mkdir(parents=True, exist_ok=True)
        _file(port).write_text(json.dumps({"address": address}), encoding="utf-8")
    except OSError:
        pass


def forget(address: str) -> None:
    """Remove the notes of a Ray."""
    for file in _file(0).parent.glob("*.json"):
        if _read(file) == address:
            file.unlink(missing_ok=True)


def find(port: int) -> str | None:
    """The address of the Ray that the endpoint on ``port`` was started in; it may be gone."""
    return _read(_file(port))


def _read(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
