"""How far live traffic has moved from a reference: the population stability index, and what of it is chance.

``PSI = sum over bins of (live - reference) * ln(live / reference)``, with the share of rows that each bin holds. That
is Jeffreys' divergence (Kullback and Leibler 1951) over bins. Siddiqi (Credit Risk Scorecards, 2006) reads it so: below
0.1 no change to speak of, up to 0.25 a change to look into, beyond it another population.

The PSI of two samples of the *same* population is not 0: times ``1 / (1/n + 1/m)`` it is chi-square with ``bins - 1``
degrees of freedom (Yurdakul, Statistical Properties of Population Stability Index, 2018), so in the mean it is
``(bins - 1) * (1/n + 1/m)``. That is taken off before a verdict, and there is none before enough rows have come.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

WARN, ALARM = 0.1, 0.25
# An empty bin would make the index infinite, so a share counts as half a row in a thousand at least, on both sides: a
# label that neither side has adds nothing, which adding half a row to each side's counts would not give.
FLOOR = 0.0005
MIN_ROWS = 100  # whatever the bins: chi-square holds for large samples
BY_CHANCE = 0.001  # how often enough rows of an unchanged population may look like WARN

Verdict = Literal["ok", "warn", "alarm", "too few rows"]
Floats = npt.NDArray[np.float64]


def psi(reference: npt.ArrayLike, live: npt.ArrayLike) -> float:
    """The population stability index of two lists of shares over the same bins; never below 0."""
    a, b = np.maximum(np.asarray(reference, float), FLOOR), np.maximum(np.asarray(live, float), FLOOR)
    return float(((b - a) * np.log(b / a)).sum())


def noise(bins: int, live_rows: float, reference_rows: int) -> float:
    """What the index is in the mean where nothing has changed.

    Args:
        bins: that hold rows.
        live_rows, reference_rows: behind the shares.
    """
    return (max(bins, 2) - 1) * (1 / live_rows + 1 / reference_rows)


def rows_needed(bins: int, reference_rows: int) -> float:
    """Live rows from which chance alone reaches ``WARN`` less than once in 1 / ``BY_CHANCE`` times.

    Infinite where the reference itself is too small.
    """
    freedom = max(bins, 2) - 1
    beyond = float(chdtri(freedom, BY_CHANCE)) - freedom
    inverse = WARN / beyond - 1 / reference_rows
    return max(MIN_ROWS, math.ceil(1 / inverse)) if inverse > 0 else math.inf


def verdict(index: float, bins: int, live_rows: float, reference_rows: int) -> Verdict:
    """What an index says, less its noise."""
    if live_rows < rows_needed(bins, reference_rows):
        return "too few rows"
    moved = index - noise(bins, live_rows, reference_rows)
    return "alarm" if moved >= ALARM else "warn" if moved >= WARN else "ok"
