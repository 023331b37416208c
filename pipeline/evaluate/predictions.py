"""``predictions.parquet``: what a checkpoint said of each test row, so that runs can be compared later."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.shards import read_parquet, write_parquet
from pipeline.errors import UserError
from pipeline.storage import Place

FILE = "predictions.parquet"
SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("predicted", pa.string()), ("probabilities", pa.list_(pa.float32()))]
)


@dataclass(frozen=True)
class Predictions:
    """Predictions of one checkpoint for one split.

    Attributes:
        ids: of the rows.
        labels: true class ids, [rows].
        probabilities: [rows, classes].
        names: of the classes.
        split: 'test', or 'validation' where there is no test.
    """

    ids: list[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    names: list[str]
    split: str

    def save(self, folder: Place) -> None:
        """Write ``predictions.parquet``: names rather than numbers, and what each probability belongs to."""
        names = pa.array(self.names, pa.string())
        columns = [
            pa.array(self.ids, pa.string()),
            names.take(pa.array(self.labels)),
            names.take(pa.array(self.probabilities.argmax(axis=1))),
            pa.array(list(self.probabilities.astype(np.float32)), pa.list_(pa.float32())),
        ]
        facts = {"labels": json.dumps(self.names, ensure_ascii=False), "split": self.split}
        write_parquet(pa.table(columns, schema=SCHEMA.with_metadata(facts)), folder / FILE)

    @classmethod
    def load(cls, where: str) -> Predictions:
        """Read the predictions of a run, of a checkpoint inside it, or of any folder that evaluation wrote to.

        Raises:
            UserError: there are none.
        """
        place = Place.of(where)
        file = next((f for f in (place / FILE, place.parent / FILE) if f.is_file()), None)
        if file is None:
            raise UserError(f"{where} has no {FILE}: make it with 'broadsheet evaluate {where}'")
        try:
            table = read_parquet(file)
            facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            names = list(json.loads(facts["labels"]))
            at = {name: i for i, name in enumerate(names)}
            labels = np.array([at[name] for name in table["label"].to_pylist()], np.int64)
            scores = np.array(table["probabilities"].to_pylist(), np.float64).reshape(len(labels), len(names))
            return cls(table["id"].to_pylist(), labels, scores, names, facts["split"])
        except (pa.ArrowInvalid, KeyError, ValueError) as e:
            raise UserError(f"{file} is damaged or was written by another version of Broadsheet: evaluate again") from e
