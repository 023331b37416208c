"""Asynchronous successive halving: who goes on from a rung, and who will never.

ASHA (Li et al., MLSys 2020, algorithm 2), with one thing added for searches of few trials: when no new trial will come,
the best of a rung go on even where there are fewer than ``factor`` of them, so that a trial is trained to its end. A
trial pauses at every rung; whether it goes on is decided by what is known when a worker is free.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.train.store import SCORE
from tune.journal import Trial


def paused(trial: Trial) -> bool:
    """Whether a trial has come to where it was asked to come."""
    return trial.status == "waiting" and trial.until is not None and len(trial.history) >= trial.until


def ranked(trials: Sequence[Trial], rung: int) -> list[Trial]:
    """The trials that were scored at a rung (from 1), the best first; of equals the earlier."""
    there = [t for t in trials if len(t.history) >= rung and t.status != "failed"]
    return sorted(there, key=lambda t: (-float(t.history[rung - 1][SCORE]), t.trial))


def places(total: int, factor: int, rung: int) -> int:
    """How many of ``total`` trials go on from a rung in the end."""
    for _ in range(rung):
        total = max(1, round(total / factor))
    return total


def promoted(trials: Sequence[Trial], rungs: int, factor: int, more: bool) -> Trial | None:
    """The trial that goes on next, if one does.

    Args:
        trials: of the search.
        rungs: of a whole training, its end among them.
        factor: one in so many goes on.
        more: whether new trials will come.
    """
    for rung in range(rungs - 1, 0, -1):
        row = ranked(trials, rung)
        for trial in row[: len(row) // factor]:
            if paused(trial) and len(trial.history) == rung:
                return trial
    for rung in range(1, rungs):
        if more or any(not t.ended and not paused(t) and (t.until or 0) <= rung for t in trials):
            return None  # others will yet be scored here
        row = ranked(trials, rung)
        for trial in row[: max(1, round(len(row) / factor))]:
            if paused(trial) and len(trial.history) == rung:
                return trial
    return None


def hopeless(trials: Sequence[Trial], rungs: int, factor: int, total: int) -> list[Trial]:
    """Paused trials that will not go on, whatever comes: their checkpoints need not be kept.

    Args:
        trials, rungs, factor: as of ``promoted``.
        total: trials that the search will have.
    """
    found = []
    for rung in range(1, rungs):
        behind = ranked(trials, rung)[places(total, factor, rung) :]
        found += [t for t in behind if paused(t) and len(t.history) == rung]
    return found
