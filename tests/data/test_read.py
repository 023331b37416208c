"""Readers: every format, and every way a row can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read_rows, rows_of

from pipeline.config import load
from pipeline.data import lines as module
from pipeline.data.read import Source, content, find, format_of, read
from pipeline.errors import UserError


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
