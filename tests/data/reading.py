"""Rows of a file as its reader gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import load
from pipeline.data.parsers import CHUNK
from pipeline.data.read import Source, check, read


def read_rows(path: Path, format: str, **data: Any) -> list[tuple[int, str | None, str | None, str | None]]:
    source = Source(str(path), path.name, "train", format, path.stat().st_size)
    config = load(flags={f"data.{k}": v for k, v in data.items()}).data
    check(source, config)
    tables = list(read(source, config))
    assert all(t.schema == CHUNK for t in tables)
    return [tuple(row.values())[:4] for t in tables for row in t.to_pylist()]


def rows_of(folder: Path, content: bytes, format: str = "csv", **data: Any) -> list[Any]:
    path = folder / f"x.{format}"
    path.write_bytes(content)
    return read_rows(path, format, **data)
