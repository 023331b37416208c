"""Any bytes, to every reader: rows with rising numbers, each with a text or an error, or one sentence. Nothing else."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import rows_of

from pipeline.config import load
from pipeline.data import unpack
from pipeline.data.parsers import CHUNK
from pipeline.data.read import find, read
from pipeline.errors import UserError, WorkFailed

PLAIN = "a, b", "好 'c'", "", 'say "hi"', "two\nlines", "x" * 50
TEXT = {
    "csv": "text,label\n" + "".join('"{}",{}\n'.format(t.replace('"', '""'), i % 2) for i, t in enumerate(PLAIN)),
    "tsv": "text\tlabel\n" + "".join(f"{t.split()[0] if t else ''}\t{i}\n" for i, t in enumerate(PLAIN)),
    "tab": "text\tlabel\nstring\td\nmeta\tclass\ngood\tx\nbad\ty\n",
    "jsonl": '{"text": "a", "label": 1}\n{"text": "\\u597d", "label": "b"}\n\n{"label": 2.0, "text": null}\n',
    "json": '[{"text": "a", "label": 1},\n {"text": "b, [c]", "label": {"d": 2}}, {"text": "e", "label": NaN}]\n',
}
COMPRESSED = {"": None, ".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
ENCODINGS = "utf-8", "utf-16", "utf-16-le", "utf-32", "gb18030", "cp1252", "utf-7", "shift_jis"
RUN = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def packed(content: bytes, kind: str | None) -> bytes:
    if kind is None:
        return content
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as f:
        f.write(content)
    return sink.getvalue().to_pybytes()


def parquet(compression: str, groups: int) -> bytes:
    n = 40
    columns = {
        "text": [f"text {i} {'好' * (i % 7)}" for i in range(n)],
        "label": pa.array([str(i % 3) for i in range(n)]).dictionary_encode(),
        "other": [[i] for i in range(n)],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression=compression, row_group_size=n // groups)
    return sink.getvalue()


def read_all(name: str, content: bytes, **data: Any) -> list[tuple[int, str | None, str | None]] | str:
    """The rows as number, text and error; or the sentence that refuses the file."""
    config = load(flags={f"data.{k}": v for k, v in data.items()}).data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        rows: list[tuple[int, str | None, str | None]] = []
        refused: Exception | None = None
        try:
            for source in find([(str(path.parents[1] if path.suffix == ".txt" else path), "train")], config):
                for table in read(source, config):
                    assert table.schema == CHUNK
                    table.validate(full=True)
                    rows += [(r["row"], r["text"], r["error"]) for r in table.to_pylist()]
        except (UserError, WorkFailed) as e:
            refused = e
    if refused is not None:
        sentence = str(refused)
        assert folder in sentence, "the sentence names the file"
        assert "\n" not in sentence
        return sentence
    numbers = [number for number, _, _ in rows]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers[0] >= 1
    assert all(text is None for _, text, error in rows if error is not None)
    return rows


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes of a valid file flipped, cut out, put in or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "cut", "insert", "end", "zeros"])):
            case "flip" if at < len(content):
                content[at] ^= draw(st.integers(1, 255))
            case "cut":
                del content[at : at + draw(st.integers(1, 20))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "zeros":
                content[at : at + 8] = bytes(len(content[at : at + 8]))
            case _:
                del content[at:]
    return bytes(content)


@given(st.data())
@settings(RUN, max_examples=400)
def test_damaged_text_files(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(sorted(TEXT)))
    suffix = data.draw(st.sampled_from(sorted(COMPRESSED)))
    encoding = data.draw(st.sampled_from(ENCODINGS))
    content = TEXT[format].encode(encoding, "replace")
    if data.draw(st.booleans()):
        whole = packed(data.draw(damaged(content)), COMPRESSED[suffix])
    else:
        whole = data.draw(damaged(packed(content, COMPRESSED[suffix])))
    read_all(f"x.{format}{suffix}", whole, encoding=encoding)


@given(st.sampled_from(sorted(TEXT)), st.sampled_from(sorted(COMPRESSED)), st.binary(max_size=200), st.booleans())
@settings(RUN, max_examples=200)
def test_any_bytes_under_any_name(format: str, suffix: str, content: bytes, pack: bool) -> None:
    read_all(f"x.{format}{suffix}", packed(content, COMPRESSED[suffix]) if pack else content)


PARQUET = [parquet(compression, groups) for compression in ("none", "snappy", "zstd") for groups in (1, 4)]


@given(st.data())
@settings(RUN, max_examples=400)
def test_damaged_parquet(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(PARQUET))
    rows = read_all("x.parquet", data.draw(damaged(whole)))
    assert isinstance(rows, str) or len(rows) <= 40


@given(st.binary(max_size=200), st.booleans())
@settings(RUN, max_examples=100)
def test_any_bytes_as_parquet(content: bytes, framed: bool) -> None:
    read_all("x.parquet", b"PAR1" + content + b"PAR1" if framed else content)


@given(st.binary(max_size=60), st.sampled_from(ENCODINGS))
@settings(RUN, max_examples=60)
def test_any_bytes_as_text_of_a_folder(content: bytes, encoding: str) -> None:
    rows = read_all("news/sport/1.txt", content, encoding=encoding)
    assert isinstance(rows, str) or len(rows) == 1


@pytest.mark.parametrize("encoding", sorted({*ENCODINGS, "utf-16-be", "utf-32-le", "utf-8-sig"}))
def test_a_byte_order_mark_is_no_part_of_the_first_column(encoding: str) -> None:
    mark = "" if encoding in ("utf-16", "utf-32", "utf-8-sig", "cp1252", "shift_jis") else "\ufeff"
    content = (mark + "text,label\na,1\n").encode(encoding)
    assert read_all("x.csv", content, encoding=encoding) == [(2, "a", None)]
    assert unpack.undecodable("\ufeff", encoding) is None


HEAD = {
    "json": b'[{"text": "a", "label": "b"},\n',
    "csv": b"text,label\n",
    "tsv": b"text\tlabel\n",
    "jsonl": b'{"text": "a", "label": "b"}\n',
}
PIECES = [
    b'"', b",", b"\n", b"\r", b"\r\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\\", b"a", b"{", b"}", b"[",
    b"]", b'{"text":1e999,"label":NaN}\n', b'{"text":null,"label":"\\udfff"}\n', b"\xe2\x80\xa8",
    b"\x0c", *HEAD.values(),
]  # fmt: skip


@given(st.sampled_from(sorted(HEAD)), st.booleans(), st.binary() | st.lists(st.sampled_from(PIECES)).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_read(format: str, headed: bool, body: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            got = rows_of(Path(folder), (HEAD[format] if headed else b"") + body, format)
        except UserError:
            return
    numbers = [row[0] for row in got]
    assert numbers == sorted(set(numbers))
    assert all(text is None and label is None for _, text, label, error in got if error is not None)
