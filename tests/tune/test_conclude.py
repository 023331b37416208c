"""What a search bought, in figures and words, and which training is kept."""

from __future__ import annotations

import numpy as np
import pytest
from searching import trial

from pipeline.evaluate.predictions import Predictions
from tune.conclude import chosen, compared, two_level, verdict


def predictions(right: float, seed: int, rows: int = 2_000) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    guess = np.where(generator.random(rows) < right, labels, 1 - labels)
    return Predictions([str(i) for i in range(rows)], labels, np.eye(2)[guess], ["a", "b"], "test")


def test_a_clear_gain_is_a_gain_and_noise_is_none() -> None:
    default = [predictions(0.80, s) for s in range(3)]
    clear = compared([predictions(0.90, s + 10) for s in range(3)], default, 1)
    assert clear["difference"]["value"] == pytest.approx(0.1, abs=0.02)
    assert 0.07 < clear["difference"]["interval"][0] < clear["difference"]["interval"][1] < 0.13
    assert (clear["rows"], clear["seeds"], clear["split"]) == (2_000, 3, "test")
    words = verdict(clear, trial(2, [0.9]), [])
    assert words.startswith("trial 2 is better than the default recipe: +1")
    noise = compared([predictions(0.80, s + 20) for s in range(3)], default, 1)
    assert verdict(noise, trial(2, [0.9]), []).startswith("no better than the default: ")
    worse = compared([predictions(0.60, s + 20) for s in range(3)], default, 1)
    assert "but worse" in verdict(worse, trial(2, [0.9]), [])


def test_the_interval_covers_seeds_as_well_as_rows() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(0, 0.01, (4, 1_000))
    alike, apart = rows + 0.1, rows + np.array([[0.0], [0.0], [0.2], [0.2]])
    narrow, wide = two_level(alike, 1), two_level(apart, 1)
    assert narrow[1] - narrow[0] < 0.01
    assert wide[1] - wide[0] > 0.1


def test_what_was_not_compared_is_said() -> None:
    assert verdict(None, trial(1, [0.9]), []) == "no trial beat the default recipe: use the defaults"
    assert "tune.seeds=0" in verdict(None, trial(2, [0.9]), [])
    assert "did not come to their end" in verdict(None, trial(2, [0.9]), [trial(3)])


def test_validation_alone_chooses_what_is_kept() -> None:
    best = trial(2, [0.9])
    finals = [
        trial(5, [0.80], phase="final", arm="default"), trial(6, [0.95], phase="final", arm="winner"),
        trial(7, [0.82], phase="final", arm="default"), trial(8, [0.60], phase="final", arm="winner"),
        trial(9, [0.99], "failed", phase="final", arm="winner"),
    ]  # fmt: skip
    assert chosen(finals, best).trial == 7
    assert chosen(finals[:2], best).trial == 6
    assert chosen([], best) is best
