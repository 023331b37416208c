"""csv files that people open in a spreadsheet, with texts in them that strangers wrote."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "\ufeff"  # by which Excel knows UTF-8
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formulas begin


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], free: Sequence[str]) -> str:
    """Rows as csv, other keys left out.

    Args:
        columns: in order.
        rows: by column.
        free: columns of free text, for reading: what a spreadsheet would take for a formula gets an apostrophe, and a
            carriage return, which the csv module of Python leaves bare, becomes a space.
    """
    sink = io.StringIO()
    sink.write(MARK)
    writer = csv.DictWriter(sink, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **{name: _harmless(row[name]) for name in free if isinstance(row.get(name), str)}})
    return sink.getvalue()


def _harmless(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", " ")
    return f"'{text}" if text.startswith(_FORMULA) else text
