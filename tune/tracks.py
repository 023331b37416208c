"""The curves of a search's trials in TensorBoard and MLflow, where ``train.track`` asks for them: a run per trial."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from typing import Any

from pipeline import console
from pipeline.config import Config
from pipeline.data.prepared import digest
from pipeline.storage import Place
from pipeline.train import track
from tune.journal import Journal, Trial
from tune.space import trial_config


class Tracks:
    """Follows the trials of a search, on the driver.

    Args:
        config: of the search.
        journal: of the search; ``trials.jsonl`` is the record, and the stores are brought up to it.

    Raises:
        UserError: an extra is not installed, or MLflow's store cannot be used.
    """

    def __init__(self, config: Config, journal: Journal) -> None:
        self._config, self._folder = config, journal.folder
        self._search = digest(str(journal.folder), str(sorted(journal.facts.get("searched", {}).items())))
        self._open: dict[int, list[track.Store]] = {}
        if config.train.track and journal.trials:
            self._stores(journal.trials[0])

    def log(self, trial: Trial) -> None:
        """A trial was scored."""
        for store in self._stores(trial) if self._config.train.track else []:
            with contextlib.suppress(Exception):  # ``end`` makes up for it, and tells
                store.log(_entry(trial.history[-1]))

    def end(self, trial: Trial) -> None:
        """A trial came to an end: what a store missed while it was away is made up for."""
        if not self._config.train.track:
            return
        for store in self._stores(trial):
            try:
                there = store.steps()
                for entry in trial.history:
                    if entry["step"] not in there:
                        store.log(_entry(entry))
                store.end()
            except Exception as e:
                first = (str(e).strip().splitlines() or [type(e).__name__])[0]
                console.warn("tune", f"{store.name} did not take all curves of trial {trial.trial} ({first})")
        self._open.pop(trial.trial, None)

    def _stores(self, trial: Trial) -> list[track.Store]:
        if trial.trial not in self._open:
            name = f"trial-{trial.trial:04d}"
            stores: list[track.Store] = []
            if "tensorboard" in self._config.train.track:
                stores.append(track.TensorBoard(self._folder / "tensorboard" / name))
            if "mlflow" in self._config.train.track:
                config = trial_config(self._config, trial.point).updated({"name": f"{self._config.name}-{name}"})
                mark = digest(self._search, str(trial.trial), trial.phase)
                stores.append(track.Mlflow.open(config, Place(str(self._folder)), mark, resumed=True))
            self._open[trial.trial] = stores
        return self._open[trial.trial]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {"time": datetime.now(timezone.utc).isoformat(), **entry}
