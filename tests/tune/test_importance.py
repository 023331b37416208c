"""Which keys mattered."""

from __future__ import annotations

import random

import pytest
from searching import trial

from tune.importance import importance, position
from tune.space import Domain

SPACE = {"train.learning_rate": Domain("loguniform", (1e-4, 1e-2)), "model.pooling": Domain("choice", ("max", "mean"))}


def test_the_key_that_decides_comes_first() -> None:
    generator = random.Random(3)
    trials = []
    for number in range(1, 31):
        point = {key: domain.draw(generator) for key, domain in SPACE.items()}
        trials.append(
            trial(number, [position(point["train.learning_rate"], SPACE["train.learning_rate"])], point=point)
        )
    found = importance(trials, SPACE, 1)
    assert [f["key"] for f in found] == list(SPACE)
    assert found[0]["importance"] > 0.9
    assert found[0]["correlation"] > 0.9
    assert found[1]["correlation"] is None


def test_too_few_trials_say_nothing() -> None:
    assert importance([trial(1, [0.5])], SPACE, 1) == []
    assert importance([trial(n, [0.5]) for n in range(1, 9)], SPACE, 1) == []


def test_positions() -> None:
    assert position(1e-3, SPACE["train.learning_rate"]) == pytest.approx(0.5)
    assert position("mean", SPACE["model.pooling"]) == 1.0
    assert position(None, Domain("uniform", (0, 1))) == 0.5
    assert position(7, Domain("int", (0, 5))) == 1.0
