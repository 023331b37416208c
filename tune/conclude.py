"""What a search bought: the winner against the default recipe, trained again on several seeds, on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.evaluate import intervals, metrics
from pipeline.evaluate.predictions import Predictions
from tune.journal import Trial

FIGURES = ("macro_f1", "accuracy")


def compared(winner: Sequence[Predictions], default: Sequence[Predictions], seed: int) -> dict[str, Any]:
    """Both arms' figures on the same rows, seed by seed, and their differences with intervals.

    Two things could have come out otherwise. The luck of training: the variance of the differences between seeds, over
    their number. The choice of test rows: the variance of a bootstrap over rows, whole rows drawn for both arms and all
    seeds alike. The interval is Student's t of their sum, with Satterthwaite's degrees of freedom (Biometrics 2, 1946);
    three seeds have few, and the interval is as wide as that.

    Args:
        winner, default: of one training each, aligned: the same rows in the same order, the same seed at one place.
        seed: of the draws.

    Returns:
        ``rows``, ``seeds``, ``split``, per arm ``macro_f1`` and ``accuracy`` (means over seeds), and ``difference`` of
        each (``value``, ``interval`` of 95 %; of one seed it is None: nothing is known of the luck of training).
    """
    labels, names, count = default[0].labels, default[0].names, len(default)
    arms = {"winner": winner, "default": default}
    guesses = [p.probabilities.argmax(axis=1) for arm in arms.values() for p in arm]
    cells, counts = np.unique(np.stack([labels, *guesses]), axis=1, return_counts=True)
    drawn: dict[str, list[npt.NDArray[np.float64]]] = {key: [] for key in FIGURES}
    for draws in intervals.resampled(counts, seed):
        of = [intervals.figures(draws, cells[0], cells[i + 1], len(names)) for i in range(len(guesses))]
        each = {"accuracy": [f[0] for f in of], "macro_f1": [intervals.mean_of_known(f[3]) for f in of]}
        for key in FIGURES:
            drawn[key].append(np.mean(each[key][:count], axis=0) - np.mean(each[key][count:], axis=0))
    found: dict[str, Any] = {"rows": len(labels), "seeds": count, "split": default[0].split, "difference": {}}
    sides = {n: [metrics.summary(p.labels, p.probabilities, names) for p in arm] for n, arm in arms.items()}
    for name, side in sides.items():
        found[name] = {key: float(np.mean([s[key] for s in side])) for key in FIGURES}
    for key in FIGURES:
        gains = np.array([w[key] - d[key] for w, d in zip(sides["winner"], sides["default"], strict=True)])
        by_rows = float(np.var(np.concatenate(drawn[key])))
        found["difference"][key] = {"value": float(gains.mean()), "interval": interval(gains, by_rows, len(labels))}
    return found


def interval(gains: npt.NDArray[np.float64], by_rows: float, rows: int) -> list[float] | None:
    """The 95 % interval of a mean over seeds.

    Args:
        gains: of each seed.
        by_rows: variance of their mean by the choice of rows.
        rows: how many there are.

    Returns:
        ``[low, high]``, or None for one seed.
    """
    if len(gains) < 2:
        return None
    by_seeds = float(np.var(gains, ddof=1)) / len(gains)
    total = by_seeds + by_rows
    if total == 0.0:
        return [float(gains.mean())] * 2
    freedom = total**2 / (by_seeds**2 / (len(gains) - 1) + by_rows**2 / max(1, rows - 1))
    half = float(stats.t.ppf(0.975, freedom)) * total**0.5
    return [float(gains.mean()) - half, float(gains.mean()) + half]


def verdict(result: dict[str, Any] | None, best: Trial, why: str = "", failed: str = "") -> str:
    """The result of the search in one sentence, by the figure that it was a search for.

    Args:
        result: of ``compared``; None where there was nothing to compare.
        best: the winner on validation rows.
        why: there was nothing to compare.
        failed: final trainings, in words.
    """
    if best.trial == 1:
        return "no trial beat the default recipe: use the defaults"
    more = f"; {failed}" if failed else ""
    if result is None:
        return f"trial {best.trial} was the best on validation rows; not compared with the default recipe: {why}{more}"
    found = result["difference"]["macro_f1"]
    value, ends = found["value"], found["interval"]
    over = f"{result['rows']:,} {result['split']} rows over {result['seeds']} seed{'s' if result['seeds'] != 1 else ''}"
    points = f"{100 * value:+.2f} points of macro F1 on {over}"
    if ends is None:
        return f"trial {best.trial}: {points}; one seed does not tell luck from gain (tune.seeds=3){more}"
    points += f" (95% {100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}){more}"
    if ends[0] > 0:
        return f"trial {best.trial} is better than the default recipe: {points}"
    if ends[1] < 0:
        return f"no better than the default, but worse: {points}; use the defaults"
    return f"no better than the default: {points}"


def paired(finals: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The final trainings of both arms that ended well with the same seeds, in the order of the seeds."""
    good: dict[str, dict[int, Trial]] = {"winner": {}, "default": {}}
    for trial in finals:
        if trial.status == "finished" and trial.best is not None:
            good[str(trial.arm)][trial.seed] = trial
    seeds = sorted(good["winner"].keys() & good["default"].keys())
    return {arm: [trials[seed] for seed in seeds] for arm, trials in good.items()}


def chosen(finals: Sequence[Trial], best: Trial) -> Trial:
    """The training that becomes ``best/``: chosen on validation rows alone.

    The arm with the higher mean over the seeds that both have, the default recipe if they are equal; of that arm, the
    best seed. Where the winner was not trained again, the best trial; where that is the default recipe, its training.
    """
    if best.trial == 1:
        alone = [t for t in finals if t.arm == "default" and t.status == "finished" and t.best is not None]
        return max(alone, key=lambda t: (t.best or 0.0, -t.trial), default=best)
    arms = paired(finals)
    if not arms["winner"]:
        return best
    means = {arm: float(np.mean([t.best for t in trials if t.best is not None])) for arm, trials in arms.items()}
    arm = max(means, key=lambda name: (means[name], name == "default"))
    return max(arms[arm], key=lambda t: (t.best or 0.0, -t.trial))
