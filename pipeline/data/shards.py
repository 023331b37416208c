"""Parquet files of the prepared data and of its work folder, each written whole or not at all."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Place


def shard_name(bucket: int) -> str:
    """The name of a bucket's file in each folder."""
    return f"shard-{bucket:05d}.parquet"


def write_parquet(table: pa.Table, place: Place) -> None:
    """Write one Parquet file; a reader sees all of it or none."""
    sink = pa.BufferOutputStream()
    # Of texts and ids no two are equal, and nobody filters by them: neither dictionaries nor statistics are worth a
    # thing. Token ids are small numbers: their upper bytes, put together, pack away to nothing.
    few = [n for n in table.column_names if n in ("label", "split", "stage", "reason", "kept_label", "kept_split")]
    ids = {"input_ids.list.element": "BYTE_STREAM_SPLIT"} if "input_ids" in table.column_names else None
    pq.write_table(table, sink, compression="zstd", use_dictionary=few, write_statistics=few, column_encoding=ids)
    place.write_bytes(sink.getvalue())


def read_parquet(place: Place) -> pa.Table:
    """Read one Parquet file."""
    with place.open_random() as f:
        return pq.ParquetFile(f).read()
