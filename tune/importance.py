"""How much each key mattered: what a random forest that predicts the score loses when the key's values are shuffled.

Permutation importance (Breiman, Machine Learning 45, 2001) on the trials themselves; with few trials it is a hint, and
the rank correlation beside it says in which direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from tune.journal import Trial
from tune.space import Domain, Space

FEWEST = 4  # trials below which nothing can be said
TREES, SHUFFLES = 200, 20


def importance(trials: Sequence[Trial], space: Space, seed: int) -> list[dict[str, Any]]:
    """The keys, the most important first.

    Trials that were stopped early count by their best score up to there.

    Args:
        trials: of the search.
        space: its domains.
        seed: of the forest.

    Returns:
        For each key ``key``, ``importance`` (share of the sum, 0..1) and ``correlation`` (Spearman's, -1..1; None for
        a choice without order). Nothing if there are too few trials, or all scored alike.
    """
    scored = [t for t in trials if t.best is not None and t.status != "failed"]
    if len(scored) < FEWEST or len({t.best for t in scored}) < 2:
        return []
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.stack([_column([t.point.get(key) for t in scored], space[key]) for key in space], axis=1)
    scores = np.array([t.best for t in scored], float)
    forest = RandomForestRegressor(TREES, random_state=seed, min_samples_leaf=2).fit(columns, scores)
    lost = permutation_importance(forest, columns, scores, n_repeats=SHUFFLES, random_state=seed).importances_mean
    lost = np.maximum(lost, 0.0)
    shares = lost / lost.sum() if lost.sum() > 0 else lost
    found = [
        {"key": key, "importance": float(share), "correlation": _correlation(columns[:, i], scores, space[key])}
        for i, (key, share) in enumerate(zip(space, shares, strict=True))
    ]
    return sorted(found, key=lambda one: -float(one["importance"]))


def _correlation(column: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], domain: Domain) -> float | None:
    if not _ordered(domain) or len(set(column)) < 2:
        return None
    return float(spearmanr(column, scores).statistic)


def _ordered(domain: Domain) -> bool:
    return all(isinstance(v, (int, float)) for v in domain.values)


def _column(values: Sequence[Any], domain: Domain) -> npt.NDArray[np.float64]:
    return np.array([position(v, domain) for v in values], float)


def position(value: Any, domain: Domain) -> float:
    """Where a value lies in its domain, 0..1: on a log scale where that is the domain's, by rank in a choice."""
    if domain.kind == "choice":
        at = list(domain.values).index(value) if value in domain.values else 0
        return at / max(1, len(domain.values) - 1)
    low, high = (float(v) for v in domain.values)
    if not isinstance(value, (int, float)):
        return 0.5
    if domain.kind == "loguniform":
        low, high, value = np.log(low), np.log(high), np.log(max(float(value), 1e-12))
    return float(min(1.0, max(0.0, (value - low) / (high - low))))
