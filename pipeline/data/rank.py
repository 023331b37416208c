"""Which row stands for all rows of equal text, and the split of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, split
from pipeline.data.columns import file_splits, one, to_mask
from pipeline.data.read import Source

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranked:
    """Who stands for whom among rows of equal text.

    Attributes:
        label: label id of each row, -1 for a label that no training row has, [rows].
        hint: where each row's file belongs, as an index into ``SPLITS``, [rows].
        splits: the split of each candidate row, -1 for the others, [rows].
        candidates: rows still in the running, the most preferred first, [candidates].
        standing: which candidate stands for each, -1 where ``data.conflicts`` drops it, [candidates].
    """

    label: Ints
    hint: Ints
    splits: Ints
    candidates: Ints
    standing: Ints

    @property
    def winners(self) -> Ints:
        """The rows that stand for themselves, one for each distinct text."""
        return self.candidates[self.standing == np.arange(len(self.candidates))]


def rank(
    rows: pa.Table,
    sources: Sequence[Source],
    labels: Sequence[str],
    bounds: Mapping[str, tuple[int, int]],
    conflicts: str,
) -> Ranked:
    """Settle equal texts and draw splits.

    Args:
        rows: schema ``exchange.ROWS``, ordered by source and row; all rows of equal text are among them.
        sources: the files of the job.
        labels: the frozen label names; the label id is the index.
        bounds: from ``split.HashSketch.bounds``.
        conflicts: ``data.conflicts``, what becomes of equal texts under several labels.
    """
    label = _label_ids(one(rows["label"]), labels)
    hint = file_splits(rows, sources)
    alive = to_mask(pc.is_null(one(rows["reason"])))
    candidates = np.flatnonzero(alive & (label >= 0))
    candidates = candidates[np.argsort(-hint[candidates], kind="stable")]  # test before validation before train
    keys = dedup.halves_of(one(rows["key"]))[candidates]
    first = dedup.first_of_each(keys)
    standing = dedup.settle_conflicts(first, label[candidates], hint[candidates], conflicts)
    splits = np.full(rows.num_rows, -1)
    splits[candidates] = split.assign(label[candidates], keys[:, 1], hint[candidates], split.as_arrays(labels, bounds))
    return Ranked(label, hint, splits, candidates, standing)


def _label_ids(names: pa.Array, labels: Sequence[str]) -> Ints:
    """The id of each label name, -1 for none."""
    found = pc.index_in(names, pa.array(labels, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
