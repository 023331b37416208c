"""What ``predict`` does exactly once: pieces of its inputs, cut the same way by every attempt, and the plan of a job.

A piece is a run of rows of one file, cut by what the rows hold alone: not by how a parser hands them out, by Ray's
blocks or by who is done first. Its part of the output is named after it, and written whole or not at all. So an
attempt after a kill finds what is finished by the names of files, and does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.config import DataConfig
from pipeline.data.prepared import digest
from pipeline.data.read import Source, content
from pipeline.errors import UserError
from pipeline.storage import Place, identity

PLAN = "_plan.json"
SUCCESS = "_SUCCESS.json"
FORMAT = 1
PIECE_BYTES = (256 << 10, 8 << 20)  # a kill costs what was half done; a job of a terabyte need not have a million parts
PIECES = 2_000
ROW_BYTES = 64  # what a row counts besides its text, so that empty ones fill a piece too

SETTINGS = ("text", "columns", "format", "encoding")


def piece_bytes(total: int) -> int:
    """How much text goes into one piece of a job that reads ``total`` bytes."""
    return min(max(total // PIECES, PIECE_BYTES[0]), PIECE_BYTES[1])


def cut(chunks: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    """Put chunks of rows together, and cut them anew.

    Args:
        chunks: tables of the schema ``parsers.CHUNK``, of any length.
        limit: bytes; a piece ends with the row that reaches it.

    Yields:
        The same rows in the same order, in pieces that depend on nothing but the rows and ``limit``.
    """
    waiting: list[pa.Table] = []
    held = 0
    for chunk in chunks:
        sizes = pc.fill_null(pc.binary_length(chunk["text"]), 0).to_numpy().astype(np.int64) + ROW_BYTES
        ends = held + np.cumsum(sizes)
        start = 0
        while (last := int(np.searchsorted(ends, limit))) < chunk.num_rows:
            yield pa.concat_tables([*waiting, chunk.slice(start, last + 1 - start)])
            waiting, start = [], last + 1
            ends -= ends[last]
        if start < chunk.num_rows:
            waiting.append(chunk.slice(start))
        held = int(ends[-1]) if chunk.num_rows else held
    if waiting:
        yield pa.concat_tables(waiting)


def part_name(source: int, first: int) -> str:
    """The output file of the piece that begins with row ``first`` of a source."""
    return f"part-{source:05d}-{first:012d}.parquet"


def plan(sources: Sequence[Source], checkpoint: Place, data: DataConfig) -> dict[str, Any]:
    """All that the output of a job depends on, and how it is cut; the content of ``_plan.json``."""
    return {
        "format": FORMAT,
        "checkpoint": {"folder": str(checkpoint), "identity": checkpoint_identity(checkpoint)},
        "settings": data.model_dump(mode="json", include=set(SETTINGS)),
        "inputs": [{"name": s.name, "format": s.format, "content": content(s)} for s in sources],
        "piece_bytes": piece_bytes(sum(s.size for s in sources)),
    }


def checkpoint_identity(checkpoint: Place) -> str:
    """What changes when anything that a checkpoint predicts with does."""
    files = [f for f in checkpoint.files() if f.name.endswith((".json", ".safetensors"))]
    return digest(*(f"{f.name}|{identity(f.uri)}" for f in files))


def agree(out: Place, wanted: dict[str, Any]) -> dict[str, Any]:
    """Write the plan into the output folder, or find it there.

    Returns:
        The plan to follow: the one of the first attempt.

    Raises:
        UserError: the folder belongs to another job, or holds something else.
    """
    file = out / PLAN
    for name in (PLAN, SUCCESS):
        out.sweep(f".{name}.*")
    if not file.exists():
        if not out.is_vacant():
            raise UserError(f"--out {out} is not an empty folder: name a new one")
        out.mkdir()
        file.write_text(json.dumps(wanted, ensure_ascii=False, indent=1) + "\n")
        return wanted
    out.sweep(".part-*.parquet.*")
    try:
        known = json.loads(file.read_text())
        difference = _difference(known, wanted)
    except (ValueError, KeyError, TypeError, AttributeError):
        difference = "of another version of Broadsheet"
    if difference:
        raise UserError(f"--out {out} holds predictions {difference}: name a new folder, or delete this one")
    return dict(known)


def _difference(known: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """What tells the job of a plan from the one that is wanted."""
    if known["format"] != wanted["format"]:
        return "of another version of Broadsheet"
    if known["checkpoint"]["identity"] != wanted["checkpoint"]["identity"]:
        return "by another checkpoint (or by this one before it changed)"
    for key, value in wanted["settings"].items():
        if known["settings"].get(key) != value:
            return f"made with another data.{key} ({json.dumps(known['settings'].get(key), ensure_ascii=False)})"
    before, now = ({i["name"]: i for i in one["inputs"]} for one in (known, wanted))
    if list(before) != list(now):
        other = next((n for n in [*before, *now] if (n in before) != (n in now)), None)
        return f"of other files ({other} is not among both)" if other else "of the same files in another order"
    changed = next((n for n in now if now[n] != before[n]), None)
    return f"of {changed} before it changed" if changed else None
