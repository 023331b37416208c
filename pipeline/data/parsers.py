"""One parser per format: an open source becomes tables of ``CHUNK``, every row with its number.

A row that cannot be read comes out with an ``error``. A blank text or label stays as it was read: what is missing
is decided in one place, ``steps``.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.config import DataConfig
from pipeline.data.lines import Lines, Records, delimited, line_blocks, too_long_message
from pipeline.errors import UserError
from pipeline.storage import Place

PARQUET_ROWS = 4096
MAX_OBJECT_CHARS = 16 << 20

# 'other' is the column of data.fill_from, null where there is none.
CHUNK = pa.schema(
    [("row", pa.int64()), ("text", pa.string()), ("label", pa.string()), ("error", pa.string()), ("other", pa.string())]
)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# Orange's .tab files carry two more header lines: types, then roles.
_ORANGE_TYPES = {"d", "c", "s", "t", "string", "discrete", "continuous", "time", "class", "meta", ""}


def wanted_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns that are read: text columns in order, the label, and the one to fill from."""
    return (*config.text, config.label, *([config.fill_from] if config.fill_from else []))


def compression(uri: str) -> str | None:
    """How a file is compressed, by its name."""
    return next((kind for suffix, kind in COMPRESSIONS.items() if uri.lower().endswith(suffix)), None)


def table(
    numbers: Sequence[int],
    columns: Sequence[pa.Array],
    errors: dict[int, str],
    config: DataConfig,
) -> pa.Table:
    """A chunk from whole columns.

    Args:
        numbers: the row numbers.
        columns: one string array per name of ``wanted_columns``.
        errors: index -> why that row could not be read; its other values are dropped.
        config: the data section.
    """
    n = len(numbers)
    text = join(columns[: len(config.text)])
    label = columns[len(config.text)]
    other = columns[-1] if config.fill_from else pa.nulls(n, pa.string())
    error = pa.array([errors.get(i) for i in range(n)], pa.string()) if errors else pa.nulls(n, pa.string())
    if errors:
        bad = pc.is_valid(error)
        text, label, other = (pc.if_else(bad, pa.scalar(None, pa.string()), c) for c in (text, label, other))
    return pa.table([pa.array(numbers, pa.int64()), text, label, error, other], schema=CHUNK)


def join(columns: Sequence[pa.Array]) -> pa.Array:
    """Text columns joined by a space; blank ones are skipped."""
    if len(columns) == 1:
        return columns[0]
    rows = zip(*(c.to_pylist() for c in columns), strict=True)
    return pa.array([" ".join(v for v in row if v and not v.isspace()) or None for row in rows], pa.string())


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


def text_stream(uri: str, config: DataConfig) -> io.TextIOWrapper:
    """The characters of a file, decompressed."""
    encoding = "utf-8-sig" if codecs.lookup(config.encoding).name == "utf-8" else config.encoding
    return io.TextIOWrapper(Place.of(uri).open_input(compression(uri)), encoding=encoding, errors=_MARK, newline="")


# --- csv, tsv, tab ----------------------------------------------------------------------------------------


def records(uri: str, format: str, config: DataConfig) -> Iterator[Records]:
    """The records of a delimited file, header included."""
    with text_stream(uri, config) as stream:
        # Tab-separated files have no quoting: a quotation mark is a character like any other.
        delimiter, quoted = (",", True) if format == "csv" else ("\t", False)
        yield from delimited(line_blocks(stream), delimiter, quoted)


def header(uri: str, format: str, config: DataConfig) -> tuple[list[str], int]:
    """Column names, and the number of records to skip before the first row."""
    head: list[list[str]] = []
    for block in records(uri, format, config):
        bad: dict[int, list[str]] = {number: [] for number, _ in block.bad}
        rows = dict(zip(block.numbers, block.rows, strict=True)) | bad
        head += [rows[number] for number in sorted(rows)]
        if len(head) >= 3:
            break
    if config.columns:
        if head and len(head[0]) != len(config.columns):
            raise UserError(
                f"{uri}: data.columns names {len(config.columns)} columns, its first line has {len(head[0])} fields"
            )
        return list(config.columns), 0
    columns = [c.strip() for c in head[0]] if head else []
    # Only header lines hold nothing but type words; a label "d" would still need the text to be "string".
    orange = format == "tab" and len(head) > 1 and any(c.strip() for c in head[1])
    orange = orange and all(c.strip() in _ORANGE_TYPES for c in head[1])
    return columns, 3 if orange else 1


