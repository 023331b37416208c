"""``predictions.parquet``: what a checkpoint said of each test row, so that runs can be compared later."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.shards import read_parquet, write_parquet
from pipeline.errors import UserError
from pipeline.storage import Place
from pipeline.train.checkpoint import CARD

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
        training: fingerprint of the training that made the checkpoint.
        data: fingerprint of the prepared data.
    """

    ids: list[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    names: list[str]
    split: str
    training: str | None = None
    data: str | None = None

    def save(self, folder: Place) -> None:
        """Write ``predictions.parquet``: names rather than numbers, and what each probability belongs to."""
        names = pa.array(self.names, pa.string())
        columns = [
            pa.array(self.ids, pa.string()),
            names.take(pa.array(self.labels)),
            names.take(pa.array(self.probabilities.argmax(axis=1))),
            pa.ListArray.from_arrays(
                np.arange(len(self.ids) + 1, dtype=np.int32) * len(self.names),
                pa.array(self.probabilities.astype(np.float32).ravel(), pa.float32()),
            ),
        ]
        facts = {"labels": json.dumps(self.names, ensure_ascii=False), "split": self.split}
        facts |= {k: v for k, v in (("training", self.training), ("data", self.data)) if v is not None}
        write_parquet(pa.table(columns, schema=SCHEMA.with_metadata(facts)), folder / FILE)

    @classmethod
    def load(cls, where: str) -> Predictions:
        """Read the predictions of a run, of a checkpoint inside it, or of any folder that evaluation wrote to.

        Raises:
            UserError: there are none, or the checkpoint beside them was trained again since.
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
            flat = pc.list_flatten(table["probabilities"].combine_chunks()).to_numpy()
            scores = flat.astype(np.float64).reshape(len(labels), len(names))
            known = facts.get("training"), facts.get("data")
            found = cls(table["id"].to_pylist(), labels, scores, names, facts["split"], *known)
        except (pa.ArrowInvalid, KeyError, ValueError) as e:
            raise UserError(
                f"{file} is damaged or was written by another version of Broadsheet: delete it, and evaluate again"
            ) from e
        _refuse_older(file, found)
        return found


def _refuse_older(file: Place, found: Predictions) -> None:
    """Predictions of weights that are no more say nothing of those that lie there now.

    Raises:
        UserError: the checkpoint beside the file is of another training.
    """
    run = file.parent
    card = next((c for c in (run / "checkpoint" / CARD, run / "best" / CARD, run / CARD) if c.exists()), None)
    if card is None or found.training is None:
        return
    if json.loads(card.read_text()).get("training", {}).get("fingerprint") != found.training:
        raise UserError(f"{run} was trained again since {file.name} was made: run 'broadsheet evaluate {run}' first")
