"""Which rows of a split are looked at, where all would be too many: a stratified draw, never the first ones.

A shard holds its rows in the order of the files they came from, so in data sorted by class its first rows are of one
class. Only whole shards are a fair sample (``Head``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.prepared import Prepared
from pipeline.train import batches

COLUMNS = ("id", "text", "label", "input_ids")


def rows(prepared: Prepared, split: str, most: int, seed: int) -> pa.Table:
    """A stratified sample of the rows of a split, as they were read (no changed copies), with ``COLUMNS``.

    Args:
        prepared: the data; of a large split only the first shards are read.
        split: its name.
        most: rows, exceeded only where there are more classes.
        seed: of the draw.
    """
    tables: list[pa.Table] = []
    for shard in prepared.shards(split):
        with shard.open_random() as f:
            table = pq.ParquetFile(f).read(columns=[*COLUMNS, "augmentation"])
        tables.append(table.filter(pc.is_null(table["augmentation"])).select(COLUMNS))
        if sum(t.num_rows for t in tables) >= 2 * most:
            break
    table = pa.concat_tables(tables)
    return table.take(pa.array(batches.sample(table["label"].to_numpy().astype(np.int64), most, seed)))


def mixed(labels: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    """Row numbers of a stratified sample in random order, so that the first few of them are one, too.

    Args:
        labels: [rows] class ids.
        most: rows of the sample, exceeded only where there are more classes.
        seed: of the draw.
    """
    chosen = batches.sample(labels, most, seed)
    mixed: npt.NDArray[np.int64] = np.random.default_rng([seed, 2]).permutation(chosen)
    return mixed
