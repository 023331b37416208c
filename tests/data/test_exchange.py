"""The exchange: every row comes out once, in the bucket of its text, in order."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.data import exchange
from pipeline.data.dedup import halves_of, text_key
from pipeline.data.exchange import ROWS, read_bucket
from pipeline.storage import Place


def rows(numbers: list[int], source: int = 0) -> pa.Table:
    n = len(numbers)
    texts = [f"text {i % 10}" for i in numbers]
    columns = [[source] * n, numbers, texts, ["a"] * n, [text_key(t) for t in texts], [None] * n,
               [None] * n]  # fmt: skip
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, ROWS, strict=True)], schema=ROWS)


def write_part(table: pa.Table, buckets: int, place: Place) -> None:
    keys = table["key"].combine_chunks()
    key = keys.chunk(0) if isinstance(keys, pa.ChunkedArray) and keys.num_chunks else keys
    hashes = halves_of(key)[:, 0] if len(key) else halves_of(pa.array([], pa.binary(16)))[:, 0]
    exchange.write_part(table, exchange.bucket_of(hashes, buckets), buckets, place)


def test_rows_meet_by_text_whatever_the_parts(tmp_path: Path) -> None:
    one, two = Place.of(tmp_path) / "one", Place.of(tmp_path) / "two"
    write_part(pa.concat_tables([rows(list(range(40))), rows(list(range(20)), 1)]), 4, one / "a.arrow")
    write_part(rows(list(range(39, 25, -1))), 4, two / "z.arrow")
    write_part(pa.concat_tables([rows(list(range(20)), 1), rows(list(range(26)))]), 4, two / "b.arrow")
    write_part(rows([]), 4, two / "empty.arrow")
    buckets = [read_bucket(one, b) for b in range(4)]
    assert [read_bucket(two, b).to_pylist() for b in range(4)] == [b.to_pylist() for b in buckets]
    assert sum(b.num_rows for b in buckets) == 60
    texts = [set(b["text"].to_pylist()) for b in buckets]
    assert sum(len(t) for t in texts) == len(set().union(*texts)) == 10
    for bucket in buckets:
        assert bucket.schema == ROWS
        places = list(zip(bucket["source"].to_pylist(), bucket["row"].to_pylist(), strict=True))
        assert places == sorted(places)


def test_no_parts_make_an_empty_bucket(tmp_path: Path) -> None:
    assert read_bucket(Place.of(tmp_path), 0).num_rows == 0
