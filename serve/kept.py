"""A copy of each checkpoint that an endpoint was given, out of the way of those who train or evaluate the run again.

Replicas load a checkpoint whenever one starts: after a crash, with more load, a year later. What lies in a run's folder
by then may be another model. So they are given ``served/checkpoint-<digest of its files>`` beside it: hard links on a
disk, which take no room while the checkpoint itself is there; copies made by the store on an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pyarrow import fs

from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.object_store import in_words
from pipeline.storage import Place, identity
from serve.engine.choice import FOLDER as ENGINES
from serve.releases import Release, version_of

FOLDER = "served"
NOTE = "served.json"  # comes last: a copy without it is not whole
NEWEST = 5  # an endpoint names three at most
DAYS = 7  # which others stay, too: two endpoints may serve one run
TRIES = 3  # while the checkpoint is replaced under our hands


def release(checkpoint: Place, say: Callable[[str], None]) -> Release:
    """The checkpoint as it is now, for replicas to load at any time.

    Args:
        checkpoint: its folder.
        say: told where no copy could be made; replicas are then given the folder itself.
    """
    try:
        for _ in range(TRIES):
            place = _copied(checkpoint)
            if place is not None:
                _clear(place)
                return Release(str(checkpoint), version_of(place), str(place))
        reason = "it is being written to"
    except (OSError, UserError, WorkFailed) as e:
        reason = first_line(e)
    say(f"no copy of {checkpoint} could be kept ({reason}): replicas that start later find what lies there by then")
    return Release(str(checkpoint), version_of(checkpoint))


def _copied(checkpoint: Place) -> Place | None:
    """The copy of what lies there now; None if that changed meanwhile."""
    files, before = _files(checkpoint), _marks(checkpoint)
    digest = _digest(checkpoint, files)
    place = checkpoint.parent / FOLDER / f"{checkpoint.name}-{digest}"
    if (place / NOTE).exists():
        # Engines made since then come along; those that replicas made in the copy stay.
        _bring(checkpoint, place, sorted({f for f in files if f.startswith(f"{ENGINES}/")} - set(_files(place))))
        _note(checkpoint, place)
        return place
    making = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}" if place.is_local else place
    try:
        _bring(checkpoint, making, files)
        if _marks(checkpoint) != before:
            making.delete()
            return None
        _note(checkpoint, making)
        if place.is_local:
            with contextlib.suppress(OSError):  # another command was faster
                Path(making.uri).rename(place.uri)
    except FileNotFoundError:
        return None
    finally:
        if place.is_local:
            making.delete()
    return place if (place / NOTE).exists() else None


def _marks(folder: Place) -> dict[str, tuple[int, int]]:
    """All files below it, relative to it, with size and time of change."""
    system, path = folder.resolved()
    with in_words(folder.uri):
        found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    names = {i.path[len(path) :].strip("/"): (i.size, i.mtime_ns) for i in found if i.type == fs.FileType.File}
    return {n: mark for n, mark in names.items() if n != NOTE and not any(p.startswith(".") for p in n.split("/"))}


def _files(folder: Place) -> list[str]:
    return sorted(_marks(folder))


def _digest(folder: Place, files: list[str]) -> str:
    """Of all that makes the model's answers; engines follow from the rest, and are checked when loaded."""
    total = hashlib.blake2b(digest_size=8)
    for name in files:
        if not name.startswith(f"{ENGINES}/"):
            total.update(f"{name}\0{identity(str(folder / name))}\0".encode())
    return total.hexdigest()


def _bring(source: Place, target: Place, names: list[str]) -> None:
    for name in names:
        there = target / name
        if not source.is_local:
            system, path = (source / name).resolved()
            with in_words(there.uri):
                system.copy_file(path, there.resolved()[1])
            continue
        there.parent.mkdir()
        try:
            os.link(f"{source}/{name}", there.uri)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links, or too many of one file
            shutil.copy2(f"{source}/{name}", there.uri)


def _note(checkpoint: Place, place: Place) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (place / NOTE).write_text(json.dumps({"of": str(checkpoint), "last_asked_for": now}, indent=1) + "\n")


def _clear(latest: Place) -> None:
    """Remove copies of the same checkpoint that nobody has asked for in a while."""
    base = latest.name.rpartition("-")[0]
    asked = {}
    for place in latest.parent.folders():
        if place.name.rpartition("-")[0] == base:
            with contextlib.suppress(OSError, UserError, WorkFailed, ValueError, KeyError):
                note = json.loads((place / NOTE).read_text())
                asked[place] = datetime.fromisoformat(note["last_asked_for"])
    for place in sorted(asked, key=lambda p: asked[p], reverse=True)[NEWEST:]:
        if datetime.now(timezone.utc) - asked[place] > timedelta(days=DAYS):
            (place / NOTE).delete()
            place.delete()
