"""Delimited files: csv, tsv, and Orange's tab files with their two more header lines."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.data.config import DataConfig
from pipeline.data.lines import BreaksOff, Records, delimited, line_blocks
from pipeline.data.parsers import table, wanted_columns
from pipeline.data.unpack import open_text, undecodable
from pipeline.errors import UserError

# Orange's .tab files carry two more header lines: types, then roles.
_ORANGE_TYPES = {"d", "c", "s", "t", "string", "discrete", "continuous", "time", "class", "meta", ""}


def records(uri: str, format: str, config: DataConfig) -> Iterator[Records]:
    """The records of a delimited file, header included.

    Raises:
        BreaksOff: after the last whole record of a damaged archive.
    """
    with open_text(uri, config.encoding) as stream:
        # Tab-separated files have no quoting: a quotation mark is a character like any other.
        delimiter, quoted = (",", True) if format == "csv" else ("\t", False)
        yield from delimited(line_blocks(stream), delimiter, quoted)


def header(uri: str, format: str, config: DataConfig) -> tuple[list[str], int]:
    """Column names, and the number of records to skip before the first row.

    Raises:
        UserError: a damaged archive breaks off in its first line, or ``data.columns`` does not fit it.
    """
    head: list[list[str]] = []
    try:
        for block in records(uri, format, config):
            bad: dict[int, list[str]] = {number: [] for number, _ in block.bad}
            rows = dict(zip(block.numbers, block.rows, strict=True)) | bad
            head += [rows[number] for number in sorted(rows)]
            if len(head) >= 3:
                break
    except BreaksOff as e:
        if not head:
            raise UserError(f"{uri} is damaged and breaks off in its first line: {e.reason}") from e
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
