"""Opening a source: its bytes decompressed up to where they are damaged, its characters without a byte order mark.

A disk or a network that fails and an archive that is damaged raise the same ``OSError`` in pyarrow. Here they are told
apart by where it happens: reading the raw bytes is watched, and what goes wrong anywhere else is damage.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

import pyarrow as pa

from pipeline.data.parsers import compression
from pipeline.storage import Place

CHUNK_BYTES = 1 << 17
# pyarrow decompresses up to so many raw bytes at once, and what came of them is lost if there is damage among them.
_STEP_BYTES = 1 << 16


class Watched(io.RawIOBase):
    """A file read by pyarrow through Python, so that ``failed`` says whether reading it was what failed.

    Args:
        file: opened by ``Place``.
        fine_from: from this byte on, it is given out one byte at a time.
    """

    def __init__(self, file: Any, fine_from: int | None = None) -> None:
        self._file, self._fine_from = file, fine_from
        self.position = 0
        self.failed: OSError | None = None

    def read(self, size: int | None = -1) -> bytes:
        """As of a file."""
        if self._fine_from is not None and size and size > 0:
            size = min(size, max(1, self._fine_from - self.position))
        try:
            data: bytes = self._file.read(None if size is None or size < 0 else size)
        except OSError as e:
            self.failed = e
            raise
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        try:
            self._file.seek(offset, whence)
            self.position = self._file.tell()
        except OSError as e:
            self.failed = e
            raise
        return self.position

    def tell(self) -> int:
        """As of a file."""
        return self.position

    def readable(self) -> bool:
        """As of a file."""
        return True

    def seekable(self) -> bool:
        """As of a file."""
        return bool(self._file.seekable())

    def close(self) -> None:
        """As of a file."""
        if not self.closed:
            self._file.close()
        super().close()


class Unpacked(io.RawIOBase):
    """The content of a compressed file, up to where it is damaged; then ``broken`` says why it ends.

    All that can be decompressed before the damage is given out: when there is some, the file is read a second time,
    byte by byte where it gets close.
    """

    def __init__(self, place: Place, kind: str) -> None:
        self._place, self._kind = place, kind
        self._given = 0
        self._fine = False
        self.broken: str | None = None
        self._open(None)

    def _open(self, fine_from: int | None) -> None:
        self._raw = Watched(self._place.open_input(), fine_from)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), self._kind)

    def readable(self) -> bool:
        """As of a file."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of a raw file.

        Raises:
            OSError: the file cannot be read; not that it is damaged.
        """
        view = memoryview(buffer)
        filled, step = 0, 1 if self._fine else len(view)
        try:
            while not self.broken and filled < len(view):
                data = self._stream.read(min(step, len(view) - filled))
                if not data:
                    break
                view[filled : filled + len(data)] = data
                filled += len(data)
        except OSError as e:
            if self._raw.failed:
                raise self._raw.failed from e
            if not self._fine:
                self._again()
                return self.readinto(buffer)
            self.broken = str(e).splitlines()[0] if str(e) else "it is damaged"
        self._given += filled
        return filled

    def _again(self) -> None:
        """Go back to what was given out last, with small steps from there."""
        self._fine = True
        near = max(0, self._raw.position - 2 * _STEP_BYTES)
        self._raw.close()
        self._open(near)
        skip = self._given
        while skip:
            skip -= len(self._stream.read(min(skip, CHUNK_BYTES)))

    def close(self) -> None:
        """As of a file."""
        if not self.closed:
            self._raw.close()
        super().close()


class TextFile(io.TextIOWrapper):
    """The characters of a source; ``broken`` says why they end early, None if they do not."""

    @property
    def broken(self) -> str | None:
        """Why the archive breaks off; known once its end is reached."""
        raw = getattr(self.buffer, "raw", None)
        return raw.broken if isinstance(raw, Unpacked) else None


def open_bytes(uri: str) -> io.BufferedReader:
    """The bytes of a file, decompressed."""
    place, kind = Place.of(uri), compression(uri)
    raw: Any = Unpacked(place, kind) if kind else place.open_input()
    return io.BufferedReader(raw, CHUNK_BYTES)


def open_text(uri: str, encoding: str) -> TextFile:
    """The characters of a file, decompressed. Each undecodable piece is one lone surrogate, see ``undecodable``."""
    stream = open_bytes(uri)
    mark = _byte_order_mark(encoding)
    if mark and stream.peek(len(mark)).startswith(mark):
        stream.read(len(mark))
    return TextFile(stream, encoding=encoding, errors=_MARK, newline="")


def _byte_order_mark(encoding: str) -> bytes:
    """The mark that this encoding does not take away by itself."""
    if codecs.lookup(encoding).name in ("utf-8-sig", "utf-16", "utf-32"):
        return b""
    try:
        return "\ufeff".encode(encoding)
    except UnicodeError:
        return b""


def undecodable(text: str, encoding: str) -> str | None:
    """The error of a text that carries undecodable bytes (lone surrogates), or None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        bad = ord(text[e.start])
        return f"byte 0x{bad - 0xDC00:02x} is not {encoding}" if 0xDC00 <= bad <= 0xDCFF else "lone surrogate"
    return None


_MARK = "broadsheet-mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Undecodable bytes become one lone surrogate, so that the row that holds them can be named.

    ``surrogateescape`` does so too, but gives up on a byte below 0x80, as UTF-16 and UTF-32 can hold.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_MARK, _mark)
