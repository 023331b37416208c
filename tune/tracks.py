"""The curves of a search's trials in TensorBoard and MLflow, where ``train.track`` asks for them: a run per trial."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pipeline import console
from pipeline.config import Config
from pipeline.data.prepared import digest
from pipeline.errors import first_line
from pipeline.storage import Place
from pipeline.train import track
from tune.journal import Journal, Trial
from tune.space import Point, final_config, trial_config


class Tracks:
    """Follows the trials of a search, on the driver.

    Args:
        config: of the search.
        journal: of the search; ``trials.jsonl`` is the record, and the stores are brought up to it.
        default: the default recipe, whose stores are opened at once.

    Raises:
        UserError: an extra is not installed, or MLflow's store cannot be used.
    """

    def __init__(self, config: Config, journal: Journal, default: Point) -> None:
        self._config, self._folder = config, journal.folder
        self._search = digest(str(journal.folder), str(sorted(journal.facts.get("searched", {}).items())))
        self._open: dict[int, list[track.Store]] = {}
        self._stores(Trial(1, "search", default, config.seed))

    def log(self, trial: Trial) -> None:
        """A trial was scored; a store that is away for a while costs nothing, ``end`` makes up for it."""
        self._bring(trial, trial.history[-1:], quiet=True)

    def end(self, trial: Trial) -> None:
        """A trial came to an end: what a store missed while it was away is made up for."""
        self._bring(trial, trial.history, quiet=False)
        self._open.pop(trial.trial, None)

    def _bring(self, trial: Trial, entries: list[dict[str, Any]], quiet: bool) -> None:
        if not self._config.train.track:
            return
        try:
            for store in self._stores(trial):
                there = set() if quiet else store.steps()
                for entry in entries:
                    if entry["step"] not in there:
                        store.log({"time": datetime.now(timezone.utc).isoformat(), **entry})
                if not quiet:
                    store.end()
        except Exception as e:
            if not quiet:
                first = first_line(e)
                console.warn("tune", f"not all curves of trial {trial.trial} were taken ({first})")

    def _stores(self, trial: Trial) -> list[track.Store]:
        if trial.trial not in self._open:
            name = f"trial-{trial.trial:04d}"
            stores: list[track.Store] = []
            if "tensorboard" in self._config.train.track:
                stores.append(track.TensorBoard(self._folder / "tensorboard" / name))
            if "mlflow" in self._config.train.track:
                final = trial.phase == "final"
                make = final_config(self._config, trial.point, trial.seed) if final else None
                config = make or trial_config(self._config, trial.point)
                mark = digest(self._search, str(trial.trial), trial.phase)
                config = config.updated({"name": f"{self._config.name}-{name}"})
                stores.append(track.Mlflow.open(config, Place(str(self._folder)), mark, resumed=True))
            self._open[trial.trial] = stores
        return self._open[trial.trial]
