"""Parts of the test rows: who belongs where, and which are significantly worse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from pipeline.evaluate import slices


def test_quarters_by_length() -> None:
    parts = slices.by_length(np.arange(1, 101))
    assert {name: int(mask.sum()) for name, mask in parts.items()} == {
        "1 to 25 tokens": 25,
        "26 to 50 tokens": 25,
        "51 to 75 tokens": 25,
        "76 to 100 tokens": 25,
    }
    assert list(slices.by_length(np.full(10, 7))) == ["7 tokens"]
    assert slices.by_length(np.array([], int)) == {}
    tied = slices.by_length(np.array([8] * 60 + [1, 2, 3, 9, 10, 11] * 10))
    assert sum(int(mask.sum()) for mask in tied.values()) == 120
    assert all(len(np.unique(m[:60])) == 1 for m in tied.values())


def test_the_p_value_is_that_of_the_chi_square_test() -> None:
    """The square of the pooled z is Pearson's statistic of the two-by-two table."""
    expected = chi2_contingency([[70, 30], [180, 20]], correction=False).pvalue
    assert slices.two_proportions(70, 100, 180, 200) == pytest.approx(expected)
    assert slices.two_proportions(10, 10, 90, 90) == 1.0


def test_a_weak_part_is_told_and_noise_is_not() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(4_000) % 4
    right = rng.random(4_000) < np.where(labels == 2, 0.8, 0.95)
    lengths = rng.integers(1, 100, 4_000)
    parts = slices.masks(labels, ["a", "b", "c", "d"], lengths, np.zeros(4_000, bool))
    judged = slices.judge(right, parts)
    assert {p["dimension"] for p in judged} == {"length", "class"}  # no twins: nothing to tell apart
    assert [p["part"] for p in judged if p["worse"]] == ["c"]
    (c,) = (p for p in judged if p["part"] == "c")
    assert c["rows"] == 1_000
    assert c["accuracy"] == right[labels == 2].mean()
    assert c["interval"][0] < c["accuracy"] < c["interval"][1]
    raw = slices.two_proportions(int(right[labels == 2].sum()), 1_000, int(right[labels != 2].sum()), 3_000)
    assert c["p"] == pytest.approx(raw * len(judged))
    said = slices.warning(judged)
    assert said is not None
    assert said.startswith("accuracy is significantly lower on: class 'c' 78.")
    assert slices.warning([p for p in judged if not p["worse"]]) is None


def test_small_parts_are_not_judged() -> None:
    labels = np.array([0] * 29 + [1] * 500)
    assert slices.judge(labels == 1, {"class": {"a": labels == 0, "b": labels == 1}}) == []
    twins = np.zeros(529, bool)
    twins[:40] = True
    judged = slices.judge(~twins, slices.masks(labels, ["a", "b"], np.ones(529, int), twins))
    assert [(p["dimension"], p["rows"], p["worse"]) for p in judged] == [
        ("a twin in train", 40, True),
        ("a twin in train", 489, False),
    ]
