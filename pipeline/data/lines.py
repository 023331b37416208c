"""Lines and delimited records of dirty text files, block by block, each with its line number, never an exception.

What a row costs and what it is called does not depend on where the blocks end.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TextIO

BLOCK_CHARS = 1 << 20
MAX_LINE_CHARS = 16 << 20
MAX_RECORD_LINES = 2_000
NEVER_CLOSED = "a quotation mark is never closed"

csv.field_size_limit(MAX_LINE_CHARS)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Lines:
    """Whole lines in a row, with their line ends.

    Attributes:
        first: 1-based number of the first.
        texts: the lines; one too long to read is empty.
        too_long: indices of those.
        decodable: whether no line carries undecodable bytes (lone surrogates).
    """

    first: int
    texts: list[str]
    too_long: set[int]
    decodable: bool


@dataclass(slots=True)
class Records:
    """Delimited records.

    Attributes:
        numbers: 1-based number of each record's first line.
        rows: its fields.
        bad: first line and reason of each record that could not be read.
        decodable: as of ``Lines``.
    """

    numbers: list[int] | range
    rows: list[list[str]]
    bad: list[tuple[int, str]] = field(default_factory=list)
    decodable: bool = True


def line_blocks(stream: TextIO) -> Iterator[Lines]:
    """The lines of a stream (opened with ``newline=""``), each at most ``MAX_LINE_CHARS`` long, in blocks."""
    number, rest, skipping = 1, "", False
    while True:
        block = stream.read(BLOCK_CHARS)
        text = rest + block
        end = len(text) if not block else _last_line_end(text)
        complete, rest = text[:end], text[end:]
        if complete:
            texts = io.StringIO(complete, newline="").readlines()
            too_long = {i for i, t in enumerate(texts) if len(t) > MAX_LINE_CHARS} if end > MAX_LINE_CHARS else set()
            if skipping:  # this block begins inside a line whose start was thrown away
                too_long.add(0)
                skipping = False
            for i in too_long:
                texts[i] = ""
            yield Lines(number, texts, too_long, complete.isascii() or _SURROGATE.search(complete) is None)
            number += len(texts)
        if not block:
            if skipping and not complete:
                yield Lines(number, [""], {0}, True)
            return
        if len(rest) > MAX_LINE_CHARS:
            rest, skipping = rest[-1:] if rest.endswith("\r") else "", True


def _last_line_end(text: str) -> int:
    """Where the last whole line ends; a final carriage return may have its line feed in the next block."""
    searched = len(text) - 1 if text.endswith("\r") else len(text)
    return max(text.rfind("\n", 0, searched), text.rfind("\r", 0, searched)) + 1


def too_long_message() -> str:
    """The reason to reject a line that was not read."""
    return f"line longer than {MAX_LINE_CHARS:,} characters"


def delimited(blocks: Iterable[Lines], delimiter: str, quoted: bool) -> Iterator[Records]:
    """Parse delimited records.

    A broken record (a quote never closed, text after a closing quote) costs its first line only: parsing goes
    on with the next line, so that one stray quotation mark cannot swallow the rest of a file. Blank lines are
    no records.

    Args:
        blocks: the lines.
        delimiter: one character.
        quoted: whether ``"`` quotes fields, RFC 4180; else it is an ordinary character.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    open_record = Lines(1, [], set(), True)
    for block in blocks:
        if open_record.texts:
            n = len(open_record.texts)
            too_long = open_record.too_long | {i + n for i in block.too_long}
            decodable = open_record.decodable and block.decodable
            block = Lines(open_record.first, open_record.texts + block.texts, too_long, decodable)
        records, used = _parse(block, delimiter, quoting, last=False)
        left = {i - used for i in block.too_long if i >= used}
        open_record = Lines(block.first + used, block.texts[used:], left, block.decodable)
        yield records
    if open_record.texts:
        yield _parse(open_record, delimiter, quoting, last=True)[0]


def _parse(block: Lines, delimiter: str, quoting: Literal[0, 3], last: bool) -> tuple[Records, int]:
    """The records of a block, and how many of its lines were used: a record still open at the end waits for more."""
    if not block.too_long:
        try:
            rows = list(csv.reader(block.texts, delimiter=delimiter, quoting=quoting, strict=True))
        except csv.Error:
            rows = []
        if len(rows) == len(block.texts) and all(rows):  # every line is one record
            return Records(range(block.first, block.first + len(rows)), rows, decodable=block.decodable), len(rows)
    out = Records([], [], decodable=block.decodable)
    start, lines = 0, len(block.texts)
    while start < lines:
        rest = map(block.texts.__getitem__, range(start, lines))
        parser = csv.reader(rest, delimiter=delimiter, quoting=quoting, strict=True)
        begin = 0
        try:
            for fields in parser:
                end = parser.line_num
                number = block.first + start + begin
                if end - begin > 1 and _too_large(block.texts[start + begin : start + end]):
                    raise csv.Error
                if not block.too_long.isdisjoint(range(start + begin, start + end)):
                    out.bad.append((number, too_long_message()))
                elif fields:
                    out.numbers.append(number)  # type: ignore[union-attr]
                    out.rows.append(fields)
                begin = end
            start = lines
        except csv.Error as e:
            at_end = "unexpected end of data" in str(e)
            long = _too_large(block.texts[start + begin : start + parser.line_num])
            if at_end and not long and not last:
                return out, start + begin
            out.bad.append((block.first + start + begin, NEVER_CLOSED if at_end or long else str(e)))
            start += begin + 1
    return out, lines


def _too_large(texts: list[str]) -> bool:
    return len(texts) > MAX_RECORD_LINES or sum(map(len, texts)) > MAX_LINE_CHARS
