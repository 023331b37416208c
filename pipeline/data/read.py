"""Sources: which files a job reads, a look at each before any work starts, and their rows in chunks.

A row the parser cannot read does not end the job: it comes out with its line number and an ``error``.
Mistakes about the whole file (not there, empty, binary, a column that is not in it) are ``UserError``s
raised by ``check``.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.data import parsers
from pipeline.data.config import DataConfig
from pipeline.data.lines import BreaksOff, line_blocks
from pipeline.data.parse_csv import header, read_delimited
from pipeline.data.parse_json import json_elements, json_lines, read_json_array, read_json_lines
from pipeline.data.parse_parquet import parquet_schema, read_parquet
from pipeline.data.parse_txt import read_txt_files
from pipeline.data.unpack import Unpacked, open_bytes, open_text
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place, expand, identity

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tab", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One input file, or one folder of ``.txt`` files.

    Attributes:
        uri: path or URI.
        name: what row ids start with; unique among the sources of a job.
        split: 'train' (what is missing is split off it), 'validation' or 'test'.
        format: csv, tsv, tab, json, jsonl, parquet or txt.
        size: bytes, as they lie on the disk.
        files: the files of a txt source.
    """

    uri: str
    name: str
    split: str
    format: str
    size: int
    files: tuple[str, ...] = ()


def find(patterns: Sequence[tuple[str, str]], config: DataConfig) -> list[Source]:
    """The sources that patterns stand for, each looked at closely enough to refuse what cannot work.

    Args:
        patterns: pairs of a file, folder, glob or URI and the split it belongs to. A folder whose files are all
            ``.txt`` is one source per sub-folder, named like its class.
        config: the data section.

    Raises:
        UserError: a file is missing, empty, binary, in an unknown format, named twice, or lacks a column.
    """
    _check_encoding(config.encoding)
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for pattern, split in patterns:
        files = expand(pattern)
        folders: dict[str, list[str]] = {}
        for file in files:
            folders.setdefault(Place.of(file).parent.uri, []).append(file)
        texts = config.format in ("auto", "txt") and all(Place.of(f).name.lower().endswith(".txt") for f in files)
        here = Place.of(pattern).uri
        if texts and here not in folders and here not in files:  # class folders, not one file nor one folder
            new = {folder: (split, "txt", tuple(members)) for folder, members in folders.items()}
        else:
            new = {uri: (split, format_of(uri, config.format), ()) for uri in files}
        for uri in new:
            if uri in found:
                raise UserError(f"{uri} is named twice: it would be read twice")
        found |= new
    names = [Place.of(uri).name for uri in found]
    times = Counter(names)
    sources = []
    for name, (uri, (split, kind, members)) in zip(names, found.items(), strict=True):
        size = sum(Place.of(f).info().size for f in members or (uri,))
        sources.append(Source(uri, name if times[name] == 1 else uri, split, kind, size, members))
        check(sources[-1], config)
    return sources


def _check_encoding(name: str) -> None:
    try:
        known = codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise UserError(f"data.encoding: {name!r} is not a text encoding that Python knows")


def content(source: Source) -> str:
    """A short string that changes when the content of a source does."""
    if source.format != "txt":
        return identity(source.uri)
    digest = hashlib.blake2b(digest_size=16)
    for file in source.files:
        digest.update(f"{Place.of(file).name}|{identity(file)}\n".encode())
    return digest.hexdigest()


def format_of(uri: str, wanted: str) -> str:
    """The format of a file: as wanted, or by its name (what compresses it left away).

    Raises:
        UserError: the name tells nothing.
    """
    if wanted != "auto":
        return wanted
    name = Place.of(uri).name.lower()
    for suffix in parsers.COMPRESSIONS:
        name = name.removesuffix(suffix)
    suffix = "." + name.rsplit(".", 1)[-1] if "." in name else ""
    if suffix not in FORMATS:
        raise UserError(
            f"{uri}: cannot tell the format from the name; say --set data.format=csv (or tsv, tab, json, jsonl, "
            "parquet)"
        )
    return FORMATS[suffix]


