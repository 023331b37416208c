"""Proposals: Optuna learns from what is known, with no memory but the journal."""

from __future__ import annotations

import pytest
from searching import trial

from pipeline.config import load
from tune.journal import Trial
from tune.propose import grid, propose
from tune.space import Space, space_of


@pytest.fixture
def space() -> Space:
    rate, others = "train.learning_rate: {loguniform: [1e-5, 1e-1]}", "train.epochs: {int: [1, 4]}"
    text = f"tune.space={{{rate}, {others}, train.warmup: {{choice: [0.0, 0.1]}}}}"
    return space_of(load(sets=[text]), "lstm", 3e-3)


def score(rate: float) -> float:
    import math

    return 1.0 - abs(math.log10(rate) + 3) / 10


def test_tpe_comes_near_the_best_rate(space: Space) -> None:
    pytest.importorskip("optuna")
    default = {"train.learning_rate": 1e-2, "train.epochs": 2, "train.warmup": 0.1}
    trials: list[Trial] = []
    for number in range(1, 33):
        point = propose("optuna", space, default, trials, seed=1)
        assert point is not None
        assert all(space[key].holds(value) for key, value in point.items())
        status = "stopped" if number % 4 == 0 else "finished"
        trials.append(trial(number, [score(point["train.learning_rate"])], status, point=point))
    late = [score(t.point["train.learning_rate"]) for t in trials[-8:]]
    early = [score(t.point["train.learning_rate"]) for t in trials[1:9]]
    assert sum(late) > sum(early)
    assert propose("optuna", space, default, trials, 1) == propose("optuna", space, default, trials, 1)


def test_choices_of_any_kind_and_a_default_between_whole_numbers() -> None:
    pytest.importorskip("optuna")
    text = "tune.space={train.epochs: {int: [1, 4]}, model.hidden: {choice: [[16], [8, 4]]}}"
    space = space_of(load(sets=[text]), "lstm", 3e-3)
    trials = [trial(1, [0.5], point={"train.epochs": 2.5, "model.hidden": [16]})]
    for number in range(2, 9):
        point = propose("optuna", space, trials[0].point, trials, 1)
        assert point is not None
        assert all(space[k].holds(v) for k, v in point.items())
        trials.append(trial(number, [0.1 * number], point=point))


def test_a_grid_names_each_point_once() -> None:
    space = space_of(load(sets=["tune.space={train.batch_tokens: {choice: [512, 512, 1024]}}"]), "lstm", 3e-3)
    assert grid(space) == [{"train.batch_tokens": 512}, {"train.batch_tokens": 1024}]


def test_a_default_outside_of_the_space_does_not_disturb(space: Space) -> None:
    pytest.importorskip("optuna")
    outside = {"train.learning_rate": 0.5, "train.epochs": 2, "train.warmup": 0.06}
    assert propose("optuna", space, outside, [trial(1, [0.5], point=outside)], 1) is not None
