"""Golden rows: validation rows with the answers that the checkpoint gave when it was evaluated.

``broadsheet evaluate`` leaves them with the checkpoint, ``golden.parquet``. Serving asks the loaded model again, on
whatever machine and with whatever engine, before it takes traffic: other answers mean other weights, another
tokenizer, or a broken engine.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from pipeline.errors import UserError
from pipeline.storage import Place

FILE = "golden.parquet"
ROWS = 2_000
CHECKED = 32  # rows that a model answers before it takes traffic
SAME_LABEL = 0.95  # share of them whose best label must be what it was
CLOSE = 0.05  # how far the probability of a row's best label may have moved, in the mean

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Golden:
    """Texts with what is known of them.

    Attributes:
        texts: as cleaned.
        labels: [rows] true label ids.
        logits: [rows, labels] of the checkpoint in the precision it was evaluated in, at temperature 1, up to a
            constant per row.
    """

    texts: list[str]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    def head(self, rows: int) -> Golden:
        """The first rows."""
        return Golden(self.texts[:rows], self.labels[:rows], self.logits[:rows])

    def save(self, folder: Place) -> None:
        """Write ``golden.parquet`` with at most ``ROWS`` rows."""
        few = self.head(ROWS)
        flat = pa.array(few.logits.ravel(), pa.float32())
        columns = [
            pa.array(few.texts, pa.string()), pa.array(few.labels, pa.int32()),
            pa.FixedSizeListArray.from_arrays(flat, few.logits.shape[1]),
        ]  # fmt: skip
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, names=["text", "label", "logits"]), sink, compression="zstd")
        (folder / FILE).write_bytes(sink.getvalue())

    @classmethod
    def load(cls, folder: Place) -> Golden | None:
        """Read a checkpoint's golden rows; None where it has none.

        Raises:
            UserError: they are damaged.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            with file.open_random() as f:
                table = pq.ParquetFile(f).read()
            logits = np.array(table["logits"].to_pylist(), np.float32)
            return cls(table["text"].to_pylist(), table["label"].to_numpy().astype(np.int64), logits)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
            raise UserError(f"{file} is damaged: delete it and run 'broadsheet evaluate' again") from e

    def failure(self, answer: Callable[[Sequence[str]], Floats]) -> str | None:
        """Why a model may not take traffic; None where it answers as it did.

        Args:
            answer: texts to logits [texts, labels].
        """
        few = self.head(CHECKED)
        found = answer(few.texts)
        if found.shape != few.logits.shape:
            return f"it answers with {found.shape[-1]} labels, and its golden rows have {few.logits.shape[-1]}"
        if not np.isfinite(found).all():
            return "it answers its golden rows with scores that are not numbers"
        same = agreement(few.logits, found)
        if same < SAME_LABEL:
            wrong = round((1 - same) * len(few.texts))
            return f"it answers {wrong} of {len(few.texts)} golden rows with another label than when it was evaluated"
        moved = shift(few.logits, found)
        if moved > CLOSE:
            return f"its confidence on golden rows has moved by {moved:.3f} in the mean since it was evaluated"
        return None


def agreement(known: Floats, found: Floats) -> float:
    """Share of rows, 0 to 1, whose best label is the same."""
    return float((known.argmax(-1) == found.argmax(-1)).mean()) if len(known) else 1.0


def shift(known: Floats, found: Floats) -> float:
    """By how much the probability of a row's best label differs, in the mean over rows."""
    if not len(known):
        return 0.0
    rows, best = np.arange(len(known)), known.argmax(-1)
    return float(np.abs(softmax(known, axis=-1)[rows, best] - softmax(found, axis=-1)[rows, best]).mean())
