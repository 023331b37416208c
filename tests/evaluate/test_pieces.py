"""Pieces depend on rows alone; a plan tells one job from another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load
from pipeline.data.parsers import CHUNK
from pipeline.data.read import find
from pipeline.errors import UserError
from pipeline.evaluate import pieces
from pipeline.storage import Place


def chunk(rows: list[tuple[int, str | None]]) -> pa.Table:
    numbers, texts = [n for n, _ in rows], [t for _, t in rows]
    nothing = pa.nulls(len(rows), pa.string())
    return pa.table([pa.array(numbers, pa.int64()), pa.array(texts, pa.string())] + [nothing] * 3, schema=CHUNK)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=400)), max_size=60),
    st.integers(1, 2_000),
    st.sets(st.integers(1, 59)),
)
def test_pieces_do_not_depend_on_chunks(texts: list[str | None], limit: int, ends: set[int]) -> None:
    rows = list(enumerate(texts, 1))
    at = [0, *sorted(e for e in ends if e < len(rows)), len(rows)]
    chunks = [chunk(rows[a:b]) for a, b in itertools.pairwise(at)]
    got = [[(r["row"], r["text"]) for r in p.to_pylist()] for p in pieces.cut(chunks, limit)]
    whole = [[(r["row"], r["text"]) for r in p.to_pylist()] for p in pieces.cut([chunk(rows)], limit)]
    assert got == whole
    assert [row for piece in got for row in piece] == rows
    for piece in got:
        sizes = [len((text or "").encode()) + pieces.ROW_BYTES for _, text in piece]
        assert sum(sizes[:-1]) < limit
        assert piece is got[-1] or sum(sizes) >= limit


def test_larger_jobs_have_larger_pieces() -> None:
    assert [pieces.piece_bytes(n) for n in (0, 1 << 30, 1 << 50)] == [256 << 10, (1 << 30) // 2_000, 8 << 20]


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, Place, Place]:
    """Inputs, a checkpoint's folder, an output folder."""
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"text\n{name}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broadsheet.json").write_text("{}")
    return tmp_path, Place.of(tmp_path / "model"), Place.of(tmp_path / "out")


def wanted(folder: Path, model: Place, *names: str, **sets: str) -> dict:
    data = load(None, [f"data.{k}={v}" for k, v in sets.items()]).data.model_copy(update={"label": "text"})
    return pieces.plan(find([(str(folder / n), "test") for n in names or ("a.csv", "b.csv")], data), model, data)


def test_a_plan_is_found_again(job: tuple[Path, Place, Place]) -> None:
    folder, model, out = job
    first = pieces.agree(out, wanted(folder, model))
    assert pieces.agree(out, {**wanted(folder, model), "piece_bytes": 7}) == first  # cut as the first attempt cut


def test_other_jobs_are_refused(job: tuple[Path, Place, Place]) -> None:
    folder, model, out = job
    pieces.agree(out, wanted(folder, model))
    with pytest.raises(UserError, match=r"holds predictions of other files \(b.csv is not among both\)"):
        pieces.agree(out, wanted(folder, model, "a.csv"))
    with pytest.raises(UserError, match="in another order"):
        pieces.agree(out, wanted(folder, model, "b.csv", "a.csv"))
    with pytest.raises(UserError, match=r'made with another data.encoding \("utf-8"\)'):
        pieces.agree(out, wanted(folder, model, encoding="latin-1"))
    (folder / "b.csv").write_text("text\nc\n")
    with pytest.raises(UserError, match=r"of b.csv before it changed: name a new folder, or delete this one"):
        pieces.agree(out, wanted(folder, model))
    (folder / "b.csv").write_text("text\nb\n")
    pieces.agree(out, wanted(folder, model))
    (model / "model.safetensors").write_bytes(b"new weights")
    with pytest.raises(UserError, match="by another checkpoint"):
        pieces.agree(out, wanted(folder, model))
    (out / pieces.PLAN).write_text('{"format": 1}')
    with pytest.raises(UserError, match="of another version of Broadsheet"):
        pieces.agree(out, wanted(folder, model))


def test_a_folder_with_anything_in_it_is_left_alone(job: tuple[Path, Place, Place]) -> None:
    folder, model, out = job
    (folder / "out" / "project").mkdir(parents=True)
    hidden = folder / "out" / "project" / ".env.local"
    hidden.write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        pieces.agree(out, wanted(folder, model))
    hidden.rename(folder / "out" / ".env.local")
    (folder / "out" / "project").rmdir()
    with pytest.raises(UserError, match="is not an empty folder"):
        pieces.agree(out, wanted(folder, model))
    (folder / "out" / ".env.local").rename(folder / ".env.local")
    pieces.agree(out, wanted(folder, model))
    (folder / ".env.local").rename(folder / "out" / ".env.local")
    (folder / "out" / ".part-00000-000000000000.parquet.x1y2").write_text("half")
    pieces.agree(out, wanted(folder, model))
    assert sorted(p.name for p in (folder / "out").iterdir()) == [".env.local", pieces.PLAN]
