"""Prepared data for tests: made by ``prepare`` itself, with the small tokenizer of a model from scratch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import load
from pipeline.data import named, prepare
from pipeline.data.prepared import Prepared
from pipeline.model.source import resolve


def write_csv(path: Path, rows: Iterable[tuple[str, str]]) -> str:
    """Texts and labels under a header; returns the path as a pattern for ``data.train``."""
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label"), *rows])
    return str(path)


def prepared(storage: str | Path, files: Mapping[str, str | Sequence[str]], *sets: str) -> Prepared:
    """What the files of each split become, below ``storage``."""
    flags: dict[str, Any] = {"storage": str(storage)}
    flags |= {f"data.{split}": (of,) if isinstance(of, str) else tuple(of) for split, of in files.items()}
    config = load(None, ["model.name=lstm", "model.vocab_size=300", *sets], flags)
    return prepare.prepare(named.resolve(config)[0], resolve("lstm"))[0]
