"""What outlives a search: the final trainings' test predictions, and the checkpoints ``best`` and ``default``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.prepared import digest
from pipeline.errors import WorkFailed
from pipeline.evaluate.compare import aligned
from pipeline.evaluate.predict import predict_split
from pipeline.evaluate.predictions import FILE as PREDICTIONS
from pipeline.evaluate.predictions import Predictions
from pipeline.folders import local_folder, put_folder
from pipeline.storage import Place
from pipeline.train import checkpoint, trainer
from pipeline.train.store import Store, name_of
from tune import conclude
from tune.assets import Assets
from tune.journal import Trial

KEPT = ("best", "default")


def compared(
    seed: int, finals: list[Trial], assets: Assets, folder: Place, address: str | None
) -> dict[str, Any] | None:
    """Both arms on the test rows, by the seeds that both have; None where there is no such seed, or no test row."""
    arms = conclude.paired(finals)
    if not arms["winner"] or not assets.of(arms["default"][0].point).prepared.rows("test"):
        return None
    scored: dict[str, list[Predictions]] = {"winner": [], "default": []}
    first: Predictions | None = None
    for name, trials in arms.items():
        for trial in trials:
            one = _predictions(trial, assets, folder, address)
            first = first or one
            scored[name].append(aligned(first, one, ("the default recipe", "the winner")))
    return conclude.compared(scored["winner"], scored["default"], seed)


def _predictions(trial: Trial, assets: Assets, folder: Place, address: str | None) -> Predictions:
    """What a final training says of the test rows; kept, for a search that is extended."""
    kept = folder / "finals" / f"trial-{trial.trial:04d}"
    if (kept / PREDICTIONS).exists():
        return Predictions.load(str(kept))
    prepared = assets.of(trial.point).prepared
    where = place_of(trial, folder)
    if where is None:
        raise _gone(trial, folder)
    ids, labels, probabilities = predict_split(prepared, "test", where, address)
    predictions = Predictions(ids, labels, probabilities, prepared.labels, "test")
    predictions.save(kept)
    return predictions


def place_of(trial: Trial, folder: Place) -> Place | None:
    """Where the best checkpoint of a trial lies: among its own, or as one that was kept; None if it is gone."""
    store = Store(folder / "trials" / trial.folder, 1)
    if store.steps():
        return store.place / name_of(trainer.best_step(store))
    return next((folder / name for name in KEPT if _kept(folder / name)[0] == trial.trial), None)


def _kept(place: Place) -> tuple[int | None, int | None]:
    """Of which trial a kept checkpoint is, and how many steps that had taken: a search that is resumed trains on."""
    if not (place / checkpoint.CARD).exists():
        return None, None
    training = json.loads((place / checkpoint.CARD).read_text()).get("training", {})
    return training.get("trial"), training.get("steps")


def keep(chosen: Trial, finals: list[Trial], folder: Place) -> None:
    """Export ``best/`` and, where that is not the default recipe's, the best of that as ``default/``.

    Checkpoints of a search that was extended are gone but for these two: so ``default`` is written before ``best``
    takes its place, and nothing is removed before its successor is there.
    """
    defaults = [t for t in finals if t.arm == "default" and t.status == "finished" and place_of(t, folder) is not None]
    default = max(defaults, key=lambda t: (t.best or 0.0, -t.trial), default=None)
    wanted = {"best": chosen} | ({"default": default} if default and chosen.arm != "default" else {})
    for name in reversed(KEPT):
        if name in wanted and _kept(folder / name) != (wanted[name].trial, wanted[name].steps):
            with _exported(wanted[name], folder) as files:
                put_folder(files, folder / name, checkpoint.CARD)
    if "default" not in wanted:
        (folder / "default").delete()


@contextmanager
def _exported(trial: Trial, folder: Place) -> Iterator[Path]:
    where = place_of(trial, folder)
    if where is None:
        raise _gone(trial, folder)
    with local_folder(where) as source, tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        out = Path(temporary) / "checkpoint"
        facts = {"point": trial.point, "trial": trial.trial, "seed": trial.seed, "history": trial.history}
        facts["fingerprint"] = digest("search", str(folder), json.dumps([facts, trial.steps], sort_keys=True))
        trainer.export(source, out, {**facts, "steps": trial.steps, "seconds": trial.seconds})
        yield out


def _gone(trial: Trial, folder: Place) -> WorkFailed:
    return WorkFailed(f"the checkpoint of trial {trial.trial} is gone from {folder}: search anew under another --name")
