"""One way to name a place: a local path, ``s3://``, ``gs://`` or ``hf://``, through pyarrow's file systems.

Object stores fail in one sentence, see ``object_store``.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyarrow import fs

from pipeline.errors import UserError
from pipeline.object_store import REMOTE, REMOTE_BUFFER, Steady, in_words, is_remote, matches, s3, split

# Hidden, or what Spark, Delta, Hive and ``broadsheet predict`` write beside their data.
_BESIDE = re.compile(
    r"\.|lost\+found$|_(SUCCESS|plan\.json$|metadata$|common_metadata$|committed_|started_|temporary$|delta_log$)"
)
_ROWS = re.compile(r"\.(csv|tsv|tab|jsonl?|ndjson|parquet|txt)(\.(gz|zst|bz2))?$", re.IGNORECASE)
GS_SECONDS = 30


@dataclass(frozen=True)
class Place:
    """A folder or file somewhere. ``Place.of("runs") / "default"``; ``str()`` gives back the path or URI.

    An S3 URI may end in options, which all places below it keep: ``s3://news/raw?endpoint_override=http://host:9000``,
    ``region=``, ``scheme=``. Else AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL name the endpoint. Credentials come from
    where AWS' own tools look for them, and each node of a cluster looks for itself. Keys are taken as they are
    written, without percent signs for special characters.
    """

    uri: str

    @classmethod
    def of(cls, where: str | Path | Place) -> Place:
        """A place from a path (made absolute) or URI."""
        if isinstance(where, Place):
            return where
        text = os.fspath(where)
        if is_remote(text):
            path, options = split(text)
            if not path.split("://", 1)[1].strip("/"):
                raise UserError(f"{text} names no bucket: write {path.split('://')[0]}://bucket/folder")
            return cls(path.rstrip("/") + options)
        if "://" in text:
            raise UserError(f"{text}: only local paths and {', '.join(REMOTE)} are known places")
        try:
            return cls(str(Path(text).expanduser().absolute()))
        except RuntimeError as e:
            raise UserError(f"{text}: nobody is called that on this machine") from e

    def __truediv__(self, name: str) -> Place:
        path, options = split(self.uri)
        return Place(f"{path}/{name}{options}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return split(self.uri)[0].rsplit("/", 1)[-1]

    @property
    def parent(self) -> Place:
        """The folder it lies in."""
        path, options = split(self.uri)
        return Place(path.rsplit("/", 1)[0] + options)

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
        with in_words(self.uri, contact=False):
            path, options = split(self.uri)
            scheme, inside = path.split("://", 1)
            if scheme == "hf":
                from huggingface_hub import HfFileSystem

                return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), inside
            if scheme == "s3":
                aws = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
                return s3(inside.split("/", 1)[0], options, aws), inside
            # Google's client tries a request for 15 minutes, without a word, unless it is told otherwise.
            wait = f"{'&' if options else '?'}retry_limit_seconds={GS_SECONDS}"
            return fs.FileSystem.from_uri(f"{scheme}://{quote(inside)}{options}{wait}")

    def info(self) -> fs.FileInfo:
        """pyarrow's file information (type, size in bytes, mtime)."""
        system, path = self.resolved()
        with in_words(self.uri):
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
        with in_words(self.uri):
            system.create_dir(path, recursive=True)
        return self

    def open_input(self) -> Any:
        """A readable binary stream."""
        return self.open_random() if self.is_local else io.BufferedReader(self.open_random(), REMOTE_BUFFER)

    def open_random(self) -> Any:
        """A readable, seekable binary file; remote ones ask again when a connection breaks."""
        system, path = self.resolved()
        with in_words(self.uri):
            file = system.open_input_file(path)
            return file if self.is_local else Steady(self.uri, file)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.open_random() as f:
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
        # One PUT, or parts that count for nothing before the last request: object stores show only what is complete.
        with in_words(self.uri), system.open_output_stream(inside, compression=None) as f:  # else by the name
            f.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file as UTF-8, at once."""
        self.write_bytes(text.encode("utf-8"))

    def files(self, suffix: str = "") -> list[Place]:
        """The files directly in this folder whose name ends in ``suffix``, sorted by name."""
        system, path = self.resolved()
        with in_words(self.uri):
            found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = sorted(i.base_name for i in found if i.type == fs.FileType.File and i.base_name.endswith(suffix))
        return [self / n for n in names if not n.startswith(".")]

    def folders(self) -> list[Place]:
        """The folders directly in this one, sorted by name."""
        system, path = self.resolved()
        with in_words(self.uri):
            found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = sorted(i.base_name for i in found if i.type == fs.FileType.Directory)
        return [self / n for n in names if not n.startswith(".")]

    def is_vacant(self) -> bool:
        """Whether there is nothing here, hidden files and folders included."""
        if self.is_local:
            path = Path(self.uri)
            return not path.exists() or (path.is_dir() and not any(path.iterdir()))
        return not self.exists() or not (self.is_file() or self.files() or self.folders())

    def sweep(self, pattern: str = "**/.*.*") -> None:
        """Remove what a killed ``write_bytes`` left in this folder, which must be ours.

        Args:
            pattern: of the files, relative to the folder.
        """
        if self.is_local:
            for left in Path(self.uri).glob(pattern):
                if left.is_file():
                    left.unlink()

    def delete(self) -> None:
        """Remove the file or folder; nothing happens where there is none."""
        kind = self.info().type
        system, path = self.resolved()
        # Listings of a store can still name a folder whose last file is gone.
        with in_words(self.uri), suppress(FileNotFoundError):
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
    if not is_remote(pattern):
        pattern = os.path.expanduser(pattern)
    if is_remote(pattern):
        names = _expand_remote(Place.of(pattern))
    elif magic and not os.path.exists(pattern):
        names = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    elif os.path.isdir(pattern):
        names = sorted(_below(pattern))
    else:
        names = [pattern] if os.path.isfile(pattern) else []
    if not names:
        raise UserError(f"no such file: {pattern}")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{ascii(name)[1:-1]}: the name is not UTF-8: rename the file") from None
    return [str(Place.of(n)) for n in names]


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): its rows would be missing") from error


def _below(folder: str) -> Iterator[str]:
    """The files in a folder and its sub-folders, those that are links too, each folder once; not hidden ones, nor what
    Spark, Delta and ``predict`` write beside their data."""
    root = os.path.realpath(folder)
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(path)
        if real in seen or root.startswith(f"{real}/"):  # a link to what it lies in is no way in
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _BESIDE.match(name))
        for file in (os.path.join(path, name) for name in files if not _BESIDE.match(name)):
            if os.path.islink(file) and not os.path.exists(file) and _ROWS.search(file):
                raise UserError(f"{file} is a link that leads nowhere: its rows would be missing. Mend or remove it")
            if os.path.isfile(file):
                yield file


def _expand_remote(place: Place) -> list[str]:
    if place.is_file():  # a name may hold the characters of a glob
        return [place.uri]
    uri, options = split(place.uri)
    scheme, pattern = uri.split("://", 1)
    magic = re.search(r"[*?\[]", pattern)
    root = pattern[: magic.start()].rsplit("/", 1)[0] if magic else pattern
    if magic and "/" not in pattern[: magic.start()]:
        raise UserError(f"{place}: name the bucket itself, and use wildcards behind it only")
    folder = Place(f"{scheme}://{root}{options}")
    system, _ = folder.resolved()
    with in_words(place.uri):
        listing = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        if not listing and scheme != "hf" and system.get_file_info(root.split("/", 1)[0]).type == fs.FileType.NotFound:
            raise OSError(f"Bucket '{root}' not found")
    found = [i.path for i in listing if i.type == fs.FileType.File]
    if magic:
        wanted = pattern.split("/")
        found = [path for path in found if matches(path.split("/"), wanted)]
    else:
        found = [p for p in found if not any(map(_BESIDE.match, p.removeprefix(root).strip("/").split("/")))]
    return sorted(f"{scheme}://{path}{options}" for path in found)


def identity(uri: str) -> str:
    """A short string that changes when the file's content does.

    Local files are hashed (BLAKE2b), as are remote ones of which nothing else is known; else the store knows a tag of
    the content, or size and modification time stand for it.
    """
    place = Place.of(uri)
    if not place.is_local:
        system, path = place.resolved()
        with in_words(uri), system.open_input_stream(path) as stream:
            told = stream.metadata() or {}
        if tag := told.get("ETag"):
            return f"{place.info().size}-{tag.decode()}"
        info = place.info()
        if info.mtime_ns is not None:
            return f"{info.size}-{info.mtime_ns}"
    if place.uri.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        told = HfFileSystem().info(place.resolved()[1])
        if tag := (told.get("lfs") or {}).get("sha256") or told.get("blob_id"):
            return f"{told['size']}-{tag}"
    digest = hashlib.blake2b(digest_size=16)
    with place.open_input() as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
