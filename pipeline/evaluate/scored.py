"""Rows of prepared data with what a checkpoint says of them, and what must be told where the data is not its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate import calibration
from pipeline.evaluate.predict import predict_split
from pipeline.storage import Place


@dataclass(frozen=True)
class Scored:
    """Rows of a split with the checkpoint's logits at temperature 1, [rows, classes]."""

    split: str
    data: Prepared
    ids: list[str]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]

    def texts(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The texts of some rows, in this order."""
        found: list[str] = self.data.table(self.split, ["text"])["text"].take(rows).to_pylist()
        return found


def score(
    where: Place, card: dict[str, Any], prepared: Prepared, split: str, address: str | None, anew: bool = False
) -> Scored:
    """Let a checkpoint classify a split; ``anew``: from the texts, since the tokens are not its own."""
    ids, labels, probabilities = predict_split(prepared, split, where, address, anew)
    return Scored(split, prepared, ids, labels, calibration.logits_of(probabilities, float(card["temperature"])))


def learnt(card: dict[str, Any], prepared: Prepared, split: str) -> int | None:
    """How many rows of other data have a text that stands among the training rows of a checkpoint's own.

    Args:
        card: of the checkpoint.
        prepared: the other data.
        split: the rows looked at.

    Returns:
        The number; None where the checkpoint's own data is no longer there to be looked at.
    """
    try:
        own = Prepared.open(card["prepared"])
    except UserError:
        return None
    if own.fingerprint != card.get("data_fingerprint"):
        return None
    texts = prepared.table(split, ["text"])["text"]
    found = np.zeros(len(texts), bool)
    for shard in own.shards("train"):
        with shard.open_random() as f:
            known = pq.ParquetFile(f).read(columns=["text"])["text"]
        found |= pc.is_in(texts, value_set=known.combine_chunks()).to_numpy()
    return int(found.sum())


def learnt_warning(found: int | None, rows: int, split: str) -> str | None:
    """What ``learnt`` means for the figures, in a sentence; None if nothing."""
    if found is None:
        return (
            "the data that the checkpoint was trained on is no longer there: whether some of these rows are among its "
            "training rows is not known"
        )
    if not found:
        return None
    return (
        f"{found:,} of these {rows:,} {split} rows have a text that is among the checkpoint's own training rows: the "
        "figures flatter it"
    )
