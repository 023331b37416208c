"""What a search bought, in figures and words, and which training is kept."""

from __future__ import annotations

import numpy as np
import pytest
from searching import trial

from pipeline.evaluate.predictions import Predictions
from tune.conclude import chosen, compared, interval, paired, verdict


def predictions(right: float, seed: int, rows: int = 2_000) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    guess = np.where(generator.random(rows) < right, labels, 1 - labels)
    return Predictions([str(i) for i in range(rows)], labels, np.eye(2)[guess], ["a", "b"], "test")


def arm(right: float, first: int, count: int = 3) -> list[Predictions]:
    return [predictions(right, first + i) for i in range(count)]


def test_a_clear_gain_is_a_gain_and_noise_is_none() -> None:
    default, best = arm(0.80, 0), trial(2, [0.9])
    clear = compared(arm(0.90, 10), default, 1)
    for figure in ("accuracy", "macro_f1"):
        found = clear["difference"][figure]
        assert found["value"] == pytest.approx(0.1, abs=0.02)
        assert 0.03 < found["interval"][0] < found["value"] < found["interval"][1] < 0.17
    assert (clear["rows"], clear["seeds"], clear["split"]) == (2_000, 3, "test")
    assert verdict(clear, best).startswith("trial 2 is better than the default recipe: +")
    assert verdict(compared(arm(0.80, 20), default, 1), best).startswith("no better than the default: ")
    assert "but worse" in verdict(compared(arm(0.60, 20), default, 1), best)


def test_one_seed_tells_nothing_of_luck() -> None:
    result = compared(arm(0.90, 10, 1), arm(0.80, 0, 1), 1)
    assert result["difference"]["macro_f1"]["interval"] is None
    assert "one seed does not tell luck from gain" in verdict(result, trial(2, [0.9]))


def test_the_interval_holds_what_it_promises_over_three_seeds() -> None:
    """By the luck of training alone, without any gain: 95 of 100 intervals cover zero, give or take."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        found = interval(generator.normal(0, 0.01, 3), 0.0, 1_000)
        assert found is not None
        covered += found[0] < 0 < found[1]
    assert 0.93 < covered / 2_000 < 0.97
    assert interval(np.array([0.1, 0.1, 0.1]), 1e-4, 1_000) == pytest.approx([0.1 - 0.0196, 0.1 + 0.0196], abs=1e-3)


def test_what_was_not_compared_is_said() -> None:
    assert verdict(None, trial(1, [0.9])) == "no trial beat the default recipe: use the defaults"
    words = verdict(None, trial(2, [0.9]), "tune.seeds=0", "1 of 3 trainings of the winner failed")
    assert words.endswith("default recipe: tune.seeds=0; 1 of 3 trainings of the winner failed")


def test_validation_alone_chooses_what_is_kept() -> None:
    best = trial(2, [0.9])
    finals = [
        trial(5, [0.80], phase="final", arm="default", seed=1), trial(6, [0.95], phase="final", arm="winner", seed=1),
        trial(7, [0.82], phase="final", arm="default", seed=2), trial(8, [0.60], phase="final", arm="winner", seed=2),
        trial(9, [0.99], "failed", phase="final", arm="winner", seed=3),
        trial(10, [0.99], phase="final", arm="default", seed=3),
    ]  # fmt: skip
    assert [[t.trial for t in side] for side in paired(finals).values()] == [[6, 8], [5, 7]]
    assert chosen(finals, best).trial == 7
    assert chosen(finals[:2], best).trial == 6
    assert chosen(finals[:1], best) is best  # the winner was not trained again: nothing speaks against it
    assert chosen([], best) is best
    assert chosen(finals[:1], trial(1, [0.9])).trial == 5
