"""Small helpers over Arrow columns that the passes of ``prepare`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.profile import SPLITS
from pipeline.data.read import Source


def one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of a table as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in another type, if it is not in that already."""
    return column if column.type == kind else column.cast(kind)


def to_mask(flags: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    """An Arrow column of booleans without nulls, for NumPy."""
    return flags.to_numpy(zero_copy_only=False).astype(bool)


def file_splits(rows: pa.Table, sources: Sequence[Source]) -> npt.NDArray[np.int64]:
    """Where each row's file belongs, as an index into ``SPLITS``."""
    return np.array([SPLITS.index(s.split) for s in sources] or [0])[rows["source"].to_numpy()]


def row_ids(names: pa.StringArray, source: npt.NDArray[Any], row: npt.NDArray[Any]) -> pa.StringArray:
    """``file:row`` of each row."""
    return pc.binary_join_element_wise(names.take(pa.array(source)), pa.array(row).cast(pa.string()), ":")
