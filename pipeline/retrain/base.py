"""The run that a retraining starts from: its checkpoint, its prepared data, and what it said of its test rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.prepared import Prepared
from pipeline.data.shards import read_parquet
from pipeline.errors import UserError
from pipeline.evaluate.predictions import Predictions
from pipeline.storage import Place
from pipeline.train import checkpoint

VERSION = "version"  # the folder of a run that holds the data it was trained again on
FILE = "version.json"
ORIGIN = "broadsheet_origin"  # column of its files: the id of the row where it comes from


@dataclass(frozen=True)
class Run:
    """An evaluated run.

    Attributes:
        place: its folder.
        checkpoint: what it trained.
        card: of the checkpoint.
        prepared: what it was trained on.
        root: fingerprint of the data that its test rows come from: its own or, of a run that was trained again, that
            of the first run of all.
        origins: id of a test row -> its id in the root's data; empty where that is the same.
    """

    place: Place
    checkpoint: Place
    card: dict[str, Any]
    prepared: Prepared
    root: str
    origins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, where: str) -> Run:
        """Open a run by its folder or its checkpoint's.

        Raises:
            UserError: there is no checkpoint, or its prepared data is gone.
        """
        found = checkpoint.find(where)
        card = checkpoint.read_card(found)
        place = run_of(found)
        prepared = Prepared.open(card["prepared"])
        made = read_version(place)
        if made is None:
            return cls(place, found, card, prepared, prepared.fingerprint)
        return cls(place, found, card, prepared, made["root"], origins(place))

    @property
    def fingerprint(self) -> str:
        """Of the training."""
        return str(self.card.get("training", {}).get("fingerprint", ""))

    def predictions(self) -> Predictions:
        """What it said of its test rows, with the ids of the root's data.

        Raises:
            UserError: it was not evaluated since it was trained.
        """
        evaluated = f"evaluate it first, with 'broadsheet evaluate {self.place}'"
        file = self.place / "metrics.json"
        if not file.exists():
            raise UserError(f"{self.place} has no figures of its test rows: {evaluated}")
        try:
            figures = json.loads(file.read_text())["fingerprints"]
        except (ValueError, KeyError) as e:
            raise UserError(f"{file} is damaged: {evaluated}") from e
        if (figures["training"] or "", figures["data"]) != (self.fingerprint, self.prepared.fingerprint):
            raise UserError(f"{self.place} was trained, or evaluated on other data, since its test: {evaluated}")
        return in_root(Predictions.load(str(self.place)), self.origins)


def run_of(found: Place) -> Place:
    """The folder that a checkpoint lies in."""
    return found.parent if found.name in ("checkpoint", "best") else found


def read_version(run: Place) -> dict[str, Any] | None:
    """What a run's data version was made of; None where it has none that is complete.

    Raises:
        UserError: the file is damaged.
    """
    file = run / VERSION / FILE
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        content["root"], content["made_of"], content["ledger"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is damaged: choose another --name, and train again from the run before") from e
    return content


def origins(run: Place) -> dict[str, str]:
    """Of each test row of a run that was trained again: its id in the data of the first run of all."""
    found: dict[str, str] = {}
    for file in (run / VERSION / "test").files(".parquet"):
        for row, origin in enumerate(read_parquet(file)[ORIGIN].to_pylist(), 1):
            found[f"{file.name}:{row}"] = origin
    return found


def in_root(predictions: Predictions, known: dict[str, str]) -> Predictions:
    """Predictions with the ids of the root's data; an id that is not known stays."""
    return replace(predictions, ids=[known.get(name, name) for name in predictions.ids]) if known else predictions


def check_same_test(prepared: Prepared, known: dict[str, str], base: Predictions) -> None:
    """Make sure, before anything is trained, that new data has the test rows of the base, labels included.

    Args:
        prepared: the new data.
        known: its test rows' ids in the root's data.
        base: of ``Run.predictions``.

    Raises:
        UserError: it has not; the message says where they differ.
    """
    table = prepared.table("test", ["id", "label"]) if prepared.rows("test") else None
    ids = [known.get(name, name) for name in table["id"].to_pylist()] if table is not None else []
    labels = [prepared.labels[i] for i in table["label"].to_pylist()] if table is not None else []
    mine = dict(zip(ids, labels, strict=True))
    theirs = dict(zip(base.ids, (base.names[i] for i in base.labels), strict=True))
    differs = next((name for name in theirs if mine.get(name) != theirs[name]), None)
    extra = next((name for name in mine if name not in theirs), None)
    if differs is None and extra is None:
        return
    if differs is None:
        what = f"row {extra} is new"
    elif differs not in mine:
        what = f"row {differs} is missing"
    else:
        what = f"row {differs} is labelled '{mine[differs]}' instead of '{theirs[differs]}'"
    raise UserError(
        f"{prepared.place} has other test rows than the run it starts from ({len(mine):,} and {len(theirs):,}; "
        f"{what}), so the two models cannot be compared: leave away whatever --set data.... changes them"
    )
