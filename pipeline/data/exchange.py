"""The exchange between the passes of ``prepare``: rows meet by a hash, that of their text for one, through storage.

One pass writes each block of rows as one Arrow file with a record batch per bucket; the next one reads one bucket
from all of them. A file's footer says where each batch lies, so only that bucket is read. It
is the shuffle of MapReduce: plain tasks on both sides, memory bounded by a block or a bucket, nothing kept in
the object store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import WorkFailed
from pipeline.storage import Place

REQUESTS = 16  # at once, to an object store

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


def bucket_of(hashes: npt.NDArray[np.uint64], buckets: int) -> npt.NDArray[np.int64]:
    """The bucket of each hash."""
    return (hashes % np.uint64(buckets)).astype(np.int64)


def write_part(rows: pa.Table, bucket: npt.NDArray[np.int64], buckets: int, place: Place) -> None:
    """Write rows as one file with a record batch per bucket.

    Args:
        rows: of any schema.
        bucket: of each row, [rows].
        buckets: how many there are.
        place: the file.
    """
    order = np.argsort(bucket, kind="stable")
    counts = np.bincount(bucket, minlength=buckets)
    ordered = rows.combine_chunks().take(pa.array(order)).combine_chunks()
    empty = pa.RecordBatch.from_pylist([], rows.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        start = 0
        for count in counts.tolist():
            writer.write_batch(ordered.slice(start, count).combine_chunks().to_batches()[0] if count else empty)
            start += count
    place.write_bytes(sink.getvalue(), durable=False)


def read_bucket(folder: Place, bucket: int, schema: pa.Schema = ROWS) -> pa.Table:
    """All rows of one bucket, part after part; those of schema ``ROWS`` ordered by source and row."""
    parts = folder.files(".arrow")

    def piece(part: Place) -> pa.RecordBatch:
        try:
            with part.open_random() as f:
                return pa.ipc.open_file(f).get_batch(bucket)
        except pa.ArrowInvalid as e:  # parts are not synced to the disk one by one: the machine went down
            raise WorkFailed(f"{part} is damaged: remove {folder.parent} and run again") from e

    if folder.is_local:
        batches = [piece(part) for part in parts]
    else:  # four requests each, and nearly all of the time is waiting for an answer
        with ThreadPoolExecutor(REQUESTS) as pool:
            batches = list(pool.map(piece, parts))
    table = pa.Table.from_batches(batches, schema)
    return table.sort_by([("source", "ascending"), ("row", "ascending")]) if schema is ROWS else table