def check(source: Source, config: DataConfig) -> list[str]:
    """Look at the head of a file and return its columns.

    Raises:
        UserError: the file is empty, binary, not what its name says, or lacks a configured column.
    """
    if source.size == 0:
        raise UserError(f"{source.uri} is empty")
    _check_encoding(config.encoding)
    if source.format == "txt":
        return []
    if source.format == "parquet":
        try:
            schema = parquet_schema(source.uri, config)
        except OSError as e:
            raise UserError(f"{source.uri} cannot be read: {_first_line_of(e)}") from e
        columns = list(schema.names)
        for field in schema:
            if field.name in parsers.wanted_columns(config) and pa.types.is_nested(field.type):
                raise UserError(f"{source.uri}: column '{field.name}' of type {field.type} cannot be read as text")
    else:
        columns = _text_columns(source, config)
    for column in parsers.wanted_columns(config):
        if columns.count(column) > 1:
            raise UserError(f"{source.uri} has {columns.count(column)} columns named '{column}': rename all but one")
        if column not in columns:
            shown = ", ".join(c.encode("utf-8", "backslashreplace").decode() for c in columns)
            flags = {config.label: "data.label (--label)", config.fill_from: "data.fill_from"}
            flag = "data.text (--text)" if column in config.text else flags[column]
            raise UserError(f"{source.uri} has no column '{column}'; its columns are: {shown}. Choose with {flag}")
    return columns


def _text_columns(source: Source, config: DataConfig) -> list[str]:
    try:
        with open_bytes(source.uri) as f:
            head = f.read(1 << 16)
            broken = f.raw.broken if isinstance(f.raw, Unpacked) else None
    except OSError as e:
        raise UserError(f"{source.uri} cannot be read: {_first_line_of(e)}") from e
    if broken and not head:
        kind = parsers.compression(source.uri)
        raise UserError(f"{source.uri} is not a {kind} file, or is damaged from its beginning: {broken}")
    if b"\x00" in head and not codecs.lookup(config.encoding).name.startswith(("utf-16", "utf-32")):
        what = "a Parquet file" if head[:4] == b"PAR1" else "binary, not text"
        raise UserError(f"{source.uri} is {what}: it was read as {source.format} (see data.format)")
    if not head.strip():
        raise UserError(f"{source.uri} holds only white space")
    try:
        if source.format in ("json", "jsonl"):
            return _json_columns(source, config)
        return header(source.uri, source.format, config)[0]
    except UnicodeError as e:
        raise UserError(f"{source.uri} cannot be read as {config.encoding} (data.encoding): {e}") from e
    except OSError as e:
        raise UserError(f"{source.uri} cannot be read: {_first_line_of(e)}") from e


def is_array(source: Source, config: DataConfig) -> bool:
    """Whether a JSON file is one array rather than an object per line."""
    if source.format not in ("json", "jsonl"):
        return False
    with open_text(source.uri, config.encoding) as stream:
        return stream.read(1 << 16).lstrip().startswith("[")


def _json_columns(source: Source, config: DataConfig) -> list[str]:
    names: dict[str, None] = {}
    with open_text(source.uri, config.encoding) as stream, contextlib.suppress(BreaksOff):
        if is_array(source, config):
            rows = json_elements(stream, config)
        else:
            rows = (row for block in line_blocks(stream) for row in json_lines(block, config))
        for seen, (_, row, _) in enumerate(rows):
            names.update(dict.fromkeys(row if isinstance(row, dict) else ()))
            if seen >= 100:
                break
    if not names:
        whole = f"; {_first_line(source, config)}" if source.format == "json" else ""
        raise UserError(f"{source.uri}: none of its first lines or elements is a JSON object{whole}")
    return list(names)


def _first_line(source: Source, config: DataConfig) -> str:
    with open_text(source.uri, config.encoding) as stream:
        return f"it begins with {json.dumps(stream.read(40), ensure_ascii=False)}"


def read(source: Source, config: DataConfig) -> Iterator[pa.Table]:
    """Read a source in chunks of about a megabyte.

    Yields:
        Tables with the schema ``parsers.CHUNK``: ``row`` is the 1-based line (csv, tsv, tab, JSON lines) or position;
        ``text`` the text columns joined by a space; ``error`` says why a row could not be read. A file that breaks
        off in the middle (a damaged archive) ends with such a row.

    Raises:
        WorkFailed: the file cannot be read any more.
        UserError: what concerns the whole file.
    """
    try:
        yield from _chunks(source, config)
    except BreaksOff as e:
        columns = [pa.nulls(1, pa.string())] * len(parsers.wanted_columns(config))
        yield parsers.table([e.row], columns, {0: str(e)}, config)
    except OSError as e:  # a disk or a network that failed: the rows are there, and must not be lost
        raise WorkFailed(f"{source.uri} cannot be read: {_first_line_of(e)}") from e
    except UnicodeError as e:
        raise UserError(f"{source.uri} is not in the encoding it is read as (data.encoding): {e}") from e


def _first_line_of(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _chunks(source: Source, config: DataConfig) -> Iterator[pa.Table]:
    match source.format:
        case "parquet":
            return read_parquet(source.uri, config)
        case "txt":
            return read_txt_files(Place.of(source.uri).name, source.files, config)
        case "json" | "jsonl":
            array = is_array(source, config)
            return (read_json_array if array else read_json_lines)(source.uri, config)
        case _:
            return read_delimited(source.uri, source.format, config)
