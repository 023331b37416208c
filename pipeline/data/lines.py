"""Lines and delimited records of dirty text files, each with its line number, never an exception."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TextIO

MAX_LINE_CHARS = 16 << 20
MAX_RECORD_LINES = 5_000

csv.field_size_limit(MAX_LINE_CHARS)


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its 1-based number; ``error`` is set where it was too long to read."""

    number: int
    text: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One delimited record: its first line's number, and its fields or the reason why there are none."""

    line: int
    fields: list[str] | None
    error: str | None = None


def lines(stream: TextIO) -> Iterator[Line]:
    """The lines of a stream, each at most ``MAX_LINE_CHARS`` long; the rest of a longer one is skipped."""
    number = 0
    while text := stream.readline(MAX_LINE_CHARS):
        number += 1
        if len(text) == MAX_LINE_CHARS and not text.endswith(("\n", "\r")):
            while (rest := stream.readline(MAX_LINE_CHARS)) and not rest.endswith(("\n", "\r")):
                pass
            yield Line(number, "", f"line longer than {MAX_LINE_CHARS:,} characters")
        else:
            yield Line(number, text)


class _RecordTooLong(Exception):
    pass


class _Feed:
    """Hands lines to the csv parser and can take back those of a record that turned out to be broken."""

    def __init__(self, source: Iterable[Line]) -> None:
        self._source = iter(source)
        self._back: deque[Line] = deque()
        self.record: list[Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._source)
        self.record.append(line)
        if len(self.record) > MAX_RECORD_LINES:
            raise _RecordTooLong
        return line.text

    def take_back(self) -> None:
        """Give all lines of the current record but the first back."""
        self._back.extendleft(reversed(self.record[1:]))
        self.record = self.record[:1]


def delimited(source: Iterable[Line], delimiter: str, quoted: bool) -> Iterator[Record]:
    """Parse delimited records.

    A broken record (a quote never closed, text after a closing quote) costs its first line only: parsing goes
    on with the next line, so that one stray quotation mark cannot swallow the rest of a file. Blank lines are
    no records.

    Args:
        source: the lines.
        delimiter: one character.
        quoted: whether ``"`` quotes fields, RFC 4180; else it is an ordinary character.
    """
    feed = _Feed(source)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    parser = csv.reader(feed, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        feed.record = []
        try:
            fields = next(parser)
        except StopIteration:
            return
        except (csv.Error, _RecordTooLong) as e:
            too_long = isinstance(e, _RecordTooLong) or "unexpected end of data" in str(e)
            reason = "a quotation mark is never closed" if too_long else str(e)
            first = feed.record[0].number if feed.record else 0
            feed.take_back()
            yield Record(first, None, reason)
            # A csv.reader keeps the state of a record that broke; start a fresh one on the same feed.
            parser = csv.reader(feed, delimiter=delimiter, quoting=quoting, strict=True)
            continue
        broken = next((line.error for line in feed.record if line.error), None)
        if broken:
            yield Record(feed.record[0].number, None, broken)
        elif fields:
            yield Record(feed.record[0].number, fields)
