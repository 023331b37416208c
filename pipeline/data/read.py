"""Readers: a file of any supported format becomes chunks of ``(row, text, label, error)``.

A row the parser cannot read does not end the job: it comes out with its line number and an ``error``.
Mistakes about the whole file (not there, empty, binary, a column that is not in it) are ``UserError``s
raised by ``check`` before any work starts.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DataConfig
from pipeline.data.lines import Line, Record, delimited, lines
from pipeline.errors import UserError
from pipeline.storage import Place

CHUNK_ROWS = 4096
CHUNK_CHARS = 4 << 20

_Row = tuple[int, str | None, str | None, str | None]

CHUNK = pa.schema([("row", pa.int64()), ("text", pa.string()), ("label", pa.string()), ("error", pa.string())])

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tab", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
# Orange's .tab files carry two more header lines: types, then roles.
_ORANGE_TYPES = {"d", "c", "s", "t", "string", "discrete", "continuous", "time", "class", "meta", ""}


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        uri: path or URI.
        name: what row ids start with; unique among the sources of a job.
        split: 'train' (what is missing is split off it), 'validation' or 'test'.
        format: csv, tsv, tab, jsonl or parquet.
        size: bytes.
    """

    uri: str
    name: str
    split: str
    format: str
    size: int


def format_of(uri: str, wanted: str) -> str:
    """The format of a file: as wanted, or by its name.

    Raises:
        UserError: the name tells nothing.
    """
    if wanted != "auto":
        return wanted
    suffix = "." + uri.rsplit(".", 1)[-1].lower() if "." in uri.rsplit("/", 1)[-1] else ""
    if suffix not in FORMATS:
        raise UserError(
            f"{uri}: cannot tell the format from the name; say --set data.format=csv (or tsv, tab, jsonl, parquet)"
        )
    return FORMATS[suffix]


def check(source: Source, config: DataConfig) -> list[str]:
    """Look at the head of a file and return its columns.

    Raises:
        UserError: the file is empty, binary, not what its name says, or lacks a configured column.
    """
    if source.size == 0:
        raise UserError(f"{source.uri} is empty")
    if source.format == "parquet":
        columns = _parquet_columns(source, (*config.text, config.label))
    else:
        with Place.of(source.uri).open_input() as f:
            head = f.read(1 << 16)
        if b"\x00" in head and not config.encoding.lower().startswith("utf-16"):
            what = "a Parquet file" if head[:4] == b"PAR1" else "binary, not text"
            raise UserError(f"{source.uri} is {what}: it was read as {source.format} (see data.format)")
        if not head.strip():
            raise UserError(f"{source.uri} holds only white space")
        try:
            columns = _jsonl_columns(source, config) if source.format == "jsonl" else _header(source, config)[0]
        except LookupError as e:
            raise UserError(f"data.encoding: {config.encoding!r} is not an encoding Python knows") from e
        except ValueError as e:  # UnicodeError among them
            raise UserError(f"{source.uri} cannot be read as {config.encoding} (data.encoding): {e}") from e
    for column in (*config.text, config.label):
        if columns.count(column) > 1:
            raise UserError(f"{source.uri} has {columns.count(column)} columns named '{column}': rename all but one")
        if column not in columns:
            shown = ", ".join(c.encode("utf-8", "backslashreplace").decode() for c in columns)
            flag = "data.label (--label)" if column == config.label else "data.text (--text)"
            raise UserError(f"{source.uri} has no column '{column}'; its columns are: {shown}. Choose with {flag}")
    return columns


def read(source: Source, config: DataConfig) -> Iterator[pa.Table]:
    """Read a file in chunks.

    Yields:
        Tables with the schema ``CHUNK``: ``row`` is the 1-based line (text formats) or row (Parquet); ``text``
        the text columns joined by a space; ``error`` says why a row could not be read.
    """
    if source.format == "parquet":
        yield from _read_parquet(source, config)
        return
    rows = _read_jsonl(source, config) if source.format == "jsonl" else _read_delimited(source, config)
    chunk: list[tuple[int, str | None, str | None, str | None]] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        chars += len(row[1] or "")
        if len(chunk) >= CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield _table(chunk)
            chunk, chars = [], 0
    if chunk:
        yield _table(chunk)


