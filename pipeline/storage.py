"""One way to name a place: a local path, ``s3://``, ``gs://`` or ``hf://``, through pyarrow's file systems."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.errors import UserError

REMOTE = ("s3://", "gs://", "gcs://", "hf://")


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names an object store rather than a local path."""
    return uri.startswith(REMOTE)


@dataclass(frozen=True)
class Place:
    """A folder or file somewhere. ``Place.of("runs") / "default"``; ``str()`` gives back the path or URI."""

    uri: str

    @classmethod
    def of(cls, where: str | Path | Place) -> Place:
        """A place from a path (made absolute) or URI."""
        if isinstance(where, Place):
            return where
        text = os.fspath(where)
        if is_remote(text):
            return cls(text.rstrip("/"))
        if "://" in text:
            raise UserError(f"{text}: only local paths and {', '.join(REMOTE)} are known places")
        return cls(str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine (or a shared mount)."""
        return not is_remote(self.uri)

    def resolved(self) -> tuple[fs.FileSystem, str]:
        """The pyarrow file system and the path inside it.

        Raises:
            UserError: the store cannot be reached or the URI is malformed.
        """
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        try:
            if self.uri.startswith("hf://"):
                from huggingface_hub import HfFileSystem

                return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), self.uri.removeprefix("hf://")
            return fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError) as e:
            raise UserError(f"{self.uri}: cannot reach this storage: {e}") from e

    def info(self) -> fs.FileInfo:
        """pyarrow's file information (type, size in bytes, mtime)."""
        system, path = self.resolved()
        return system.get_file_info(path)

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return self.info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self.info().type == fs.FileType.File

    def mkdir(self) -> Place:
        """Make the folder and its parents."""
        system, path = self.resolved()
        system.create_dir(path, recursive=True)
        return self

    def open_input(self, compression: str | None = None) -> Any:
        """A readable binary stream."""
        system, path = self.resolved()
        return system.open_input_stream(path, compression=compression)

    def open_random(self) -> Any:
        """A readable, seekable binary file."""
        system, path = self.resolved()
        return system.open_input_file(path)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.open_input() as f:
            return f.read()

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes, durable: bool = True) -> None:
        """Write the whole file at once: a reader sees the old content or the new, never a part.

        Args:
            data: the content.
            durable: whether it must survive a crash of the machine (slower), and not just of this process.
        """
        if self.is_local:
            path = Path(self.uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(data)
                    if durable:
                        f.flush()
                        os.fsync(f.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
        system, inside = self.resolved()
        with system.open_output_stream(inside) as f:  # one PUT: object stores show it only when complete
            f.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file as UTF-8, at once."""
        self.write_bytes(text.encode("utf-8"))

    def files(self, suffix: str = "") -> list[Place]:
        """The files directly in this folder whose name ends in ``suffix``, sorted by name."""
        system, path = self.resolved()
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = sorted(i.base_name for i in found if i.type == fs.FileType.File and i.base_name.endswith(suffix))
        return [self / n for n in names if not n.startswith(".")]

    def sweep(self) -> None:
        """Remove what a killed ``write_bytes`` left below this folder."""
        if self.is_local:
            for left in Path(self.uri).rglob(".*.*"):
                if left.is_file():
                    left.unlink()

    def delete(self) -> None:
        """Remove the file or folder; nothing happens where there is none."""
        system, path = self.resolved()
        kind = system.get_file_info(path).type
        if kind == fs.FileType.File:
            system.delete_file(path)
        elif kind == fs.FileType.Directory:
            system.delete_dir(path)


def expand(pattern: str) -> list[str]:
    """The files a path, folder, glob or URI stands for, sorted.

    Raises:
        UserError: nothing matches.
    """
    magic = any(c in pattern for c in "*?[")
    if is_remote(pattern):
        system, path = Place.of(pattern).resolved()
        scheme = pattern[: pattern.index("://") + 3]
        root = path.split("*")[0].split("?")[0].split("[")[0].rsplit("/", 1)[0] if magic else path
        info = system.get_file_info(root)
        if info.type == fs.FileType.File:
            return [pattern]
        listing = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        found = [i.path for i in listing if i.type == fs.FileType.File and (not magic or fnmatch.fnmatch(i.path, path))]
        names = sorted(scheme + p for p in found)
    elif magic and not os.path.exists(pattern):
        names = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    elif os.path.isdir(pattern):
        inside = ((p, p.relative_to(pattern)) for p in Path(pattern).rglob("*") if p.is_file())
        names = sorted(str(p) for p, relative in inside if not any(part.startswith(".") for part in relative.parts))
    else:
        names = [pattern] if os.path.isfile(pattern) else []
    if not names:
        raise UserError(f"no such file: {pattern}")
    return [str(Place.of(n)) for n in names]


def identity(uri: str) -> str:
    """A short string that changes when the file's content does.

    Local files are hashed (BLAKE2b); remote ones go by size and modification time.
    """
    place = Place.of(uri)
    if not place.is_local:
        info = place.info()
        return f"{info.size}-{info.mtime_ns}"
    digest = hashlib.blake2b(digest_size=16)
    with open(place.uri, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def local_folder(where: str | Path | Place) -> Iterator[Path]:
    """The folder as a local path: itself if it is local, else a temporary copy removed afterwards."""
    place = Place.of(where)
    if place.is_local:
        yield Path(place.uri)
        return
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        system, path = place.resolved()
        fs.copy_files(path, temporary, source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
        yield Path(temporary)


def put_folder(local: Path, where: Place) -> None:
    """Copy a local folder to a place, replacing what is there. On local disks the swap is one rename."""
    if where.is_local:
        target = Path(where.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(local, staging)
        old = target.parent / f".{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(staging, target)
        shutil.rmtree(old, ignore_errors=True)
        return
    where.delete()
    system, path = where.resolved()
    fs.copy_files(str(local), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)
