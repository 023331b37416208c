"""What outlives a search: the final trainings' test predictions, and the checkpoints ``best`` and ``default``."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import WorkFailed
from pipeline.evaluate.compare import aligned
from pipeline.evaluate.predict import predict_split
from pipeline.evaluate.predictions import FILE as PREDICTIONS
from pipeline.evaluate.predictions import Predictions
from pipeline.storage import Place, local_folder, put_folder
from pipeline.train import checkpoint, trainer
from pipeline.train.store import Store, name_of
from tune import conclude
from tune.assets import Assets
from tune.journal import Trial


def compared(
    seed: int, finals: list[Trial], assets: Assets, folder: Place, address: str | None
) -> dict[str, Any] | None:
    """Both arms on the test rows; None where a final training is missing."""
    arms: dict[str, dict[int, Trial]] = {"winner": {}, "default": {}}
    for trial in finals:
        arms[str(trial.arm)][trial.seed] = trial
    pairs = sorted(arms["winner"].keys() & arms["default"].keys())
    if not pairs:
        return None
    scored: dict[str, list[Predictions]] = {"winner": [], "default": []}
    first: Predictions | None = None
    for at in pairs:
        for name in ("default", "winner"):
            one = _predictions(arms[name][at], assets, folder, address)
            first = first or one
            scored[name].append(aligned(first, one, ("the default recipe", "the winner")))
    return conclude.compared(scored["winner"], scored["default"], seed)


def _predictions(trial: Trial, assets: Assets, folder: Place, address: str | None) -> Predictions:
    """What a final training says of the test rows; kept, for a search that is extended."""
    kept = folder / "finals" / f"trial-{trial.trial:04d}"
    if (kept / PREDICTIONS).exists():
        return Predictions.load(str(kept))
    prepared = assets.of(trial.point).prepared
    split = "test" if prepared.rows("test") else "validation"
    store = Store(folder / "trials" / trial.folder, 1)
    best = store.place / name_of(trainer.best_step(store))
    ids, labels, probabilities = predict_split(prepared, split, best, address)
    predictions = Predictions(ids, labels, probabilities, prepared.labels, split)
    predictions.save(kept)
    return predictions


def keep(chosen: Trial, finals: list[Trial], folder: Place) -> None:
    """Export ``best/`` and, where that is not the default recipe's, the best of that as ``default/``.

    Checkpoints of a search that was extended are gone but for these two.
    """
    defaults = [t for t in finals if t.arm == "default" and t.best is not None]
    default = max(defaults, key=lambda t: (t.best or 0.0, -t.trial), default=None)
    wanted = {"best": chosen} | ({"default": default} if default and chosen.arm != "default" else {})
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        for name, trial in wanted.items():
            _export(trial, folder, Path(temporary) / name)
        for name in ("best", "default"):
            if (folder / name / checkpoint.CARD).exists():
                (folder / name / checkpoint.CARD).delete()  # no half of two checkpoints passes for one
            (folder / name).delete()
            if name in wanted:
                put_folder(Path(temporary) / name, folder / name)


def _export(trial: Trial, folder: Place, out: Path) -> None:
    store = Store(folder / "trials" / trial.folder, 1)
    if store.steps():
        facts = {"point": trial.point, "trial": trial.trial, "seed": trial.seed, "history": trial.history}
        with trainer.best_checkpoint(store) as source:
            trainer.export(source, out, {**facts, "steps": trial.steps, "seconds": trial.seconds})
        return
    for name in ("best", "default"):
        card = folder / name / checkpoint.CARD
        if card.exists() and json.loads(card.read_text()).get("training", {}).get("trial") == trial.trial:
            with local_folder(folder / name) as files:
                shutil.copytree(files, out)
            return
    raise WorkFailed(f"the checkpoint of trial {trial.trial} is gone from {folder}: search anew under another --name")
