"""How the passes of ``prepare`` are laid out: on Ray Data, or in this process when there is little to do.

Both give the functions of the passes the same work; what comes out does not depend on which one ran, nor on how
blocks were cut or which worker finished first. Starting Ray and its workers takes some eight seconds on a laptop,
as long as one core needs for a quarter of a million news texts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline import cluster
from pipeline.data.config import DataConfig
from pipeline.data.parsers import compression
from pipeline.data.read import Source, read

# Blocks between reader and cleaners: small enough that every core gets several, large enough that the tenth of a
# second that Ray Data takes to start the next task does not count.
BLOCK_BYTES = (1 << 20, 16 << 20)
BLOCKS_PER_CPU = 6
FILES_PER_CPU = 2  # from which on whole files are handed out, rather than their blocks
PACKED = 4  # how much larger a compressed file is taken to be when it is read

Clean = Callable[[pa.Table], pa.Table]
Step = Callable[[int], None]


class Layout(Protocol):
    """What ``prepare`` needs done."""

    def clean(self, sources: Sequence[Source], data: DataConfig, clean: Clean) -> Iterator[dict[str, Any]]:
        """Read all sources, give blocks of their rows to ``clean``, and yield the rows of what it returns."""

    def each(self, buckets: Sequence[int], step: Step) -> Iterator[int]:
        """Call ``step`` for each bucket, and yield the buckets as they are done."""


def raw_bytes(sources: Sequence[Source]) -> int:
    """About how many bytes the sources hold once read."""
    return sum(s.size * (PACKED if compression(s.uri) or s.format == "parquet" else 1) for s in sources)


def choose(sources: Sequence[Source], data: DataConfig, address: str | None) -> Layout:
    """Ray Data on a cluster, or where there is more than ``data.in_process_mb``; else this process."""
    if cluster.is_named(address) or raw_bytes(sources) > data.in_process_mb << 20:
        cluster.connect(address)
        return OnRay()
    return InProcess()


class InProcess:
    """One thread, no Ray."""

    def clean(self, sources: Sequence[Source], data: DataConfig, clean: Clean) -> Iterator[dict[str, Any]]:
        """As of ``Layout``."""
        with _frozen():
            for i, source in enumerate(sources):
                for block in _blocks(i, source, data):
                    yield from clean(block).to_pylist()

    def each(self, buckets: Sequence[int], step: Step) -> Iterator[int]:
        """As of ``Layout``."""
        with _frozen():
            for bucket in buckets:
                step(bucket)
                yield bucket


class OnRay:
    """Streaming tasks of Ray Data on the cluster this process is connected to."""

    def clean(self, sources: Sequence[Source], data: DataConfig, clean: Clean) -> Iterator[dict[str, Any]]:
        """As of ``Layout``."""
        cpus = max(1, cluster.resources().cpus)
        files = cluster.data().from_items(list(range(len(sources))), override_num_blocks=len(sources))
        arrow: dict[str, Any] = {"batch_format": "pyarrow"}

        def read_and_clean(batch: pa.Table) -> Iterator[pa.Table]:
            with _frozen():
                for i in batch["item"].to_pylist():
                    yield from map(clean, _blocks(i, sources[i], data))

        def read_file(batch: pa.Table) -> Iterator[pa.Table]:
            with _frozen():
                for i in batch["item"].to_pylist():
                    yield from _numbered(i, sources[i], data)

        def clean_block(block: pa.Table) -> pa.Table:
            with _frozen():
                return clean(block)

        sizes = [raw_bytes([s]) for s in sources]
        if max(sizes) * FILES_PER_CPU * cpus <= sum(sizes):  # every core finds files of its own: nothing is handed over
            yield from files.map_batches(read_and_clean, batch_size=1, num_cpus=1, **arrow).iter_rows()
            return
        wanted = sum(sizes) // (BLOCKS_PER_CPU * cpus)
        files.context.target_max_block_size = min(max(wanted, BLOCK_BYTES[0]), BLOCK_BYTES[1])
        # CPU shares of their own keep Ray Data from fusing the reader with the cleaner: one large file is read
        # by one task and cleaned by all cores. Of the CPUs, Ray Data holds a quarter back for the reader: shares
        # of 0.7 fill the rest with one cleaner a core.
        readers = min(len(sources), max(1, cpus // 4))
        chunks = files.map_batches(read_file, batch_size=1, num_cpus=0.25, concurrency=readers, **arrow)
        yield from chunks.map_batches(clean_block, batch_size=None, num_cpus=0.7, **arrow).iter_rows()

    def each(self, buckets: Sequence[int], step: Step) -> Iterator[int]:
        """As of ``Layout``."""

        def do(batch: pa.Table) -> pa.Table:
            with _frozen():
                for bucket in batch["item"].to_pylist():
                    step(bucket)
            return batch

        items = cluster.data().from_items(list(buckets), override_num_blocks=len(buckets))
        for row in items.map_batches(do, batch_format="pyarrow", batch_size=1, num_cpus=1).iter_rows():
            yield row["item"]


def _numbered(index: int, source: Source, data: DataConfig) -> Iterator[pa.Table]:
    """The chunks of a source with a first column that says which one it is."""
    for chunk in read(source, data):
        yield chunk.add_column(0, "source", pa.array(np.full(chunk.num_rows, index, np.int32)))


def _blocks(index: int, source: Source, data: DataConfig) -> Iterator[pa.Table]:
    """The chunks of a source put together to blocks worth a part of their own."""
    waiting: list[pa.Table] = []
    for chunk in _numbered(index, source, data):
        waiting.append(chunk)
        if sum(c.nbytes for c in waiting) >= BLOCK_BYTES[1]:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


@contextmanager
def _frozen() -> Iterator[None]:
    """No garbage collection of what is loaded already: rows are many short-lived lists, and trigger it all the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
