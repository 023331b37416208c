"""Readers: every format, and every way a file or a row can be wrong."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import random
import tempfile
import zlib
from functools import partialmethod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load
from pipeline.data import lines as module
from pipeline.data.parsers import CHUNK
from pipeline.data.read import Source, check, content, find, format_of, read
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place


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


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", 'label,text\n1,"a, b"\n2,好\n'),
        ("csv", '\ufefflabel,text\r\n1,"a, b"\r\n2,好'),
        ("tsv", "label\ttext\n1\ta, b\n2\t好\n"),
        ("tab", "label\ttext\n1\ta, b\n2\t好\n"),
        ("jsonl", '{"label": 1, "text": "a, b"}\n{"label": 2.0, "text": "\\u597d"}\n'),
    ],
)
def test_each_text_format(tmp_path: Path, format: str, content: str) -> None:
    first = 1 if format == "jsonl" else 2
    assert rows_of(tmp_path, content.encode(), format) == [(first, "a, b", "1", None), (first + 1, "好", "2", None)]


def test_parquet_labels_of_any_kind(tmp_path: Path) -> None:
    text = ["a", None, "c"]
    for labels, expected in [
        (pa.array([1.0, None, float("nan")]), ["1", None, None]),
        (pa.array([1, None, 3]), ["1", None, "3"]),
        (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", None]),
        (pa.nulls(3), [None] * 3),
    ]:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"text": text, "label": labels}), path)
        assert read_rows(path, "parquet") == [(i + 1, text[i], expected[i], None) for i in range(3)]


def test_parquet_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [["a"]], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="column 'text' of type list"):
        read_rows(tmp_path / "x.parquet", "parquet")


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("csv", b"", "is empty"),
        ("csv", b" \n\n", "only white space"),
        ("csv", b"PAR1\x00\x00", "is a Parquet file: it was read as csv"),
        ("tsv", b"a\x00b\tc\n", "is binary, not text"),
        ("csv", b"Title,class\na,b\n", "no column 'text'; its columns are: Title, class. Choose with data.text"),
        ("csv", b"text,class\na,b\n", "no column 'label'; its columns are: text, class. Choose with data.label"),
        ("jsonl", b"hello\n1\n", "none of its first lines or elements is a JSON object"),
        ("jsonl", b'{"text": 1}\n{"body": 2}\n', "its columns are: text, body"),
        ("parquet", b"text,label\na,b\n", "is not a Parquet file"),
    ],
)
def test_wrong_file_is_refused_with_its_name(tmp_path: Path, format: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"x\.{format}.*{message}"):
        rows_of(tmp_path, content, format)


def test_unknown_encoding_is_a_config_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.encoding: 'utf-9'"):
        rows_of(tmp_path, b"text,label\n", encoding="utf-9")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "cp1252"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    word = "café" if encoding == "cp1252" else "股市"
    assert rows_of(tmp_path, f"text,label\n{word},a\n".encode(encoding), encoding=encoding) == [(2, word, "a", None)]


def test_bytes_that_are_not_utf_16_cost_one_row(tmp_path: Path) -> None:
    content = "text,label\na,1\n".encode("utf-16-le") + b"\x00\xd8b\x00" + ",1\nc,1\n".encode("utf-16-le")
    got = rows_of(tmp_path, content, encoding="utf-16-le")
    assert got == [(2, "a", "1", None), (3, None, None, "byte 0x00 is not utf-16-le"), (4, "c", "1", None)]


def test_parquet_bytes_that_are_not_text_cost_one_row(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary()):
        pq.write_table(pa.table({"text": pa.array([b"a", b"\xff", None], kind), "label": [1, 2, 3]}), tmp_path / "x.pq")
        got = read_rows(tmp_path / "x.pq", "parquet")
        bad = "byte 0xff of column 'text' is not utf-8"
        assert got == [(1, "a", "1", None), (2, None, None, bad), (3, None, "3", None)]


def test_bad_rows_keep_their_line_numbers_and_cost_nothing_else(tmp_path: Path) -> None:
    content = b'text,label\na,1\n\xff,1\n\n"b\nb",1\nc,1,2\n"open,1\nd,1\n,1\n'
    got = rows_of(tmp_path, content)
    assert got[:4] == [
        (2, "a", "1", None),
        (3, None, None, "byte 0xff is not utf-8"),
        (5, "b\nb", "1", None),
        (7, None, None, "3 fields where the header has 2"),
    ]
    assert got[4][:3] == (8, None, None)
    assert got[5:] == [(9, "d", "1", None), (10, "", "1", None)]


def test_bad_json_rows(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a", "label": true}', b"", b"{bad", b"[1]", b'{"text": {}, "label": 1}', b'{"text": "b"}',
        b'{"text": "\\ud800", "label": 1}', b'{"text": "\xff", "label": 1}', b'{"text": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ]  # fmt: skip
    got = rows_of(tmp_path, b"\n".join(lines), "jsonl")
    assert [g[0] for g in got] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert got[0] == (1, "a", "true", None)
    assert got[4] == (6, "b", None, None)
    starts = ["not JSON", "not a JSON object", "text or label is not a plain", "lone surr", "byte 0xff is not utf-8"]
    errors = [g[3] or "" for g in got if g[3]]
    assert all(e.startswith(s) for e, s in zip(errors, [*starts, "not JSON", "not JSON"], strict=True)), errors


def test_text_columns_are_joined_in_order(tmp_path: Path) -> None:
    content = b"title,label,body\nT,x,B\n ,x,B\n,x,\n"
    assert [r[1] for r in rows_of(tmp_path, content, text=["body", "title"])] == ["B T", "B", None]


def test_headerless_file_takes_names_from_the_config(tmp_path: Path) -> None:
    columns = ["label", "title", "text"]
    assert rows_of(tmp_path, b"3,t,a\n4,t,b\n", columns=columns) == [(1, "a", "3", None), (2, "b", "4", None)]
    with pytest.raises(UserError, match=r"names 3 columns, its first line has 2 fields"):
        rows_of(tmp_path, b"3,a\n", columns=columns)


def test_orange_tab_has_three_header_lines(tmp_path: Path) -> None:
    head = b"text\tlabel\n"
    assert rows_of(tmp_path, head + b"string\td\nmeta\tclass\nhi\td\n", "tab") == [(4, "hi", "d", None)]
    assert rows_of(tmp_path, head + b"hi\td\n", "tab") == [(2, "hi", "d", None)]
    blank = rows_of(tmp_path, head + b"\t\nfoo\tx\nbar\ty\n", "tab")
    assert [r[1] for r in blank] == ["", "foo", "bar"]


def test_chunks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_CHARS", 12)
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "a,b\n" * 7)
    tables = list(read(Source(str(path), "x", "train", "csv", 1), load().data))
    assert [t.num_rows for t in tables] == [3, 3, 1]


def test_format_goes_by_the_name_unless_told() -> None:
    assert [format_of(u, "auto") for u in ("a.CSV", "s3://b/x.ndjson", "a.b.pq")] == ["csv", "jsonl", "parquet"]
    assert format_of("a.txt", "tsv") == "tsv"
    for uri in ("a.txt", "my.folder/train"):
        with pytest.raises(UserError, match="cannot tell the format"):
            format_of(uri, "auto")


JSON_ROWS = [{"text": "a", "label": 1}, {"label": "2", "text": "b"}]


def test_a_json_array_is_read_element_by_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [(1, "a", "1", None), (2, "b", "2", None)]
    for indent in (None, 2):
        assert rows_of(tmp_path, json.dumps(JSON_ROWS, indent=indent).encode(), "json") == whole
    assert rows_of(tmp_path, "\n".join(map(json.dumps, JSON_ROWS)).encode(), "json") == whole
    got = rows_of(tmp_path, b'[{"text": "a", "label": 1}, {"text": oops}, {"text": "c", "label": 3}, 7]', "json")
    assert [(n, text, label) for n, text, label, _ in got] == [
        (1, "a", "1"),
        (2, None, None),
        (3, "c", "3"),
        (4, None, None),
    ]
    assert (got[1][3] or "").startswith("not JSON")
    assert got[3][3] == "not a JSON object"
    for array, texts in (
        (b'[{"text":"a","label":"x"}]\n[{"text":"b","label":"y"}]', ["a", "b"]),
        (b'[{"text":bad,"m":[{"k":1},{"k":2}]},{"text":"b","label":1},{"text":"c","label":2}]', [None, "b", "c"]),
        (b'[{"text":"a","label":1}, None, {"text":"b","label":2}, {"text":"c","label":2}]', ["a", None, "b", "c"]),
        (b'[{"text":"a","label":1}, ], {"text":"b","label":2}]', ["a", None, "b"]),
        (b'[{"text":"a", {"text":"b","label":1}, {"text":"c","label":1}]', [None, "c"]),
    ):
        assert [r[1] for r in rows_of(tmp_path, array, "json")] == texts, array
    many = [{"text": f"text {i} " * (i % 50), "label": i % 3} for i in range(60_000)]
    (tmp_path / "many.json").write_text(json.dumps(many))
    read_back = read_rows(tmp_path / "many.json", "json")
    assert [r[0] for r in read_back] == list(range(1, 60_001))
    assert [r[1] for r in read_back] == [m["text"] for m in many]


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    kind = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[suffix]
    generator = random.Random(1)
    rows = "".join(f"{generator.getrandbits(400):x},{i % 2}\n" for i in range(20_000))
    path = tmp_path / f"x.csv.{suffix}"
    with pa.output_stream(path, compression=kind) as f:
        f.write(f"text,label\n{rows}".encode())
    assert format_of(str(path), "auto") == "csv"
    whole = read_rows(path, "csv")
    assert len(whole) == 20_000
    archive = path.read_bytes()
    for damage in (archive[:-2000], archive[:-400_000] + b"\xff" * 50 + archive[-400_000:]):
        path.write_bytes(damage)
        got = read_rows(path, "csv")
        assert 2_000 < len(got) < 20_000
        assert (got[-1][3] or "").startswith("the file breaks off here")
        sure = min(len(got) - 1, 10_000)  # decompressors can take damage for text at first
        assert got[:sure] == whole[:sure]
        if kind != "zstd":
            lines = before_the_damage(damage, kind).count(b"\n")
            assert len(got) == lines, "every line that can be decompressed, and the one where it breaks off"
    path.write_bytes(b"text,label\na,b\n")
    with pytest.raises(UserError, match=f"is not a {kind} file"):
        read_rows(path, "csv")


def before_the_damage(archive: bytes, kind: str) -> bytes:
    """What the standard library can decompress of it."""
    decompressor: Any = zlib.decompressobj(31) if kind == "gzip" else bz2.BZ2Decompressor()
    content = bytearray()
    with contextlib.suppress(OSError, zlib.error):
        for i in range(len(archive)):
            content += decompressor.decompress(archive[i : i + 1])
    return bytes(content)


@pytest.mark.parametrize(("name", "first"), [("x.csv.gz", 2), ("x.jsonl.gz", 1), ("x.json.gz", 1)])
def test_a_small_archive_that_breaks_off_gives_its_first_rows(tmp_path: Path, name: str, first: int) -> None:
    generator = random.Random(2)
    rows = [{"text": f"{generator.getrandbits(200):x}", "label": "ab"[i % 2]} for i in range(50)]
    if name == "x.csv.gz":
        content = "text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows)
    else:
        content = json.dumps(rows) if name == "x.json.gz" else "".join(json.dumps(r) + "\n" for r in rows)
    path = tmp_path / name
    archive = gzip.compress(content.encode())
    format = format_of(str(path), "auto")
    for cut in (len(archive) - 1, len(archive) - 9, len(archive) // 2, 200):
        path.write_bytes(archive[:cut])
        got = read_rows(path, format)
        assert [r[1] for r in got[:-1]] == [r["text"] for r in rows[: len(got) - 1]]
        assert [r[0] for r in got] == list(range(first, first + len(got)))
        assert (got[-1][3] or "").startswith("the file breaks off here: ")
    assert len(got) > 1
    for cut in (12, 30):
        path.write_bytes(archive[:cut])
        with pytest.raises(UserError, match=r"x\.\w+\.gz.*(damaged|none of its first)"):
            read_rows(path, format)


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 80_000:
                raise OSError(5, "zlib: the disk says no")
            return super().read(size)

    generator = random.Random(2)
    text = "text,label\n" + "".join(f"{generator.getrandbits(400):x},{i % 2}\n" for i in range(3_000))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = pa.table({"text": text.split("\n")[1:-1], "label": [1] * 3_000})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=500)
    for name, format in (("x.csv.gz", "csv"), ("x.parquet", "parquet")):
        content, config = (tmp_path / name).read_bytes(), load().data
        source = Source(str(tmp_path / name), name, "train", format, len(content))
        check(source, config)
        with monkeypatch.context() as patch:
            for opener in ("open_input", "open_random"):
                patch.setattr(Place, opener, lambda self, content=content: Failing(content))
            if format == "parquet":  # whose footer, read first, lies at the end
                patch.setattr(Failing, "read", partialmethod(fail_before, len(content) - 20_000))
            with pytest.raises(WorkFailed, match=r"x\.\w+.* cannot be read: .*the disk says no"):
                list(read(source, config))


def fail_before(file: io.BytesIO, limit: int, size: int | None = -1) -> bytes:
    if file.tell() < limit:
        raise OSError(5, "the disk says no")
    return io.BytesIO.read(file, size)


def test_a_damaged_row_group_costs_its_own_rows_and_each_is_accounted_for(tmp_path: Path) -> None:
    generator = random.Random(2)
    rows = [f"{generator.getrandbits(400):x}" for _ in range(9_000)]
    path = tmp_path / "x.parquet"
    for compression in ("zstd", "snappy"):
        table = pa.table({"text": rows, "label": ["ab"[i % 2] for i in range(9_000)]})
        pq.write_table(table, path, compression=compression, row_group_size=3_000, data_page_size=50_000)
        whole = read_rows(path, "parquet")
        content, metadata = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
        for group, share in ((1, 0.0), (1, 0.7), (2, 0.5)):
            column = metadata.row_group(group).column(0)
            start = column.dictionary_page_offset or column.data_page_offset
            at = int(start + share * column.total_compressed_size)
            path.write_bytes(content[:at] + b"\xff" * 200 + content[at + 200 :])
            got = read_rows(path, "parquet")
            assert [r[0] for r in got] == list(range(1, 9_001))
            bad = [r for r in got if r[3]]
            assert 0 < len(bad) <= 3_000
            assert all((r[3] or "").startswith(f"row group {group} is damaged: ") for r in bad)
            assert {(r[0] - 1) // 3_000 for r in bad} == {group}
            assert [r for r in got if not r[3]] == [r for r in whole if r[0] not in {b[0] for b in bad}]
        path.write_bytes(content[:-8] + b"\xff\xff\x00\x00PAR1")
        with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file, or its footer is damaged"):
            read_rows(path, "parquet")


@pytest.mark.parametrize("piece", ["]", "}", "{ }, {", "{ {}, ", '\\"', '{"a" ', '"', "[{", '" '])
def test_broken_json_arrays_do_not_take_forever(piece: str, tmp_path: Path) -> None:
    start = b'[{"text": "a", "label": 1}, '
    got = rows_of(tmp_path, start + piece.encode() * 30_000, "json")
    assert got[0] == (1, "a", "1", None)
    assert len(got) > 1


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for label, texts in {"sport": ["a goal", ""], "money": ["a bank\nfails"]}.items():
        (tmp_path / "news" / label).mkdir(parents=True)
        for i, text in enumerate(texts):
            (tmp_path / "news" / label / f"{i}.txt").write_text(text)
    (tmp_path / "news" / "sport" / "9.txt").write_bytes(b"\xff")
    config = load().data
    sources = find([(str(tmp_path / "news"), "train")], config)
    assert [(s.name, s.format) for s in sources] == [("money", "txt"), ("sport", "txt")]
    rows = [row for s in sources for t in read(s, config) for row in t.to_pylist()]
    assert [(r["row"], r["text"], r["label"], r["error"]) for r in rows] == [
        (1, "a bank\nfails", "money", None),
        (1, "a goal", "sport", None),
        (2, "", "sport", None),
        (3, None, None, "9.txt: byte 0xff is not utf-8"),
    ]
    (only,) = find([(str(tmp_path / "news" / "sp*" / "0.txt"), "train")], config)
    assert [r["text"] for t in read(only, config) for r in t.to_pylist()] == ["a goal"]
    with pytest.raises(UserError, match="cannot tell the format"):
        find([(str(tmp_path / "news" / "sport"), "train")], config)
    before = content(sources[0])
    (tmp_path / "news" / "money" / "0.txt").write_text("another bank")
    assert content(sources[0]) != before
    (tmp_path / "news" / "sport" / "5.TXT").write_text("another goal")
    assert len(find([(str(tmp_path / "news"), "train")], config)[1].files) == 4


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"a\.csv is named twice"):
        find([(str(tmp_path / "a.csv"), "train"), (str(tmp_path / "*.csv"), "test")], load().data)


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
