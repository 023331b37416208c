"""Journals for the tests of searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, load
from pipeline.storage import Place
from pipeline.train.store import SCORE
from tune.journal import Journal, Trial
from tune.plan import Plan
from tune.space import default_point, space_of

SPACE = "tune.space={train.learning_rate: {loguniform: [1e-4, 1e-2]}, train.weight_decay: {uniform: [0, 0.1]}}"


def entry(evaluation: int, score: float, step: int | None = None) -> dict[str, Any]:
    """An evaluation as a trial reports it."""
    return {"evaluation": evaluation, "step": step or 10 * evaluation, SCORE: score, "seconds": 1.5, "epoch": 0.5}


def trial(number: int, scores: Sequence[float] = (), status: str = "finished", **more: Any) -> Trial:
    """A trial of the search with these scores."""
    history = [entry(i + 1, s) for i, s in enumerate(scores)]
    point = more.pop("point", {"train.learning_rate": number / 1000, "train.weight_decay": 0.01})
    return Trial(
        number, more.pop("phase", "search"), point, more.pop("seed", 17), status=status, history=history, **more
    )


def planned(folder: Path, *sets: str, trials: Sequence[Trial] = ()) -> Plan:
    """A plan over a journal with these trials."""
    config: Config = load(sets=[SPACE, *sets])
    space = space_of(config, "lstm", 3e-3)
    default = default_point(config, space, 3e-3)
    return Plan(config, space, default, Journal(Place.of(folder), {"format": 2}, trials))
