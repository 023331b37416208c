"""Lines and delimited records of dirty text files, block by block, each with its line number, never an exception.

What a row costs and what it is called does not depend on where the blocks end.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TextIO

BLOCK_CHARS = 1 << 20
MAX_LINE_CHARS = 16 << 20
MAX_RECORD_LINES = 2_000  # of a record with other fields than the first one has: a stray quotation mark begins it
LONG_RECORD_CHARS = 2 << 20  # of a record with more lines than that, and as many fields
NEVER_CLOSED = "a quotation mark is never closed"

csv.field_size_limit(MAX_LINE_CHARS)
_OPEN = "unexpected end of data"  # the csv module's words for a quotation mark that is still open
_SURROGATE = re.compile("[\ud800-\udfff]")


class BreaksOff(Exception):
    """A damaged archive ends here, in the middle of a row.

    Attributes:
        row: 1-based number of the first line, or of the element of an array, that is not whole.
        reason: why it is not.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"the file breaks off here: {reason}")
        self.row, self.reason = row, reason


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
    """The lines of a stream (opened with ``newline=""``), each at most ``MAX_LINE_CHARS`` long, in blocks.

    Raises:
        BreaksOff: after the last whole line, if the stream is a damaged archive (``unpack``).
    """
    number, rest, skipping = 1, "", False
    while True:
        block = stream.read(BLOCK_CHARS)
        text = rest + block
        broken = None if block else getattr(stream, "broken", None)
        end = _last_line_end(text) if block or broken else len(text)
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
        if broken:
            raise BreaksOff(number, broken)
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

    Raises:
        BreaksOff: after the last whole record. What follows an open quotation mark counts as broken with it: whether
            the mark is a stray one can no longer be known.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    open_record = Lines(1, [], set(), True)
    width: int | None = None
    try:
        for block in blocks:
            if open_record.texts:
                n = len(open_record.texts)
                too_long = open_record.too_long | {i + n for i in block.too_long}
                decodable = open_record.decodable and block.decodable
                block = Lines(open_record.first, open_record.texts + block.texts, too_long, decodable)
            records, used = _parse(block, delimiter, quoting, width, last=False)
            width = _width(width, records)
            left = {i - used for i in block.too_long if i >= used}
            open_record = Lines(block.first + used, block.texts[used:], left, block.decodable)
            yield records
    except BreaksOff as e:
        raise BreaksOff(open_record.first if open_record.texts else e.row, e.reason) from e
    if open_record.texts:
        yield _parse(open_record, delimiter, quoting, width, last=True)[0]


def _parse(block: Lines, delimiter: str, quoting: Literal[0, 3], width: int | None, last: bool) -> tuple[Records, int]:
    """The records of a block, and how many of its lines were used: a record still open at the end waits for more."""
    if not block.too_long:
        try:
            rows = list(csv.reader(block.texts, delimiter=delimiter, quoting=quoting, strict=True))
        except csv.Error:
            rows = []
        if len(rows) == len(block.texts) and all(rows):  # every line is one record
            return Records(range(block.first, block.first + len(rows)), rows, decodable=block.decodable), len(rows)
    out = Records([], [], decodable=block.decodable)
    parser = csv.reader(block.texts, delimiter=delimiter, quoting=quoting, strict=True)
    begin = 0
    try:
        for fields in parser:
            end = parser.line_num
            lines, chars = end - begin, sum(map(len, block.texts[begin:end])) if end - begin > 1 else 0
            if lines > MAX_RECORD_LINES or chars > MAX_LINE_CHARS:
                return _parse_broken(block, begin, out, delimiter, quoting, width, last)
            _keep(out, block, begin, end, fields)
            begin = end
    except csv.Error:
        return _parse_broken(block, begin, out, delimiter, quoting, width, last)
    return out, len(block.texts)


def _parse_broken(
    block: Lines, at: int, out: Records, delimiter: str, quoting: Literal[0, 3], width: int | None, last: bool
) -> tuple[Records, int]:
    """The rest of a block from a broken record on, in time linear in its length.

    Where a record that is open at the start of a line ends does not depend on how it began. So that is found once
    for each line, from the last to the first, and no line is read again for each stray quotation mark before it.
    """
    texts, lines = block.texts, len(block.texts)

    def parse(span: list[str], strict: bool = True) -> list[str]:
        return next(csv.reader(span, delimiter=delimiter, quoting=quoting, strict=strict))

    ends: list[tuple[int, str | None]] = [(lines, _OPEN)] * (lines + 1)  # where it ends and what is wrong there
    chars = [0] * (lines + 1)
    fields_there = [0] * (lines + 1)  # of such a record, from there on
    rows_there = [0] * (lines + 1)  # lines from there on that are a record by themselves
    wide = _width(width, out)
    for i in range(lines - 1, at - 1, -1):
        chars[i] = chars[i + 1] + len(texts[i])
        with contextlib.suppress(csv.Error):
            rows_there[i] = len(parse([texts[i]])) == wide
        rows_there[i] += rows_there[i + 1]
        try:
            fields_there[i] = len(parse(['"' + texts[i]]))
            ends[i] = (i + 1, None)
        except csv.Error as e:
            ends[i] = ends[i + 1] if _OPEN in str(e) else (i + 1, str(e))
            fields_there[i] = len(parse(['"' + texts[i]], strict=False)) - 1 + fields_there[i + 1]
    while at < lines:
        fields: list[str] = []
        end, wrong = at + 1, None
        try:
            fields = parse([texts[at]])
        except csv.Error as e:
            wrong = str(e)
            if _OPEN in wrong:
                end, wrong = ends[at + 1]
                whole = wrong is not None or (
                    len(parse([texts[at]], strict=False)) - 1 + fields_there[at + 1] == (wide or _width(width, out))
                    and 2 * (rows_there[at + 1] - rows_there[end]) < end - at
                )
                long = _too_large(end - at, chars[at] - chars[end], whole)
                if wrong and _OPEN in wrong and not long and not last:
                    return out, at
                if long or (wrong and _OPEN in wrong):
                    wrong = NEVER_CLOSED
                elif not wrong:
                    fields = parse(texts[at:end])
        if wrong:
            out.bad.append((block.first + at, wrong))
            at += 1
        else:
            _keep(out, block, at, end, fields)
            at = end
    return out, lines


def _keep(out: Records, block: Lines, begin: int, end: int, fields: list[str]) -> None:
    """Note a record that lies in the lines from ``begin`` to ``end``."""
    if not block.too_long.isdisjoint(range(begin, end)):
        out.bad.append((block.first + begin, too_long_message()))
    elif fields:
        out.numbers.append(block.first + begin)  # type: ignore[union-attr]
        out.rows.append(fields)


def _width(known: int | None, records: Records) -> int | None:
    """How many fields the first record has."""
    return known or (len(records.rows[0]) if records.rows else None)


def _too_large(lines: int, chars: int, whole: bool) -> bool:
    """Whether a record is more than one that is meant to be one; ``whole``: it has as many fields as the first one, and
    most of its lines would not be records by themselves."""
    return chars > MAX_LINE_CHARS or (lines > MAX_RECORD_LINES and (chars > LONG_RECORD_CHARS or not whole))
