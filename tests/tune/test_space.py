"""The search space: the default recipe, points inside the domains, and what is refused, with the way out."""

from __future__ import annotations

import random

import pytest

from pipeline.config import load
from pipeline.errors import UserError
from tune.space import Domain, default_point, final_config, shares, shipped, space_of, trial_config

SPACE = "tune.space={train.learning_rate: {loguniform: [1e-5, 1e-3]}, train.batch_tokens: {choice: [512, 1024]}}"


@pytest.mark.parametrize(("kind", "lora"), [("transformer", 0), ("transformer", 8), ("lstm", 0)])
def test_the_shipped_spaces_fit_the_configuration(kind: str, lora: int) -> None:
    config = load(sets=[f"model.lora_rank={lora}"])
    space = space_of(config, kind, 1e-3)
    assert space.keys() == shipped(kind, 1e-3, bool(lora)).keys()
    generator = random.Random(1)
    for _ in range(50):
        point = {key: domain.draw(generator) for key, domain in space.items()}
        assert all(space[key].holds(value) for key, value in point.items())
        trial_config(config, point)


def test_the_default_point_is_the_recipe() -> None:
    config = load(sets=[SPACE, "train.batch_tokens=999"])
    assert default_point(config, space_of(config, "lstm", 3e-3), 3e-3) == {
        "train.learning_rate": 3e-3,
        "train.batch_tokens": 999,
    }


def test_domains_draw_and_move_inside() -> None:
    generator = random.Random(2)
    log, whole = Domain("loguniform", (1e-6, 1e-2)), Domain("int", (2, 5))
    drawn = [log.draw(generator) for _ in range(400)]
    assert 0.4 < sum(v < 1e-4 for v in drawn) / 400 < 0.6
    assert all(float(f"{v:.3g}") == v for v in drawn)
    assert {whole.draw(generator) for _ in range(100)} == {2, 3, 4, 5}
    assert whole.grid() == (2, 3, 4, 5)
    assert log.moved(9e-3, 1.25, generator) == 1e-2
    assert whole.moved(5, 1.25, generator) == 5
    assert Domain("choice", ("a", "b", "c")).moved("a", 1.25, generator) == "b"
    assert not log.holds(True)
    assert whole.holds(3.0)
    assert not whole.holds(2.5)
    assert not log.holds(1.0)


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ("{train.learning_rat: {uniform: [0, 1]}}", "", "did you mean 'train.learning_rate'"),
        ("{serve.port: {int: [1, 9]}}", "", "serve.port is no hyper-parameter"),
        ("{train.workers: {int: [1, 2]}}", "", "train.workers is no hyper-parameter"),
        ("{train.teacher: {choice: [a, b]}}", "", "train.teacher is no hyper-parameter"),
        ("{train.epochs: {int: [0, 3]}}", "", "train.epochs"),
        ("{model.max_tokens: {int: [32, 64]}}", "", "data of its own"),
        ("{train.warmup: {uniform: [0, 0.1]}}", "tune.algorithm=grid", "write train.warmup as {choice"),
        ("{train.batch_tokens: {choice: [512]}}", "tune.algorithm=pbt", "cannot change there"),
        ("{}", "", "is empty"),
        ("{model.lora_rank: {loguniform: [4, 64]}}", "", "write whole numbers as {int"),
        ("{train.batch_tokens: {int: [64, 9999]}}", "tune.algorithm=grid", "a grid of 9,936 points"),
    ],
)
def test_what_cannot_be_searched_is_refused(space: str, more: str, message: str) -> None:
    config = load(sets=[f"tune.space={space}", *([more] if more else [])])
    with pytest.raises(UserError, match=message):
        space_of(config, "lstm", 1e-3)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{train.epochs: {normal: [0, 1]}}", "needs one domain"),
        ("{train.epochs: {int: [1, 4], choice: [1]}}", "needs one domain"),
        ("{train.epochs: {int: [4, 1]}}", "must be below"),
        ("{train.epochs: {int: [1.5, 4]}}", "whole numbers"),
        ("{train.warmup: {uniform: [0]}}", "two numbers"),
        ("{train.warmup: {loguniform: [0, 1]}}", "above 0"),
        ("{train.warmup: {choice: []}}", "at least one value"),
    ],
)
def test_a_domain_that_is_none_is_refused(space: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(sets=[f"tune.space={space}"])


def test_a_grid_needs_a_space_and_a_population_has_its_own() -> None:
    with pytest.raises(UserError, match="needs a grid"):
        space_of(load(sets=["tune.algorithm=grid"]), "lstm", 1e-3)
    space = space_of(load(sets=["tune.algorithm=pbt"]), "transformer", 1e-4)
    assert {"train.learning_rate", "train.weight_decay"} <= space.keys()
    assert "train.batch_tokens" not in space


def test_a_trial_takes_its_share_and_the_point() -> None:
    config = load(sets=["tune.epochs=1.5", "tune.max_rows=500", "tune.workers=2", "train.epochs=9",
                        "train.min_workers=1", "train.workers=4", "train.track=[tensorboard]"])  # fmt: skip
    train = trial_config(config, {"train.warmup": 0.2}).train
    assert (train.epochs, train.max_rows, train.workers, train.min_workers) == (1.5, 500, 2, None)
    assert (train.warmup, train.track) == (0.2, ())
    assert trial_config(config, {"train.epochs": 3}).train.epochs == 3
    assert config.train.epochs == 9


def test_trial_rows_never_exceed_those_of_the_run() -> None:
    for sets, expected in [
        (["train.max_rows=100"], 100),
        (["train.max_rows=100", "tune.max_rows=null"], 100),
        (["tune.max_rows=null"], None),
    ]:
        assert trial_config(load(sets=sets), {}).train.max_rows == expected


def test_trials_are_scored_at_the_rungs() -> None:
    assert shares(load(sets=["tune.rungs=3", "tune.reduction_factor=3"])) == (1 / 9, 1 / 3, 1.0)
    assert shares(load(sets=["tune.algorithm=random"])) is None
    assert trial_config(load(), {}).train.evaluate_at == shares(load())


def test_a_final_training_has_its_own_seed_and_size() -> None:
    config = load(sets=["tune.final_rows=5000", "tune.final_epochs=3", "tune.max_rows=100"])
    final = final_config(config, {"train.warmup": 0.2}, 99)
    assert (final.seed, final.train.max_rows, final.train.epochs, final.train.warmup) == (99, 5000, 3.0, 0.2)
    assert final.train.evaluate_at is None
    assert final_config(load(sets=["tune.max_rows=100"]), {}, 1).train.max_rows == 100
