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
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pyarrow import fs

from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.object_store import in_words
from pipeline.storage import Place, identity
from pipeline.train.checkpoint import CARD
from serve.engine.choice import FOLDER as ENGINES
from serve.releases import WEIGHTS, Release, version_of

FOLDER = "served"
NOTE = "served.json"  # comes last: a copy without it is not whole
NEWEST = 5
DAYS = 30  # since somebody asked for it or a replica loaded it
LEFT_DAYS = 1  # of what a killed command left half done
TRIES, PAUSE_S = 3, 0.2  # while the checkpoint is replaced under our hands
WRONG = (OSError, UserError, WorkFailed)


def release(checkpoint: Place, say: Callable[[str], None]) -> Release:
    """The checkpoint as it is now, for replicas to load at any time.

    Args:
        checkpoint: its folder.
        say: told where no copy could be made; replicas are then given the folder itself.
    """
    reason = "it is being written to"
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            found = _copied(checkpoint)
            if found is not None:
                return found
        except WRONG as e:
            reason = first_line(e)
        if not last:
            time.sleep(PAUSE_S)
    say(f"no copy of {checkpoint} could be kept ({reason}): replicas that start later find what lies there by then")
    return Release(str(checkpoint), version_of(checkpoint))


def touch(kept: Release) -> None:
    """Note that a copy is in use; where it cannot be written to, others will have to see to that."""
    if kept.kept:
        with contextlib.suppress(*WRONG):
            _note(Place.of(kept.checkpoint), Place.of(kept.kept))


def clear(latest: Release, in_use: Iterable[Release] = ()) -> None:
    """Remove copies of the same checkpoint that nobody has asked for in a month, but for the newest five.

    Args:
        latest: what was asked for last.
        in_use: never removed.
    """
    if latest.kept:
        with contextlib.suppress(*WRONG):
            _clear(Place.of(latest.kept), {latest.kept, *(release.kept for release in in_use)})


def _copied(checkpoint: Place) -> Release | None:
    """A copy of what lies there now; None if that changed meanwhile.

    Raises:
        OSError, UserError, WorkFailed: it could not be made.
    """
    before = _marks(checkpoint)
    if not {CARD, WEIGHTS} <= set(before):  # which training is about to bring
        return None
    place = checkpoint.parent / FOLDER / f"{checkpoint.name}-{_digest(checkpoint, before)}"
    made = Release(str(checkpoint), version_of(checkpoint), str(place))
    if (place / NOTE).exists():
        with contextlib.suppress(*WRONG):  # somebody else's, perhaps, and as good
            # Engines made since then come along; those that replicas made in the copy stay.
            _bring(checkpoint, place, [n for n in set(before) - set(_marks(place)) if n.startswith(f"{ENGINES}/")])
            _note(checkpoint, place)
        return made
    # On object stores, where nothing is moved, it is made in its place: its name says what must be in it.
    making = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}" if place.is_local else place
    try:
        _bring(checkpoint, making, before)
        there = _marks(making)
        if _marks(checkpoint) != before or any(there.get(n, (-1,))[0] != mark[0] for n, mark in before.items()):
            return None
        _note(checkpoint, making)
        if place.is_local:
            with contextlib.suppress(OSError):  # another command was faster
                Path(making.uri).rename(place.uri)
    finally:
        if place.is_local:
            making.delete()
    return made if (place / NOTE).exists() else None


def _marks(folder: Place) -> dict[str, tuple[int, int]]:
    """All files below it, relative to it, with size and time of change."""
    system, path = folder.resolved()
    with in_words(folder.uri):
        found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    names = {i.path[len(path) :].strip("/"): (i.size, i.mtime_ns) for i in found if i.type == fs.FileType.File}
    return {n: mark for n, mark in names.items() if n != NOTE and not any(p.startswith(".") for p in n.split("/"))}


def _digest(folder: Place, names: Collection[str]) -> str:
    """Of all that makes the model's answers; engines follow from the rest, and are checked when loaded."""
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(names):
        if not name.startswith(f"{ENGINES}/"):
            total.update(f"{name}\0{identity(str(folder / name))}\0".encode())
    return total.hexdigest()


def _bring(source: Place, target: Place, names: Iterable[str]) -> None:
    for name in names:
        there = target / name
        if not source.is_local:
            system, path = (source / name).resolved()
            with in_words(there.uri):
                system.copy_file(path, there.resolved()[1])
            continue
        there.parent.mkdir()
        file = os.path.realpath(f"{source}/{name}")  # of a link the file: where that points to may not be ours
        try:
            os.link(file, there.uri)
        except (FileExistsError, FileNotFoundError):
            if not os.path.exists(there.uri):
                raise
        except OSError:  # a file system without hard links, another one, or too many of one file
            shutil.copy2(file, there.uri)


def _note(checkpoint: Place, place: Place) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (place / NOTE).write_text(json.dumps({"of": str(checkpoint), "last_used": now}, indent=1) + "\n")


def _clear(latest: Place, in_use: set[str]) -> None:
    base, now = latest.name.rpartition("-")[0], datetime.now(timezone.utc)
    used: dict[Place, datetime] = {}
    for place in latest.parent.folders():
        if place.name.rpartition("-")[0] != base or str(place) in in_use:
            continue
        try:
            used[place] = datetime.fromisoformat(json.loads((place / NOTE).read_text())["last_used"])
        except (*WRONG, ValueError, KeyError):
            newest = max((at for _, at in _marks(place).values()), default=0) / 1e9
            if now.timestamp() - newest > LEFT_DAYS * 86_400:
                place.delete()
    for place in sorted(used, key=lambda p: used[p], reverse=True)[max(0, NEWEST - len(in_use)) :]:
        if now - used[place] > timedelta(days=DAYS):
            (place / NOTE).delete()
            place.delete()
    if latest.is_local:
        for left in Path(latest.parent.uri).glob(f".{base}-*"):
            if now.timestamp() - left.stat().st_mtime > LEFT_DAYS * 86_400:
                shutil.rmtree(left, ignore_errors=True)
