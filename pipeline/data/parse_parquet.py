"""Parquet files, row group by row group: a damaged one costs its own rows, and each of them is accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.config import DataConfig
from pipeline.data.parsers import CHUNK_BYTES, CHUNK_ROWS, plain, table, wanted_columns
from pipeline.data.unpack import Watched
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place

# What pyarrow raises for a damaged file: it checks no more than it needs, so nearly anything can be the first sign.
DAMAGED = (OSError, ValueError, OverflowError, pa.ArrowException)


def parquet_schema(uri: str, config: DataConfig) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        UserError: it is none, or its footer is damaged.
    """
    with Watched(Place.of(uri).open_random()) as f:
        return _open(uri, f, config).schema_arrow


def read_parquet(uri: str, config: DataConfig) -> Iterator[pa.Table]:
    """Rows of a Parquet file, numbered from 1.

    A row group that cannot be decoded ends where it breaks off; its other rows come out with an error each.

    Raises:
        UserError: the footer is damaged.
        OSError: the file cannot be read.
    """
    wanted = wanted_columns(config)
    first = 1
    with Watched(Place.of(uri).open_random()) as f:
        file = _open(uri, f, config)
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            left = about.num_rows
            rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * left // max(1, about.total_byte_size)))
            batches = file.iter_batches(rows, row_groups=[group], columns=list(dict.fromkeys(wanted)))
            reason = "rows are missing"
            while left:
                try:
                    batch = next(batches, None)
                    values = [_strings(batch.column(name), name, uri) for name in wanted] if batch else []
                except pa.ArrowMemoryError as e:
                    raise WorkFailed(f"{uri}: row group {group} does not fit into memory, or is damaged: {e}") from e
                except DAMAGED as e:
                    if f.failed:
                        raise f.failed from e
                    reason, batch = _reason(e), None
                if batch is None:
                    break
                n = batch.num_rows
                errors = {at: why for _, bad in values for at, why in bad.items()}
                yield table(range(first, first + n), [strings for strings, _ in values], errors, config)
                first, left = first + n, left - n
            while left:
                n = min(left, rows)
                error = f"row group {group} is damaged: {reason}"
                nothing = [pa.nulls(n, pa.string())] * len(wanted)
                yield table(range(first, first + n), nothing, dict.fromkeys(range(n), error), config)
                first, left = first + n, left - n


def _open(uri: str, f: Watched, config: DataConfig) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(f, page_checksum_verification=True)
        if not file.schema_arrow.names:
            raise ValueError("it has no columns")
    except DAMAGED as e:
        if f.failed:
            raise f.failed from e
        raise UserError(f"{uri} is not a Parquet file, or its footer is damaged: {_reason(e)}") from e
    # The ledger trusts the footer's row counts, so they must agree with each other. (No closer look: the metadata of
    # a damaged column ends the process, pyarrow 26.)
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if sum(counts) != file.metadata.num_rows or min(counts, default=0) < 0:
        raise UserError(f"{uri}: the footer is damaged: its numbers of rows contradict each other. Write the file anew")
    return file


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _strings(column: pa.Array, name: str, uri: str) -> tuple[pa.Array, dict[int, str]]:
    """A column as strings, and the error of each value that is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):  # integer labels that pandas widened because some were missing
        return pa.array([None if v is None or v != v else plain(v) for v in column.to_pylist()], pa.string()), {}
    try:
        strings = column.cast(pa.string())
        strings.validate(full=True)  # a writer can put any bytes into a string column
        return strings, {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        kinds = (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())
        if column.type not in kinds and not pa.types.is_fixed_size_binary(column.type):
            raise UserError(f"{uri}: column '{name}' of type {column.type} cannot be read as text") from e
    values: list[str | None] = []
    bad: dict[int, str] = {}
    for at, raw in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            values.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as e:
            values.append(None)
            bad[at] = f"byte 0x{raw[e.start]:02x} of column '{name}' is not utf-8"
    return pa.array(values, pa.string()), bad
