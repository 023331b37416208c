"""What a search knows, on disk: ``trials.jsonl``, a row per trial, and ``search.json``, what it is a search of.

Both are written whole at every event, so that a search that was cut off at any moment goes on from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.storage import Place
from pipeline.train.store import SCORE
from tune.space import Point

TRIALS, FACTS = "trials.jsonl", "search.json"
FORMAT = 2
ENDED = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """One training of a search.

    Attributes:
        trial: its number, from 1; trial 1 has the default recipe.
        phase: 'search', or 'final': the winner or the default recipe, trained again with another seed.
        point: the values of the searched keys.
        seed: of its training.
        arm: of a final: 'default' or 'winner'.
        status: 'waiting' (not begun, cut off, or paused), 'running', 'finished', 'stopped' (early) or 'failed'.
        until: the evaluation after which it pauses; None: it does not.
        history: its evaluations (step, epoch, loss, scores, seconds).
        error: why it failed.
        lineage: of a member of a population: whose weights it took over, when, and the point from there on.
        size: of a final: its training rows and epochs, as configured.
    """

    trial: int
    phase: str
    point: Point
    seed: int
    arm: str | None = None
    status: str = "waiting"
    until: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    size: list[float | None] | None = None

    @property
    def best(self) -> float | None:
        """The highest validation macro F1, of the weights that it has now."""
        since = int(self.lineage[-1]["round"]) if self.lineage else 0
        return max((float(e[SCORE]) for e in self.history[since:]), default=None)

    @property
    def steps(self) -> int:
        """Optimiser steps up to its last evaluation."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def seconds(self) -> float:
        """Seconds of training up to its last evaluation."""
        return float(self.history[-1]["seconds"]) if self.history else 0.0

    @property
    def ended(self) -> bool:
        """Whether it will not go on."""
        return self.status in ENDED

    @property
    def folder(self) -> str:
        """The folder of its checkpoints, under ``trials/``: a new one where it took over another's weights."""
        return f"trial-{self.trial:04d}" + (f"-{len(self.lineage)}" if self.lineage else "")

    def row(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "best": self.best, "steps": self.steps, "seconds": self.seconds}


class Journal:
    """All trials of a search, in memory and on disk.

    Args:
        folder: the search's folder.
        facts: what it is a search of (see ``search.json``).
        trials: known so far.
    """

    def __init__(self, folder: Place, facts: dict[str, Any], trials: Sequence[Trial] = ()) -> None:
        self.folder, self.facts = folder, facts
        self.trials = list(trials)

    @classmethod
    def load(cls, folder: Place) -> Journal | None:
        """The journal of a folder, if there is one.

        Raises:
            UserError: it cannot be read.
        """
        if not (folder / FACTS).exists():
            return None
        try:
            facts = json.loads((folder / FACTS).read_text())
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}")
            lines = (folder / TRIALS).read_text().splitlines() if (folder / TRIALS).exists() else []
            known = set(Trial.__dataclass_fields__)
            trials = [Trial(**{k: v for k, v in json.loads(line).items() if k in known}) for line in lines]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(
                f"{folder}/{FACTS} or {TRIALS} is damaged or of another version of Broadsheet ({e}): "
                "move the folder away, or give the search another --name"
            ) from e
        return cls(folder, facts, trials)

    def write(self) -> None:
        """Write both files."""
        lines = [json.dumps(t.row(), ensure_ascii=False) for t in self.trials]
        (self.folder / TRIALS).write_text("".join(line + "\n" for line in lines))
        (self.folder / FACTS).write_text(json.dumps(self.facts, ensure_ascii=False, indent=1) + "\n")

    def of(self, phase: str) -> list[Trial]:
        """The trials of a phase."""
        return [t for t in self.trials if t.phase == phase]

    def get(self, number: int) -> Trial:
        """The trial of a number."""
        return self.trials[number - 1]

    def reported(self, number: int, result: dict[str, Any]) -> bool:
        """Take in one report of a trial; False if it is known already, from before a crash."""
        trial = self.get(number)
        trial.status = "running"
        if int(result["step"]) in {e["step"] for e in trial.history}:
            return False
        names = ("step", "evaluation", "epoch", "loss", "validation_loss", "validation_accuracy", SCORE,
                 "learning_rate", "seconds")  # fmt: skip
        trial.history.append({k: result[k] for k in names if k in result})
        for key in ("step", "evaluation"):
            trial.history[-1][key] = int(trial.history[-1][key])
        return True

    def steps(self) -> int:
        """Optimiser steps of the search so far, the final trainings not counted."""
        return sum(t.steps for t in self.of("search"))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest validation macro F1; the earlier one of equals (the default recipe is first)."""
    good = [(t, t.best) for t in trials if t.best is not None and t.status != "failed"]
    return min(good, key=lambda pair: (-float(pair[1] or 0.0), pair[0].trial))[0] if good else None


def table(trials: Sequence[Trial]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows for a terminal: the search's trials, best first, then the final trainings."""
    keys = [k.split(".", 1)[1] for k in trials[0].point] if trials else []
    ordered = sorted(trials, key=lambda t: (t.phase == "final", t.best is None, -(t.best or 0.0), t.trial))
    lines = [
        (
            _name(t),
            *(shown(v) for v in t.point.values()),
            len(t.history),
            f"{t.steps:,}",
            "-" if t.best is None else f"{t.best:.4f}",
            t.status if not t.error else f"failed: {t.error[:60]}",
        )
        for t in ordered
    ]
    return ("trial", *keys, "scores", "steps", "macro F1", "status"), lines


def _name(trial: Trial) -> str:
    """Short, and in one piece: terminals are narrow."""
    if trial.phase == "final":
        return f"{trial.arm}\u00a0{trial.seed}"
    if trial.lineage:
        return f"{trial.trial}\u00a0from\u00a0{trial.lineage[-1]['from']}"
    return "1\u00a0(default)" if trial.trial == 1 else str(trial.trial)


def shown(value: Any) -> str:
    """A value of a point, for a person."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "default" if value is None else str(value)
    return f"{value:g}"
