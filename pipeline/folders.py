"""Whole folders to a place and from it, so that a reader sees all of one or none of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from pyarrow import fs

from pipeline.errors import UserError
from pipeline.object_store import in_words, split
from pipeline.storage import Place

COPY_BYTES = 16 << 20  # asked for at once when a whole folder is fetched


@contextmanager
def local_folder(where: str | Path | Place) -> Iterator[Path]:
    """The folder as a local path: itself if it is local, else a temporary copy removed afterwards."""
    place = Place.of(where)
    if place.is_local:
        yield Path(place.uri)
        return
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        root, options = split(place.uri)
        system, path = place.resolved()
        with in_words(place.uri):
            listing = system.get_file_info(fs.FileSelector(path, recursive=True))
        for name in (i.path.removeprefix(f"{path}/") for i in listing if i.type == fs.FileType.File):
            target = Path(temporary, name)
            if not target.resolve().is_relative_to(Path(temporary).resolve()):
                raise UserError(f"{root}/{name}: a name that leads out of its folder is not fetched")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Place(f"{root}/{name}{options}").open_input() as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_BYTES)
        yield Path(temporary)


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk itself; some shares can do that for files only."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def put_folder(local: Path, where: Place, last: str | None = None) -> None:
    """Copy a local folder to a place, replacing what is there.

    On local disks what was there is moved aside, and the copy, safe on the disk by then, takes its place; a kill
    between the two renames leaves the old one aside, and the next call puts it back before it begins.

    Args:
        local: the folder.
        where: the place.
        last: the file by which readers know that a folder is whole: on object stores, where there is no rename, it goes
            first of what was there, and comes last.
    """
    if where.is_local:
        target = Path(where.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.new"
        old = target.parent / f".{target.name}.old"
        if old.exists() and not target.exists():
            os.replace(old, target)
        for left in (staging, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(local, staging)
        # A temporary folder is closed to all others; whoever reads this may be another user.
        staging.chmod(target.parent.stat().st_mode & 0o777)
        for each in [*staging.rglob("*"), staging]:
            _to_disk(each)
        if target.exists():
            os.replace(target, old)
        os.replace(staging, target)
        _to_disk(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        return
    if last is not None:
        (where / last).delete()
    where.delete()
    files = sorted(f.relative_to(local).as_posix() for f in local.rglob("*") if f.is_file())
    for name in sorted(files, key=lambda f: f == last):
        # Not with ``fs.copy_files``: where a store refuses the file in the end, that says so to nobody (pyarrow 26).
        there = where / name
        system, path = there.resolved()
        with (
            in_words(there.uri),
            (local / name).open("rb") as source,
            system.open_output_stream(path, compression=None) as sink,
        ):
            shutil.copyfileobj(source, sink, COPY_BYTES)