def read_delimited(uri: str, format: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of csv, tsv and tab files; the row number is that of the record's first line."""
    columns, skip = header(uri, format, config)
    at = [columns.index(c) for c in wanted_columns(config)]
    for block in records(uri, format, config):
        rows, numbers, errors = block.rows, list(block.numbers), dict(block.bad)
        if errors:
            order = sorted([*zip(numbers, rows, strict=True), *((n, []) for n in errors)], key=lambda pair: pair[0])
            numbers, rows = [n for n, _ in order], [r for _, r in order]
        if skip:
            rows, numbers, skip = rows[skip:], numbers[skip:], max(0, skip - len(rows))
        if not rows:
            continue
        width = len(columns)
        wrong: dict[int, str] = {}
        if errors or not block.decodable or set(map(len, rows)) != {width}:
            for i, (number, row) in enumerate(zip(numbers, rows, strict=True)):
                error = errors.get(number)
                if error is None and len(row) != width:
                    error = f"{len(row)} fields where the header has {width}"
                if error is None and not block.decodable:
                    error = next((e for field in row if (e := undecodable(field, config.encoding))), None)
                if error is not None:
                    wrong[i], rows[i] = error, [""] * width
        yield table(numbers, [pa.array([row[k] for row in rows], pa.string()) for k in at], wrong, config)


# --- json -------------------------------------------------------------------------------------------------


def _values(row: Any, config: DataConfig) -> tuple[list[str | None], str | None]:
    """The wanted values of a JSON object as strings, or the reason why not."""
    names = wanted_columns(config)
    if not isinstance(row, dict):
        return [None] * len(names), "not a JSON object"
    values = [row.get(name) for name in names]
    if any(isinstance(v, (dict, list)) for v in values):
        return [None] * len(names), "text or label is not a plain value"
    strings = [None if v is None or v != v else plain(v) for v in values]  # NaN is a missing value
    if any(v is not None and undecodable(v, "text") for v in strings):
        return [None] * len(names), "lone surrogate in a string"
    return strings, None


def plain(value: Any) -> str:
    """A JSON or Arrow scalar as text; integers that were widened to floats lose their '.0'."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()  # as Parquet's are read
    return value if isinstance(value, str) else str(value)


def json_lines(block: Lines, config: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    """Number, parsed value and error of each line that is not blank."""
    for i, text in enumerate(block.texts):
        number = block.first + i
        if i in block.too_long:
            yield number, None, too_long_message()
        elif not block.decodable and (error := undecodable(text, config.encoding)):
            yield number, None, error
        elif text.strip():
            try:
                yield number, json.loads(text), None
            except RecursionError:
                yield number, None, "not JSON: nested too deep"
            except ValueError as e:
                yield number, None, f"not JSON: {getattr(e, 'msg', e)}"


def read_json_lines(uri: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of JSON lines; the row number is the line."""
    with text_stream(uri, config) as stream:
        for block in line_blocks(stream):
            if chunk := _json_table(json_lines(block, config), config):
                yield chunk


def read_json_array(uri: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of a JSON array of objects; the row number is the position in the array, from 1.

    After an element that is not JSON, reading goes on at the next ``}, {``.
    """
    with text_stream(uri, config) as stream:
        rows: list[tuple[int, Any, str | None]] = []
        for row in json_elements(stream, config):
            rows.append(row)
            if len(rows) >= PARQUET_ROWS:
                if chunk := _json_table(iter(rows), config):
                    yield chunk
                rows = []
        if chunk := _json_table(iter(rows), config):
            yield chunk


_BETWEEN = re.compile(r"[\s,]*")
_NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT_ARRAY = re.compile(r"\]\s*\[")
# A string does not cross a line end: a stray quotation mark cannot swallow the rest of the file.
_PUNCTUATION = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\[\]{},]')
_PARTNER = {"}": "{", "]": "["}


def _after_broken(buffer: str, at: int) -> int:
    """Where the element that is not JSON ends: its brackets are balanced, or a comma or the array's end follows."""
    open_brackets: list[str] = []
    for match in _PUNCTUATION.finditer(buffer, at):
        mark = match[0]
        if mark in "{[":
            open_brackets.append(mark)
        elif mark in "}]":
            if not open_brackets:
                return max(match.start(), at + 1)
            if open_brackets.pop() != _PARTNER[mark]:
                break
            if not open_brackets:
                return match.end()
        elif mark == "," and not open_brackets:
            return max(match.start(), at + 1)
    found = _NEXT_OBJECT.search(buffer, at)
    return found.end() if found else len(buffer)


def _is_end(buffer: str, at: int) -> bool:
    """Whether nothing but the end of the array is left."""
    return buffer[at] == "]" and not buffer[at + 1 :].strip()


def json_elements(stream: io.TextIOWrapper, config: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    """The elements of a JSON array, parsed as they come."""
    decoder = json.JSONDecoder()
    buffer = stream.read(1 << 20).lstrip().removeprefix("[")
    number, at, more = 1, 0, True
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if again := _NEXT_ARRAY.match(buffer, at):  # arrays one after the other
            at = again.end()
            continue
        error: str | None = None
        value: Any = None
        end = len(buffer)
        if at < end and not _is_end(buffer, at):
            try:
                value, end = decoder.raw_decode(buffer, at)
            except RecursionError:
                error = "not JSON: nested too deep"
            except ValueError as e:
                error = f"not JSON: {getattr(e, 'msg', e)}"
        # A number or an object that touches the end of the buffer may go on behind it.
        if more and (error or end == len(buffer)) and len(buffer) - at < MAX_OBJECT_CHARS:
            block = stream.read(max(1 << 20, len(buffer) - at))
            buffer, at, more = buffer[at:] + block, 0, bool(block)
            continue
        if at >= len(buffer) or _is_end(buffer, at):
            return
        if error:
            end = _after_broken(buffer, at)
        error = error or undecodable(buffer[at:end], config.encoding)
        yield number, value, error
        number, at = number + 1, end


def _json_table(rows: Iterator[tuple[int, Any, str | None]], config: DataConfig) -> pa.Table | None:
    numbers: list[int] = []
    values: list[list[str | None]] = []
    errors: dict[int, str] = {}
    for number, row, error in rows:
        strings, wrong = _values(row if error is None else {}, config)
        if reason := error or wrong:
            errors[len(numbers)] = reason
        numbers.append(number)
        values.append(strings)
    if not numbers:
        return None
    columns = [pa.array(c, pa.string()) for c in zip(*values, strict=True)]
    return table(numbers, columns, errors, config)


# --- parquet ----------------------------------------------------------------------------------------------


def parquet_schema(uri: str) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        UserError: it is none.
    """
    try:
        with Place.of(uri).open_random() as f:
            return pq.ParquetFile(f).schema_arrow
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"{uri} is not a Parquet file: {str(e).splitlines()[0]}") from e


def read_parquet(uri: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of a Parquet file, numbered from 1."""
    wanted = wanted_columns(config)
    first = 1
    with Place.of(uri).open_random() as f:
        for batch in pq.ParquetFile(f).iter_batches(PARQUET_ROWS, columns=list(dict.fromkeys(wanted))):
            columns: list[pa.Array] = []
            errors: dict[int, str] = {}
            for name in wanted:
                strings, bad = _strings(batch.column(name), name, uri)
                columns.append(strings)
                errors |= bad
            yield table(range(first, first + batch.num_rows), columns, errors, config)
            first += batch.num_rows


def _strings(column: pa.Array, name: str, uri: str) -> tuple[pa.Array, dict[int, str]]:
    """A column as strings, and the error of each value that is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):  # integer labels that pandas widened because some were missing
        return pa.array([None if v is None or v != v else plain(v) for v in column.to_pylist()], pa.string()), {}
    try:
        strings = column.cast(pa.string())
        strings.validate(full=True)  # a writer can put any bytes into a string column
        return strings, {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        kinds = (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())
        if column.type not in kinds and not pa.types.is_fixed_size_binary(column.type):
            raise UserError(f"{uri}: column '{name}' of type {column.type} cannot be read as text") from e
    values: list[str | None] = []
    bad: dict[int, str] = {}
    for at, raw in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            values.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as e:
            values.append(None)
            bad[at] = f"byte 0x{raw[e.start]:02x} of column '{name}' is not utf-8"
    return pa.array(values, pa.string()), bad


# --- folders of .txt files --------------------------------------------------------------------------------


def read_txt_files(label: str, files: Sequence[str], config: DataConfig) -> Iterator[pa.Table]:
    """Each ``.txt`` file is one text, its folder's name the label; numbered in the order given."""
    first = 1
    for start in range(0, len(files), PARQUET_ROWS):
        texts: list[str | None] = []
        errors: dict[int, str] = {}
        for uri in files[start : start + PARQUET_ROWS]:
            name = uri.rsplit("/", 1)[-1]
            text, wrong = "", None
            try:
                with text_stream(uri, config) as stream:
                    text = stream.read(MAX_OBJECT_CHARS + 1)
                wrong = undecodable(text, config.encoding)
                if len(text) > MAX_OBJECT_CHARS:
                    wrong = f"longer than {MAX_OBJECT_CHARS:,} characters"
            except OSError as e:
                wrong = str(e)
            if wrong:
                errors[len(texts)] = f"{name}: {wrong}"
            texts.append(None if wrong else text)
        n = len(texts)
        columns = [pa.array(texts, pa.string())]
        columns += [pa.nulls(n, pa.string())] * (len(wanted_columns(config)) - 1)
        columns[len(config.text)] = pa.array([label] * n, pa.string())
        yield table(range(first, first + n), columns, errors, config)
        first += n