def _table(rows: Sequence[tuple[int, str | None, str | None, str | None]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, CHUNK, strict=True)], schema=CHUNK)


def _join(values: Sequence[Any]) -> str | None:
    parts = [v for v in values if v is not None and v.strip()]
    return " ".join(parts) if parts else None


def _text_stream(source: Source, config: DataConfig) -> Any:
    encoding = "utf-8-sig" if config.encoding.lower() in ("utf-8", "utf8") else config.encoding
    return io.TextIOWrapper(Place.of(source.uri).open_input(), encoding=encoding, errors=_MARK, newline="")


_MARK = "broadsheet-mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Undecodable bytes become one lone surrogate, so that the row that holds them can be named.

    ``surrogateescape`` does so too, but gives up on a byte below 0x80, as UTF-16 and UTF-32 can hold.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_MARK, _mark)


def _undecodable(text: str, encoding: str) -> str | None:
    """The error of a text that carries undecodable bytes (lone surrogates), or None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        bad = ord(text[e.start])
        return f"byte 0x{bad - 0xDC00:02x} is not {encoding}" if 0xDC00 <= bad <= 0xDCFF else "lone surrogate"
    return None


# --- csv, tsv, tab ----------------------------------------------------------------------------------------


def _records(source: Source, config: DataConfig) -> Iterator[Record]:
    with _text_stream(source, config) as stream:
        if source.format == "csv":
            yield from delimited(lines(stream), delimiter=",", quoted=True)
        else:  # tab-separated files have no quoting: a quotation mark is a character like any other
            yield from delimited(lines(stream), delimiter="\t", quoted=False)


def _header(source: Source, config: DataConfig) -> tuple[list[str], int]:
    """Column names and the number of records to skip before the first row."""
    head: list[list[str]] = []
    for record in _records(source, config):
        head.append(record.fields or [])
        if len(head) == 3:
            break
    if config.columns:
        if head and len(head[0]) != len(config.columns):
            raise UserError(
                f"{source.uri}: data.columns names {len(config.columns)} columns, "
                f"its first line has {len(head[0])} fields"
            )
        return list(config.columns), 0
    columns = [c.strip() for c in head[0]] if head else []
    # Only header lines hold nothing but type words; a label "d" would still need the text to be "string".
    orange = source.format == "tab" and len(head) > 1 and all(c.strip() in _ORANGE_TYPES for c in head[1])
    return columns, 3 if orange else 1


def _read_delimited(source: Source, config: DataConfig) -> Iterator[tuple[int, str | None, str | None, str | None]]:
    columns, skip = _header(source, config)
    text_at = [columns.index(c) for c in config.text]
    label_at = columns.index(config.label)
    for i, record in enumerate(_records(source, config)):
        if i < skip:
            continue
        fields = record.fields
        if fields is None:
            yield record.line, None, None, record.error
        elif len(fields) != len(columns):
            yield record.line, None, None, f"{len(fields)} fields where the header has {len(columns)}"
        else:
            error = next((e for f in fields if (e := _undecodable(f, config.encoding))), None)
            if error:
                yield record.line, None, None, error
            else:
                yield record.line, _join([fields[k] for k in text_at]), fields[label_at], None


# --- json lines -------------------------------------------------------------------------------------------


def _jsonl_columns(source: Source, config: DataConfig) -> list[str]:
    names: dict[str, None] = {}
    with _text_stream(source, config) as stream:
        for seen, line in enumerate(lines(stream)):
            if seen == 0 and line.text.lstrip().startswith("["):
                raise UserError(f"{source.uri} is a JSON array: write one object per line (JSON lines)")
            row, _ = _object(line, config)
            names.update(dict.fromkeys(row or ()))
            if seen >= 100:
                break
    if not names:
        raise UserError(f"{source.uri}: none of its first lines is a JSON object")
    return list(names)


def _object(line: Line, config: DataConfig) -> tuple[dict[str, Any] | None, str | None]:
    if line.error or (error := _undecodable(line.text, config.encoding)):
        return None, line.error or error
    try:
        row = json.loads(line.text)
    except (json.JSONDecodeError, RecursionError) as e:
        return None, f"not JSON: {e.msg}" if isinstance(e, json.JSONDecodeError) else "not JSON: nested too deep"
    except ValueError as e:
        return None, f"not JSON: {e}"
    return (row, None) if isinstance(row, dict) else (None, "not a JSON object")


def _read_jsonl(source: Source, config: DataConfig) -> Iterator[tuple[int, str | None, str | None, str | None]]:
    with _text_stream(source, config) as stream:
        for line in lines(stream):
            if not line.text.strip() and not line.error:
                continue
            row, error = _object(line, config)
            if row is None:
                yield line.number, None, None, error
                continue
            values = [row.get(c) for c in (*config.text, config.label)]
            if any(isinstance(v, (dict, list)) for v in values):
                yield line.number, None, None, "text or label is not a plain value"
                continue
            strings = [None if v is None else _plain(v) for v in values]
            if any(v is not None and _undecodable(v, "text") for v in strings):
                yield line.number, None, None, "lone surrogate in a string"
                continue
            yield line.number, _join(strings[:-1]), strings[-1], None


def _plain(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


# --- parquet ----------------------------------------------------------------------------------------------


def _parquet_columns(source: Source, wanted: Sequence[str]) -> list[str]:
    try:
        with Place.of(source.uri).open_random() as f:
            schema = pq.ParquetFile(f).schema_arrow
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"{source.uri} is not a Parquet file: {str(e).splitlines()[0]}") from e
    for field in schema:
        if field.name in wanted and pa.types.is_nested(field.type):
            raise UserError(f"{source.uri}: column '{field.name}' of type {field.type} cannot be read as text")
    return list(schema.names)


def _read_parquet(source: Source, config: DataConfig) -> Iterator[pa.Table]:
    wanted = [*config.text, config.label]
    first = 1
    with Place.of(source.uri).open_random() as f:
        for batch in pq.ParquetFile(f).iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(wanted))):
            columns = [_strings(batch.column(c), c, source) for c in wanted]
            errors: list[str | None] = [None] * batch.num_rows
            for _, bad in columns:
                for at, error in bad.items():
                    errors[at] = error
            texts = [_join(values) for values in zip(*(values for values, _ in columns[:-1]), strict=True)]
            yield pa.table(
                [
                    pa.array(range(first, first + batch.num_rows), pa.int64()),
                    pa.array([None if e else t for t, e in zip(texts, errors, strict=True)], pa.string()),
                    pa.array([None if e else v for v, e in zip(columns[-1][0], errors, strict=True)], pa.string()),
                    pa.array(errors, pa.string()),
                ],
                schema=CHUNK,
            )
            first += batch.num_rows


def _strings(column: pa.Array, name: str, source: Source) -> tuple[list[str | None], dict[int, str]]:
    """The values of a column as strings, and the error of each value that is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):  # integer labels that pandas widened because some were missing
        return [None if v is None or v != v else _plain(v) for v in column.to_pylist()], {}
    try:
        strings = column.cast(pa.string())
        strings.validate(full=True)  # a writer can put any bytes into a string column
        return strings.to_pylist(), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        if not (pa.types.is_binary(column.type) or pa.types.is_string(column.type) or _is_large(column.type)):
            raise UserError(f"{source.uri}: column '{name}' of type {column.type} cannot be read as text") from e
    values: list[str | None] = []
    bad: dict[int, str] = {}
    for at, raw in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            values.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as e:
            values.append(None)
            bad[at] = f"byte 0x{raw[e.start]:02x} of column '{name}' is not utf-8"
    return values, bad


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind) or pa.types.is_large_string(kind))
