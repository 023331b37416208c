"""What the parsers of all formats share: a chunk of rows as one table, and which columns go into it.

A row that cannot be read comes out with an ``error``. A blank text or label stays as it was read: what is missing
is decided in one place, ``first_pass``. The parsers: ``parse_csv``, ``parse_json``, ``parse_parquet``, ``parse_txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.config import DataConfig
from pipeline.storage import Place

CHUNK_ROWS = 4096
CHUNK_BYTES = 64 << 20  # fewer rows, where they are long
MAX_OBJECT_CHARS = 16 << 20

# 'other' is the column of data.fill_from, null where there is none.
CHUNK = pa.schema(
    [("row", pa.int64()), ("text", pa.string()), ("label", pa.string()), ("error", pa.string()), ("other", pa.string())]
)

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def wanted_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns that are read: text columns in order, the label, and the one to fill from."""
    return (*config.text, config.label, *([config.fill_from] if config.fill_from else []))


def compression(uri: str) -> str | None:
    """How a file is compressed, by its name."""
    name = Place.of(uri).name.lower()
    return next((kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix)), None)


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


def plain(value: Any) -> str:
    """A JSON or Arrow scalar as text; integers that were widened to floats lose their '.0'."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()  # as Parquet's are read
    return value if isinstance(value, str) else str(value)
