"""What a search bought: the winner against the default recipe, trained again on several seeds, on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluate import intervals, metrics
from pipeline.evaluate.predictions import Predictions
from tune.journal import Trial

RESAMPLES = 2_000


def compared(winner: Sequence[Predictions], default: Sequence[Predictions], seed: int) -> dict[str, Any]:
    """Both arms' figures on the same rows, seed by seed, and their difference with its interval.

    The interval is of a bootstrap over both things that could have come out otherwise: the seeds of training (a pair of
    trainings is drawn) and the test rows (a row is drawn, for both arms alike).

    Args:
        winner, default: of one training each, aligned: the same rows in the same order, the same seed at one place.
        seed: of the draws.

    Returns:
        ``rows``, ``seeds``, ``split``, per arm ``accuracy`` and ``macro_f1`` (means over seeds), and ``difference`` of
        accuracy (``value``, ``interval`` of 95 %).
    """
    arms = {"winner": winner, "default": default}
    figures: dict[str, Any] = {"rows": len(default[0].ids), "seeds": len(default), "split": default[0].split}
    for name, arm in arms.items():
        sides = [metrics.summary(p.labels, p.probabilities, p.names) for p in arm]
        figures[name] = {k: float(np.mean([s[k] for s in sides])) for k in ("accuracy", "macro_f1")}
    gain = np.stack([_right(w) - _right(d) for w, d in zip(winner, default, strict=True)])
    figures["difference"] = {"value": float(gain.mean()), "interval": two_level(gain, seed)}
    return figures


def two_level(gain: npt.NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> list[float]:
    """The 95 % interval of the mean of [seeds, rows], both drawn with replacement."""
    generator = np.random.default_rng(seed)
    seeds, rows = gain.shape
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = gain[generator.integers(0, seeds, seeds)].mean(axis=0)
        means[i] = drawn[generator.integers(0, rows, rows)].mean()
    return intervals.interval(means[:, None])[0]


def _right(predictions: Predictions) -> npt.NDArray[np.float64]:
    return (predictions.probabilities.argmax(axis=1) == predictions.labels).astype(np.float64)


def verdict(result: dict[str, Any] | None, best: Trial, finals: Sequence[Trial]) -> str:
    """The result of the search in one sentence.

    Args:
        result: of ``compared``; None where there was nothing to compare.
        best: the winner on validation rows.
        finals: the final trainings that ended well.
    """
    if best.trial == 1:
        return "no trial beat the default recipe: use the defaults"
    if result is None:
        why = "tune.seeds=0" if not finals else "the final trainings did not come to their end"
        return f"trial {best.trial} was the best on validation rows; not compared with the default recipe ({why})"
    value, (low, high) = result["difference"]["value"], result["difference"]["interval"]
    seeds, rows = result["seeds"], f"{result['rows']:,} {result['split']} rows"
    points = f"{100 * value:+.2f} points of accuracy on {rows} over {seeds} seed{'s' if seeds != 1 else ''}"
    points += f" (95% {100 * low:+.2f} to {100 * high:+.2f})"
    if low > 0:
        return f"trial {best.trial} is better than the default recipe: {points}"
    if high < 0:
        return f"no better than the default, but worse: {points}; use the defaults"
    return f"no better than the default: {points}"


def chosen(finals: Sequence[Trial], best: Trial) -> Trial:
    """The training that becomes ``best/``: chosen on validation rows alone.

    The arm with the higher mean over its seeds, the default recipe if they are equal; of that arm, the best seed. Where
    nothing was trained again, the best trial.
    """
    arms: dict[str, list[Trial]] = {}
    for trial in finals:
        if trial.best is not None and trial.status == "finished":
            arms.setdefault(str(trial.arm), []).append(trial)
    if not arms:
        return best
    means = {arm: float(np.mean([t.best for t in trials if t.best is not None])) for arm, trials in arms.items()}
    arm = max(means, key=lambda name: (means[name], name == "default"))
    return max(arms[arm], key=lambda t: (t.best or 0.0, -t.trial))
