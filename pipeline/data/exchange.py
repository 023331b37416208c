"""The exchange between the two passes of ``prepare``: rows meet by the hash of their text, through storage.

The first pass writes each block of cleaned rows as one Arrow file with a record batch per bucket; the second
reads one bucket from all of them. A file's footer says where each batch lies, so only that bucket is read. It
is the shuffle of MapReduce: plain tasks on both sides, memory bounded by a block or a bucket, nothing kept in
the object store.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.data.dedup import halves_of
from pipeline.errors import WorkFailed
from pipeline.storage import Place

# One row between the passes. 'reason' is null for rows still in the running.
ROWS = pa.schema(
    [
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("key", pa.binary(16)),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def write_part(rows: pa.Table, buckets: int, place: Place) -> None:
    """Write rows (schema ``ROWS``) as one file with a record batch per bucket."""
    rows = rows.combine_chunks()
    key = rows["key"].chunk(0) if rows.num_rows else pa.array([], pa.binary(16))
    bucket = (halves_of(key)[:, 0] % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    counts = np.bincount(bucket, minlength=buckets)
    ordered = rows.take(pa.array(order)).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, ROWS, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        start = 0
        for count in counts.tolist():
            piece = ordered.slice(start, count).combine_chunks()
            writer.write_batch(piece.to_batches()[0] if count else _empty())
            start += count
    place.write_bytes(sink.getvalue(), durable=False)


def read_bucket(folder: Place, bucket: int) -> pa.Table:
    """All rows of one bucket, ordered by source and row."""
    batches = []
    for part in folder.files(".arrow"):
        try:
            with part.open_random() as f:
                batches.append(pa.ipc.open_file(f).get_batch(bucket))
        except pa.ArrowInvalid as e:  # parts are not synced to the disk one by one: the machine went down
            raise WorkFailed(f"{part} is damaged: remove {folder.uri.rsplit('/', 1)[0]} and run again") from e
    table = pa.Table.from_batches(batches, ROWS)
    return table.sort_by([("source", "ascending"), ("row", "ascending")])


def _empty() -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in ROWS], schema=ROWS)
