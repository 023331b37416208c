"""What trials share: the prepared data and the untrained model, made once for all trials that have them in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline import console, stages
from pipeline.config import Config
from pipeline.data import gates
from pipeline.data import prepare as preparation
from pipeline.data.prepared import Prepared, digest
from pipeline.errors import UserError
from pipeline.model import source
from pipeline.model.source import ModelSource
from pipeline.storage import Place
from pipeline.train import teacher, trainer
from tune.propose import grid
from tune.space import Point, Space, final_config, needs_data, trial_config

MOST = 16  # prepared data sets of one search


@dataclass(frozen=True)
class Asset:
    """What the trials of one data set start from."""

    prepared: Prepared
    model: ModelSource


class Assets:
    """Prepared data and models, by the keys of a point that they depend on.

    Args:
        job: of the search: the default recipe's data and model.
        space: of the search.
        folder: untrained models are written there.
    """

    def __init__(self, job: stages.Job, space: Space, folder: Place) -> None:
        assert job.prepared is not None
        self._config, self._folder = job.config, folder
        self._keys = [key for key in space if needs_data(key)]
        self._space = space
        self._first = Asset(job.prepared, job.model)
        self._known: dict[str, Asset] = {}

    def prepare(self, address: str | None) -> None:
        """Make what is missing, before the first trial.

        Raises:
            UserError: it would be too many, or a value leads to data that training refuses.
        """
        if not self._keys:
            return
        points = grid({key: self._space[key] for key in self._keys})
        if len(points) > MOST:
            raise UserError(
                f"tune.space: {' and '.join(self._keys)} make {len(points)} data sets of their own; up to {MOST} are "
                "prepared: name fewer values"
            )
        default = {k: _value(self._config, k) for k in self._keys}
        for point in [default, *(p for p in points if p != default)]:
            config = self._config.updated(point)
            model = source.resolve(config.model.name)
            if model.kind == "linear":
                raise UserError("tune.space: the linear model has nothing to search for; leave it out of model.name")
            prepared, reused = preparation.prepare(config, model, address)
            gates.refuse(config.data, prepared.ledger, prepared.profile["classes"])
            if prepared.labels != self._first.prepared.labels:
                raise UserError(f"tune.space: {_words(point)} leads to other labels: scores could not be compared")
            for split in ("validation", "test"):
                if _ids(prepared, split) != _ids(self._first.prepared, split):
                    raise UserError(
                        f"tune.space: {_words(point)} leads to other {split} rows than the default recipe, so scores "
                        "could not be compared: search without this key, once for each of its values"
                    )
            if not reused:
                console.say("prepare", f"{_words(point)} -> {prepared.place}")
            self._known[_mark(point)] = Asset(prepared, model)

    def ask_teacher(self, default: Point, address: str | None) -> None:
        """Have the teacher's answers made to all rows that a trial or a final training will learn, if there is one.

        Args:
            default: the point of the default recipe.
            address: the Ray cluster.
        """
        if self._config.train.teacher is None:
            return
        trial = trial_config(self._config, default)
        seeds = range(trial.seed + 1, trial.seed + 1 + trial.tune.seeds)  # they draw the rows, where not all are taken
        for asset in self._known.values() or [self._first]:
            asked = set()
            for config in (trial, *(final_config(self._config, default, seed) for seed in seeds)):
                rows = teacher.rows_of(config, asset.prepared)
                if rows.tobytes() not in asked:
                    teacher.ask(config, asset.prepared, address)
                asked.add(rows.tobytes())

    def of(self, point: Point) -> Asset:
        """What a point's trial starts from."""
        if not self._keys:
            return self._first
        return self._known[_mark({k: point[k] for k in self._keys})]

    def initial(self, config: Config, asset: Asset) -> Place:
        """The untrained model of a configuration, written once for all trials that start from it."""
        parts = json.dumps(config.model.model_dump(mode="json"), sort_keys=True)
        mark = digest(asset.prepared.fingerprint, asset.model.identity, parts, str(config.seed))
        place = self._folder / f"initial-{mark}"
        trainer.write_initial(config, asset.prepared, asset.model, place)
        return place


def _ids(prepared: Prepared, split: str) -> list[str]:
    return sorted(prepared.table(split, ["id"])["id"].to_pylist()) if prepared.rows(split) else []


def _value(config: Config, key: str) -> Any:
    section, _, leaf = key.partition(".")
    return config.model_dump(mode="json")[section][leaf]


def _mark(point: Point) -> str:
    return json.dumps(point, sort_keys=True, default=list)


def _words(point: Point) -> str:
    return ", ".join(f"{k}={v}" for k, v in point.items())
