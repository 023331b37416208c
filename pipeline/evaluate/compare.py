"""``broadsheet evaluate --compare A B``: two runs on the same rows, and whether the difference is more than luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipeline.errors import UserError
from pipeline.evaluate import intervals, metrics
from pipeline.evaluate.predictions import Predictions

ALPHA = 0.05


def aligned(a: Predictions, b: Predictions, names: tuple[str, str]) -> Predictions:
    """``b`` in the order of rows and classes of ``a``.

    Raises:
        UserError: they are not about the same rows with the same labels.
    """
    here, there = names
    if set(a.names) != set(b.names):
        raise UserError(f"{here} and {there} have different classes: only runs on the same data can be compared")
    at = {name: i for i, name in enumerate(b.ids)}
    if len(at) != len(a.ids) or any(name not in at for name in a.ids):
        common = sum(name in at for name in a.ids)
        raise UserError(
            f"{here} and {there} were tested on different rows ({len(a.ids):,} and {len(b.ids):,}, {common:,} in "
            "common): evaluate both on the same data, for example with --prepared"
        )
    order = np.array([at[name] for name in a.ids], np.int64)
    column = [b.names.index(name) for name in a.names]
    labels = np.argsort(column)[b.labels[order]]
    differs = np.flatnonzero(labels != a.labels)
    if len(differs):
        i = int(differs[0])
        raise UserError(
            f"row {a.ids[i]} is labelled '{a.names[a.labels[i]]}' in {here} and '{a.names[labels[i]]}' in {there}: "
            "evaluate both on the same data, for example with --prepared"
        )
    return replace(b, ids=a.ids, labels=labels, probabilities=b.probabilities[order][:, column], names=a.names)


def compare(a: Predictions, b: Predictions, seed: int) -> dict[str, Any]:
    """Both sides' figures, and the difference a - b.

    McNemar's exact test looks at the rows that one side alone gets right: were the two equally good, each such row
    would be either side's with probability one half (McNemar, Psychometrika 12, 1947). The intervals are of a paired
    bootstrap: whole rows are drawn, with what both sides say of them.

    Args:
        a, b: aligned (see ``aligned``).
        seed: of the draws.

    Returns:
        ``rows``, ``split``, ``a`` and ``b`` (``metrics.summary``), ``only_a`` and ``only_b`` (rows that one side alone
        gets right), ``p`` (McNemar), ``difference`` and ``difference_macro_f1`` (``value``, ``interval``).
    """
    sides = [metrics.summary(s.labels, s.probabilities, s.names) for s in (a, b)]
    guesses = [s.probabilities.argmax(axis=1) for s in (a, b)]
    right = [guess == a.labels for guess in guesses]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    cells, counts = np.unique(np.stack([a.labels, *guesses]), axis=1, return_counts=True)
    accuracy, macro = [], []
    for draws in intervals.resampled(counts, seed):
        of = [intervals.figures(draws, cells[0], cells[i], len(a.names)) for i in (1, 2)]
        accuracy.append(of[0][0] - of[1][0])
        macro.append(intervals.mean_of_known(of[0][3]) - intervals.mean_of_known(of[1][3]))

    def difference(key: str, draws: list[Any]) -> dict[str, Any]:
        (interval,) = intervals.interval(np.concatenate(draws)[:, None])
        return {"value": sides[0][key] - sides[1][key], "interval": interval}

    return {
        "rows": len(a.ids),
        "split": a.split,
        "a": sides[0],
        "b": sides[1],
        "only_a": only_a,
        "only_b": only_b,
        "p": float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0,
        "difference": difference("accuracy", accuracy),
        "difference_macro_f1": difference("macro_f1", macro),
    }


def verdict(result: Mapping[str, Any], names: tuple[str, str]) -> str:
    """The result in one sentence: which side is better, by how much, how sure."""
    value, (low, high) = result["difference"]["value"], result["difference"]["interval"]
    better, p = names[0], f"McNemar p={result['p']:.2g}"
    if value < 0:
        value, low, high, better = -value, -high, -low, names[1]
    points = f"{100 * value:+.2f} points of accuracy (95% {100 * low:+.2f} to {100 * high:+.2f}), {p}"
    if result["p"] < ALPHA:
        return f"{better} is better: {points}"
    return f"no significant difference: {better} {points}" if value else f"no difference in accuracy, {p}"


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows for ``console.table`` under a header of figure, A, B and A - B: figures, then F1 of each class."""
    a, b = result["a"], result["b"]
    pairs = [(name, a[key], b[key]) for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1"))]
    pairs += [("log loss", a["log_loss"], b["log_loss"]), ("calibration error", a["ece"], b["ece"])]
    pairs += [(f"F1 of {name}", one["f1"], b["per_class"][name]["f1"]) for name, one in a["per_class"].items()]
    return [[name, f"{x:.4f}", f"{y:.4f}", f"{x - y:+.4f}"] for name, x, y in pairs]
