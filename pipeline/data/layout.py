"""How the passes of ``prepare`` are laid out: on Ray Data, or in this process when there is little to do.

Both give the functions of the passes the same work; what comes out does not depend on which one ran, nor on how
blocks were cut or which worker finished first. Starting Ray and its workers takes some eight seconds on a laptop,
as long as one core needs for a quarter of a million news texts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
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
# Each block ends as a part that every later task reads a piece of: where there would be more than so many they grow, as
# long as a worker has the memory for one, which takes some eight times its size.
MOST_PARTS = 1024
LARGEST_BLOCK = 64 << 20
CONNECTED_SECONDS = 0.3  # a Ray that runs already is reached within
START_BYTES = 32 << 20  # raw; a larger file would keep all other cores waiting
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


def block_bytes(raw: int, cpus: int) -> tuple[int, int]:
    """How large the blocks are that cleaners get.

    Args:
        raw: about how many bytes there are to clean in all.
        cpus: that clean.

    Returns:
        The bytes of a block of a file that all cores share, and the most of one of a file that a core has for itself.
    """
    most = max(BLOCK_BYTES[1], min(raw // MOST_PARTS, LARGEST_BLOCK))
    wanted = max(raw // (BLOCKS_PER_CPU * cpus), raw // MOST_PARTS)
    return min(max(wanted, BLOCK_BYTES[0]), most), most


def choose(sources: Sequence[Source], data: DataConfig, address: str | None) -> Layout:
    """Ray Data on a cluster, or where there is more than ``data.in_process_mb``; else this process."""
    if not cluster.is_named(address) and raw_bytes(sources) <= data.in_process_mb << 20:
        return InProcess()
    layout = OnRay(address)
    if cluster.is_named(address):
        layout.cpus()  # nobody there? Better told before any work than after
    return layout


class InProcess:
    """One thread, no Ray."""

    def clean(self, sources: Sequence[Source], data: DataConfig, clean: Clean) -> Iterator[dict[str, Any]]:
        """As of ``Layout``."""
        with _frozen():
            for i, source in enumerate(sources):
                for block in _blocks(i, source, data, BLOCK_BYTES[1]):
                    yield from clean(block).to_pylist()

    def each(self, buckets: Sequence[int], step: Step) -> Iterator[int]:
        """As of ``Layout``."""
        with _frozen():
            for bucket in buckets:
                step(bucket)
                yield bucket


class OnRay:
    """Streaming tasks of Ray Data on a cluster, or on a local Ray that is started when it is needed first.

    Args:
        address: the cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    def cpus(self) -> int:
        """How many CPUs there are; connects the first time."""
        return max(1, cluster.connect(self._address).cpus)

    def clean(self, sources: Sequence[Source], data: DataConfig, clean: Clean) -> Iterator[dict[str, Any]]:
        """As of ``Layout``."""
        # A local Ray takes seconds to start, most of them on one core: meanwhile a thread does the first files here.
        # (Not the other way round: the processes of a local Ray die with the thread that started them.)
        connected = Event()
        with ThreadPoolExecutor(1) as meanwhile, _frozen():
            early = meanwhile.submit(_until, connected, sources, data, clean)
            try:
                cpus = self.cpus()
            finally:
                connected.set()
            done, rows = early.result()
        yield from rows
        left = list(range(done, len(sources)))
        if not left:
            return
        sizes = [raw_bytes([sources[i]]) for i in left]
        shared, own = block_bytes(sum(sizes), cpus)
        files = cluster.data().from_items(left, override_num_blocks=len(left))
        arrow: dict[str, Any] = {"batch_format": "pyarrow"}

        def read_and_clean(batch: pa.Table) -> Iterator[pa.Table]:
            with _frozen():
                for i in batch["item"].to_pylist():
                    yield from map(clean, _blocks(i, sources[i], data, own))

        def read_file(batch: pa.Table) -> Iterator[pa.Table]:
            with _frozen():
                for i in batch["item"].to_pylist():
                    yield from _numbered(i, sources[i], data)

        def clean_block(block: pa.Table) -> pa.Table:
            with _frozen():
                return clean(block)

        if max(sizes) * FILES_PER_CPU * cpus <= sum(sizes):  # every core finds files of its own: nothing is handed over
            yield from files.map_batches(read_and_clean, batch_size=1, num_cpus=1, **arrow).iter_rows()
            return
        files.context.target_max_block_size = shared
        # CPU shares of their own keep Ray Data from fusing the reader with the cleaner: one large file is read
        # by one task and cleaned by all cores. Of the CPUs, Ray Data holds a quarter back for the reader: shares
        # of 0.7 fill the rest with one cleaner a core.
        readers = min(len(left), max(1, cpus // 4))
        chunks = files.map_batches(read_file, batch_size=1, num_cpus=0.25, concurrency=readers, **arrow)
        yield from chunks.map_batches(clean_block, batch_size=None, num_cpus=0.7, **arrow).iter_rows()

    def each(self, buckets: Sequence[int], step: Step) -> Iterator[int]:
        """As of ``Layout``."""

        def do(batch: pa.Table) -> pa.Table:
            with _frozen():
                for bucket in batch["item"].to_pylist():
                    step(bucket)
            return batch

        self.cpus()
        items = cluster.data().from_items(list(buckets), override_num_blocks=len(buckets))
        for row in items.map_batches(do, batch_format="pyarrow", batch_size=1, num_cpus=1).iter_rows():
            yield row["item"]


def _numbered(index: int, source: Source, data: DataConfig) -> Iterator[pa.Table]:
    """The chunks of a source with a first column that says which one it is."""
    for chunk in read(source, data):
        yield chunk.add_column(0, "source", pa.array(np.full(chunk.num_rows, index, np.int32)))


def _until(
    connected: Event, sources: Sequence[Source], data: DataConfig, clean: Clean
) -> tuple[int, list[dict[str, Any]]]:
    """Clean whole files, as long as there is no Ray: how many, and the rows that came out of it."""
    done, rows = 0, []
    connected.wait(CONNECTED_SECONDS)
    while not connected.is_set() and done < len(sources) and raw_bytes([sources[done]]) <= START_BYTES:
        for block in _blocks(done, sources[done], data, BLOCK_BYTES[1]):
            rows += clean(block).to_pylist()
        done += 1
    return done, rows


def _blocks(index: int, source: Source, data: DataConfig, size: int) -> Iterator[pa.Table]:
    """The chunks of a source put together to blocks of at least ``size`` bytes, each worth a part of its own."""
    waiting: list[pa.Table] = []
    held = 0
    for chunk in _numbered(index, source, data):
        waiting.append(chunk)
        held += chunk.nbytes
        if held >= size:
            block = pa.concat_tables(waiting)
            waiting, held = [], 0
            yield block
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
