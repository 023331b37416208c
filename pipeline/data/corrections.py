"""Corrections of labels by row id: ``broadsheet evaluate`` suggests them in ``suspects.csv``, a person accepts them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.data.config import DataConfig
from pipeline.errors import UserError
from pipeline.storage import Place, identity

COLUMNS = ("id", "suggested")


@dataclass(frozen=True)
class Corrections:
    """What is to become of some rows.

    Attributes:
        file: where it was read.
        ids: ``file:line`` of each row.
        labels: the new label of each, '' to drop the row.
        expected: the label each row had when it was judged, None where the file does not say.
    """

    file: str
    ids: pa.StringArray
    labels: pa.StringArray
    expected: pa.StringArray

    def __len__(self) -> int:
        return len(self.ids)


def load(config: DataConfig) -> Corrections | None:
    """The corrections of ``data.corrections``; None where the key is empty.

    Raises:
        UserError: there is no such file, it lacks a column, names a row twice, or a label that is not in
            ``data.labels``.
    """
    if not config.corrections:
        return None
    file = config.corrections
    place = Place.of(file)
    if not place.is_file():
        raise UserError(f"data.corrections: no such file: {file}")
    try:
        rows = list(csv.DictReader(io.StringIO(place.read_bytes().decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"data.corrections: {file} is not a csv file in UTF-8: {e}") from e
    for column in COLUMNS:
        if rows and column not in rows[0]:
            shown = ", ".join(str(name) for name in rows[0])
            raise UserError(f"data.corrections: {file} has no column '{column}'; its columns are: {shown}")
    for number, row in enumerate(rows, 2):
        if None in row or any(row[column] is None for column in COLUMNS):
            raise UserError(
                f"data.corrections: row {number} of {file} has more or fewer fields than its header names; to drop a "
                "row of the data, leave 'suggested' empty"
            )
    ids = [(row["id"] or "").strip() for row in rows]
    labels = [(row["suggested"] or "").strip() for row in rows]
    twice = [name for name, n in Counter(ids).items() if n > 1]
    if twice:
        raise UserError(f"data.corrections: {file} names the row '{twice[0]}' more than once: keep one of its lines")
    for name, label in zip(ids, labels, strict=True):
        if label and config.labels and label not in config.labels:
            raise UserError(
                f"data.corrections: {file} gives row '{name}' the label '{label}', which is not among data.labels "
                f"({', '.join(config.labels)})"
            )
    expected = [(row.get("label") or "").strip() or None for row in rows]
    return Corrections(file, *(pa.array(column, pa.string()) for column in (ids, labels, expected)))


def content(config: DataConfig) -> list[str]:
    """What the prepared data depends on: nothing, or the file's content."""
    return [identity(config.corrections)] if config.corrections else []


def check_labels(corrections: Corrections, read: Mapping[str, int]) -> None:
    """Refuse a label that no row has by itself: a slip of the pen would found a class.

    Args:
        corrections: all of them.
        read: the labels as read, with their rows.

    Raises:
        UserError: naming the row and the label.
    """
    for name, label in zip(corrections.ids.to_pylist(), corrections.labels.to_pylist(), strict=True):
        if label and label not in read:
            shown = ", ".join(sorted(read)[:12])
            raise UserError(
                f"data.corrections: {corrections.file} gives row '{name}' the label '{label}', which no training row "
                f"has; there are: {shown}"
            )


def summary(corrections: Corrections, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the corrections.

    Args:
        corrections: all of them.
        facts: of the first pass: ``relabelled``, ``dropped``, ``met`` and ``stale`` (indices of corrections).

    Returns:
        ``relabelled``, ``dropped``, ``same`` (rows that had the label already) and ``warnings`` (sentences).
    """
    ids, met, stale = corrections.ids.to_pylist(), set(facts["met"]), sorted(facts["stale"])
    missing = [name for i, name in enumerate(ids) if i not in met]
    said = []
    if missing:
        said.append(f"{named(missing)} of {corrections.file}: no such row (data.corrections)")
    if stale:
        said.append(
            f"{named([ids[i] for i in stale])} of {corrections.file} left as read: the label is not the one that was "
            "judged, so the line may be another row's by now (data.corrections)"
        )
    changed = facts["relabelled"] + facts["dropped"]
    same = len(met) - len(stale) - changed
    return {"relabelled": facts["relabelled"], "dropped": facts["dropped"], "same": same, "warnings": said}


def named(ids: list[str]) -> str:
    """How many corrections, and the first of their rows."""
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return f"{len(ids):,} correction{'s' if len(ids) > 1 else ''} ({shown})"
