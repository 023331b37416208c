"""The first and the second pass of prepare, on tables small enough to check by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import load
from pipeline.data import dedup, first_pass, near_pass, reject, second_pass
from pipeline.data.config import DataConfig
from pipeline.data.exchange import ROWS
from pipeline.data.job import shard_count
from pipeline.data.layout import block_bytes
from pipeline.data.parsers import CHUNK
from pipeline.data.rank import rank
from pipeline.data.read import Source
from pipeline.data.split import HashSketch
from pipeline.data.tokenize import TextTokenizer, train_wordpiece
from pipeline.errors import UserError

SOURCES = [Source(f"/{s}.csv", f"{s}.csv", s, "csv", 1) for s in ("train", "validation", "test")]
CHUNK_SCHEMA = pa.schema([("source", pa.int32()), *CHUNK])
Row = tuple[int, int, "str | None", "str | None", "str | None"] | tuple[Any, ...]


def data(**changes: Any) -> DataConfig:
    return load(flags={f"data.{k}": v for k, v in changes.items()}).data


def cleaned(rows: list[Row], **changes: Any) -> tuple[pa.Table, dict[str, Any]]:
    columns = list(zip(*rows, strict=True))
    if len(columns) < len(CHUNK_SCHEMA):
        columns.append((None,) * len(rows))
    chunk = pa.table([pa.array(c, f.type) for c, f in zip(columns, CHUNK_SCHEMA, strict=True)], schema=CHUNK_SCHEMA)
    return first_pass.clean_rows(chunk, SOURCES, data(**changes))


def finished(
    table: pa.Table,
    labels: list[str],
    bounds: dict[str, tuple[int, int]],
    tokenizer: TextTokenizer,
    policy: str = "keep",
) -> second_pass.Finished:
    ranked = rank(table, SOURCES, labels, bounds, policy)
    return second_pass.finish_rows(table, SOURCES, labels, ranked, tokenizer, near_pass.FALLEN.empty_table())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(["good news bad news"] * 3, 100, folder)
    return TextTokenizer(folder, 8)


@pytest.mark.parametrize(
    ("raw", "name", "reason"),
    [
        (" Sports ", "Sports", None),
        ("1", "World", None),
        ("2", "Sports", None),
        ("0", "0", reject.UNKNOWN_LABEL),
        ("3", "3", reject.UNKNOWN_LABEL),
        ("1.5", "1.5", reject.UNKNOWN_LABEL),
        ("sports", "sports", reject.UNKNOWN_LABEL),
        (" ", None, reject.MISSING_LABEL),
        (None, None, reject.MISSING_LABEL),
    ],
)
def test_label_names(raw: str | None, name: str | None, reason: str | None) -> None:
    assert first_pass.label_name(raw, data(labels=["World", "Sports"], labels_start=1)) == (name, reason)


def test_without_names_a_label_is_what_was_read() -> None:
    assert first_pass.label_name(" 7 ", data()) == ("7", None)
    assert first_pass.label_name("7.0", data()) == ("7", None)  # as in Parquet, where the column is one of numbers
    assert first_pass.label_name("7.50", data()) == ("7.50", None)


def test_names_that_are_numbers_are_found_however_they_are_written() -> None:
    stars = data(labels=["0.5", "1.0", "1.5", "2.0"])
    for raw, name in {"0.5": "0.5", "1.0": "1.0", "1": "1.0", "2": "2.0", "2.00": "2.0"}.items():
        assert first_pass.label_name(raw, stars) == (name, None)


@pytest.mark.parametrize("labels", [["1", "2", "3"], ["World", "0"]])
def test_names_that_are_the_integers_of_others_are_refused(labels: list[str]) -> None:
    with pytest.raises(UserError, match="is the integer of another class"):
        data(labels=labels)
    assert first_pass.label_name("2", data(labels=["1", "2"], labels_start=1)) == ("2", None)


def test_clean_rows_keeps_every_row_with_its_reason() -> None:
    table, facts = cleaned(
        [
            (0, 2, "a &lt; b", "1", None),
            (0, 3, None, None, "3 fields"),
            (0, 4, " ", "1", None),
            (0, 5, "text", "", None),
            (0, 6, "<br>", "1", None),
            (0, 7, "x", "1", None),
            (0, 8, "text", "9", None),
            (2, 9, "y" * 30, "0", None),
        ],
        labels=["n", "y"],
        max_chars=10,
    )
    assert table.schema == ROWS
    assert table["row"].to_pylist() == list(range(2, 10))
    assert table["reason"].to_pylist() == [
        None,
        reject.UNREADABLE,
        reject.MISSING_TEXT,
        reject.MISSING_LABEL,
        reject.EMPTY,
        reject.TOO_SHORT,
        reject.UNKNOWN_LABEL,
        None,
    ]
    assert set(table["reason"].to_pylist()) - {None} <= set(reject.REASONS)
    assert table["detail"].to_pylist()[1] == "3 fields"
    assert table["text"].to_pylist()[0] == "a < b"
    assert table["text"].to_pylist()[-1] == "y" * 10
    assert facts["read"] == 8
    assert sum(facts["rejected"].values()) == 6
    assert facts["cut"] == 1
    assert facts["rules"]["entities"] == 1


def test_class_hashes_take_rows_of_train_files_still_in_the_running() -> None:
    table, _ = cleaned([(0, 2, "one", "a", None), (0, 3, "ONE", "a", None), (2, 2, "two", "a", None),
                        (0, 4, "", "a", None), (0, 5, "three", "b", None)])  # fmt: skip
    hashes = first_pass.class_hashes(table, SOURCES)
    assert {k: len(v) for k, v in hashes.items()} == {"a": 2, "b": 1}
    assert hashes["a"][0] == hashes["a"][1] == np.frombuffer(dedup.text_key("one"), "<u8")[1]


def test_finish_rows_settles_duplicates_and_labels(tokenizer: TextTokenizer) -> None:
    table, _ = cleaned(
        [
            (0, 2, "good news", "a", None),
            (0, 3, "GOOD news", "a", None),
            (0, 4, "bad news", "b", None),
            (0, 5, "leaked", "a", None),
            (0, 6, "disputed", "a", None),
            (0, 7, "disputed", "b", None),
            (1, 2, "leaked", "a", None),
            (2, 2, "leaked", "a", None),
            (2, 3, "news of another class", "c", None),
            (2, 4, "bad", None, None),
        ]
    )
    done = finished(table, ["a", "b"], {}, tokenizer)
    kept = {s: done.tables[s]["id"].to_pylist() for s in ("train", "validation", "test")}
    assert kept == {
        "train": ["train.csv:2", "train.csv:4", "train.csv:6"],
        "validation": [],
        "test": ["test.csv:2"],
    }
    assert done.tables["train"]["label"].to_pylist() == [0, 1, 0]
    duplicates = {d["id"]: (d["kept_id"], d["kept_split"], d["reason"]) for d in done.tables["duplicates"].to_pylist()}
    assert duplicates == {
        "train.csv:3": ("train.csv:2", "train", dedup.SAME),
        "train.csv:5": ("test.csv:2", "test", dedup.LEAK),
        "train.csv:7": ("train.csv:6", "train", dedup.CONFLICT),
        "validation.csv:2": ("test.csv:2", "test", dedup.LEAK),
    }
    rejected = {r["id"]: (r["stage"], r["reason"]) for r in done.tables["rejected"].to_pylist()}
    assert rejected == {
        "test.csv:3": ("label", reject.NOT_IN_TRAIN),
        "test.csv:4": ("label", reject.MISSING_LABEL),
    }
    assert done.facts["unlearnable"] == {"c": 1}


def test_ledger_adds_up(tokenizer: TextTokenizer) -> None:
    words = ["good", "bad", "news", "<br>", "", "x"]
    rows: list[Row] = [
        (i % 3, i + 2, " ".join(words[(i * k) % 6] for k in (1, 2, 3)), f"{i % 5 % 3}" if i % 7 else None,
         "broken" if i % 11 == 0 else None)
        for i in range(200)
    ]  # fmt: skip
    table, _ = cleaned(rows)
    sketch = HashSketch()
    for label, hashes in first_pass.class_hashes(table, SOURCES).items():
        sketch.add(label, hashes)
    done = finished(table, sorted(sketch.smallest), sketch.bounds(0.2, 0.2), tokenizer)
    facts = done.facts
    total = sum(facts["kept"].values()) + sum(facts["rejected"].values()) + sum(facts["duplicates"].values())
    assert total == facts["read"] == 200
    ids = [i for t in done.tables.values() for i in t["id"].to_pylist()]
    assert len(set(ids)) == 200
    texts = Counter(x.casefold() for s in facts["kept"] for x in done.tables[s]["text"].to_pylist())
    assert set(texts.values()) == {1}
    for split, n in facts["kept"].items():
        assert done.tables[split].num_rows == n == sum(facts["lengths"][split].values())
        assert sum(facts["classes"][split].values()) == n


def test_missing_texts_are_filled_from_a_column_then_by_a_placeholder() -> None:
    rows: list[Row] = [
        (0, 2, " ", "a", None, "from title"),
        (0, 3, None, "a", None, None),
        (0, 4, "text", "a", None, "unused"),
        (0, 5, None, None, "broken", "unused"),
    ]
    table, facts = cleaned(rows, fill_from="title", placeholder="no text")
    assert table["text"].to_pylist() == ["from title", "no text", "text", ""]
    assert facts["filled"] == {"column 'title'": 1, "placeholder": 1}
    assert facts["rejected"] == {reject.UNREADABLE: 1}
    table, facts = cleaned(rows, fill_from="title")
    assert table["reason"].to_pylist() == [None, reject.MISSING_TEXT, None, reject.UNREADABLE]


@pytest.mark.parametrize(
    ("policy", "kept", "rejected"),
    [("keep", [2, 5], []), ("majority", [3], [5, 6]), ("drop", [], [2, 3, 4, 5, 6])],
)
def test_conflicts(policy: str, kept: list[int], rejected: list[int], tokenizer: TextTokenizer) -> None:
    labels = ["a", "b", "b", "a", "b"]
    texts = ["news"] * 3 + ["good"] * 2
    table, _ = cleaned([(0, i + 2, t, x, None) for i, (t, x) in enumerate(zip(texts, labels, strict=True))])
    done = finished(table, ["a", "b"], {}, tokenizer, policy)
    assert done.tables["train"]["id"].to_pylist() == [f"train.csv:{i}" for i in kept]
    assert done.tables["rejected"]["id"].to_pylist() == [f"train.csv:{i}" for i in rejected]
    assert set(done.tables["rejected"]["stage"].to_pylist()) <= {"duplicates"}
    assert sum(t.num_rows for t in done.tables.values()) == 5


def test_a_training_row_cannot_unseat_a_test_row(tokenizer: TextTokenizer) -> None:
    table, _ = cleaned([(0, 2, "news", "a", None), (0, 3, "news", "a", None), (2, 2, "news", "b", None)])
    for policy in ("keep", "majority", "drop"):
        done = finished(table, ["a", "b"], {}, tokenizer, policy)
        assert done.tables["test"]["id"].to_pylist() == ["test.csv:2"]
        assert done.facts["duplicates"] == {dedup.CONFLICT: 2}


def test_pieces_to_read_stay_few_however_much_there_is() -> None:
    """Parts of the first pass times shards are what the later passes read."""
    assert shard_count(0, 0, None) == 2
    assert shard_count(33 << 20, 33 << 20, None) == 3
    assert shard_count(256 << 30, 256 << 30, None) == 1024
    assert shard_count(256 << 30, 1 << 40, None) == 2048, "no more than half a gigabyte of text in one"
    assert shard_count(256 << 30, 256 << 30, 16) == 16384, "the user has said so"
    for cpus in (2, 64, 4096):
        for raw in (16 << 30, 64 << 30):
            assert all(raw // size <= 1024 for size in block_bytes(raw, cpus))
        assert block_bytes(1 << 40, cpus) == (64 << 20, 64 << 20)
    assert block_bytes(60 << 20, 2) == (5 << 20, 16 << 20)
    assert block_bytes(1 << 20, 2) == (1 << 20, 16 << 20)
