"""JSON lines and JSON arrays."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.data.config import DataConfig
from pipeline.data.lines import BreaksOff, Lines, line_blocks, too_long_message
from pipeline.data.parsers import CHUNK_ROWS, MAX_OBJECT_CHARS, plain, table, wanted_columns
from pipeline.data.unpack import TextFile, open_text, undecodable


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
    with open_text(uri, config.encoding) as stream:
        for block in line_blocks(stream):
            if chunk := _json_table(json_lines(block, config), config):
                yield chunk


def read_json_array(uri: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of a JSON array of objects; the row number is the position in the array, from 1.

    After an element that is not JSON, reading goes on at the next ``}, {``.
    """
    with open_text(uri, config.encoding) as stream:
        elements = json_elements(stream, config)
        broken: BreaksOff | None = None
        while not broken:
            rows: list[tuple[int, Any, str | None]] = []
            try:
                rows.extend(itertools.islice(elements, CHUNK_ROWS))  # keeps what came before the break
            except BreaksOff as e:
                broken = e
            if chunk := _json_table(iter(rows), config):
                yield chunk
            elif not broken:
                return
        raise broken


_BETWEEN = re.compile(r"[\s,]*")
_END = re.compile(r"\]\s*\Z")
_NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT_ARRAY = re.compile(r"\]\s*\[")
# A string does not cross a line end: a stray quotation mark cannot swallow the rest of the file.
_PUNCTUATION = re.compile(r'"(?:[^"\\\n]+|\\.)*("?)|[\[\]{},]')
_PARTNER = {"}": "{", "]": "["}


def _after_broken(buffer: str, at: int, count: bool) -> tuple[int, int | None]:
    """Where the element that is not JSON ends: its brackets are balanced, or a comma or the array's end follows.

    Args:
        buffer: what has been read.
        at: where it begins.
        count: whether to count brackets; else the next ``}, {`` is its end.

    Returns:
        The place, and up to where brackets were counted in vain; None if they told it.
    """
    open_brackets: list[str] = []
    counted = at
    for match in _PUNCTUATION.finditer(buffer, at if count else len(buffer)):
        mark, counted = match[0], match.end()
        if mark in "{[":
            open_brackets.append(mark)
        elif mark in "}]":
            if not open_brackets:
                return max(match.start(), at + 1), None
            if open_brackets.pop() != _PARTNER[mark]:
                break
            if not open_brackets:
                return match.end(), None
        elif mark == ",":
            if not open_brackets:
                return max(match.start(), at + 1), None
        elif not match[1]:
            break  # a string that is not closed
    found = _NEXT_OBJECT.search(buffer, at)
    return (found.end() if found else len(buffer)), counted


def _is_end(buffer: str, at: int) -> bool:
    """Whether nothing but the end of the array is left."""
    return _END.match(buffer, at) is not None


def json_elements(stream: TextFile, config: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    """The elements of a JSON array, parsed as they come.

    Raises:
        BreaksOff: after the last whole element of a damaged archive.
    """
    decoder = json.JSONDecoder()
    buffer = stream.read(1 << 20).lstrip().removeprefix("[")
    number, at, more = 1, 0, True
    counted = 0  # up to here brackets were counted in vain: it is not done again for each broken element in between
    while True:
        # An error of the decoder counts the lines before it: what is done with is dropped, now and then.
        if at > max(1 << 13, len(buffer) >> 9):
            buffer, counted, at = buffer[at:], counted - at, 0
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if again := _NEXT_ARRAY.match(buffer, at):  # arrays one after the other
            at = again.end()
            continue
        error: str | None = None
        value: Any = None
        end, whole = len(buffer), False
        if at < end and not _is_end(buffer, at):
            try:
                value, end = decoder.raw_decode(buffer, at)
                whole = end < len(buffer)
            except RecursionError:
                error = "not JSON: nested too deep"
            except ValueError as e:
                error = f"not JSON: {getattr(e, 'msg', e)}"
            if error:
                end, in_vain = _after_broken(buffer, at, at >= counted)
                whole, counted = in_vain is None, max(counted, in_vain or 0)
        # A number or an object that touches the end of the buffer may go on behind it, and so may a broken one.
        if more and not whole and len(buffer) - at < MAX_OBJECT_CHARS:
            block = stream.read(max(1 << 20, len(buffer) - at))
            buffer, at, more, counted = buffer[at:] + block, 0, bool(block), 0
            continue
        if not more and not whole and stream.broken:
            raise BreaksOff(number, stream.broken)
        if at >= len(buffer) or _is_end(buffer, at):
            return
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
