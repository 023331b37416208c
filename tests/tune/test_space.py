"""The search space: the default recipe first, then points inside the ranges, the same at every call."""

from __future__ import annotations

from pipeline.config import load
from pipeline.errors import UserError
from tune.space import KEYS, draw, points, trial_config


def test_first_point_is_the_default_recipe() -> None:
    config = load(sets=["tune.trials=5", "train.warmup=0.11"])
    got = points(config, 3e-4)
    assert len(got) == 5
    assert got[0] == dict(zip(KEYS, (3e-4, 2048, 0.11, 0.01), strict=True))
    assert len(points(load(sets=["tune.trials=1"]), 3e-4)) == 1


def test_points_lie_in_their_ranges_and_follow_the_seed() -> None:
    config = load()
    drawn = draw(config, 300, 1e-4)
    tune = config.tune
    for key in KEYS:
        values = [p[key] for p in drawn]
        domain = getattr(tune, key.removeprefix("train.")) or (1e-4 / 4, 1e-4 * 5)  # the rate: around the recipe's
        if key == "train.batch_tokens":
            assert set(values) == set(domain)
        else:
            assert domain[0] <= min(values) < max(values) <= domain[1]
            assert all(float(f"{v:.3g}") == v for v in values)
    assert drawn[:7] == draw(config, 7, 1e-4)
    assert drawn[:7] != draw(load(sets=["seed=18"]), 7, 1e-4)


def test_rate_is_log_uniform() -> None:
    rates = [p["train.learning_rate"] for p in draw(load(sets=["tune.learning_rate=[1e-6, 1e-2]"]), 400, 1e-4)]
    assert 0.4 < sum(r < 1e-4 for r in rates) / 400 < 0.6


def test_trial_config_takes_the_point_and_the_trial_budget() -> None:
    config = load(sets=["tune.epochs=1.5", "tune.max_rows=500", "tune.workers=2", "train.epochs=9"])
    point = points(config, 3e-4)[1]
    train = trial_config(config, point).train
    assert {k: getattr(train, k.removeprefix("train.")) for k in KEYS} == point
    assert (train.epochs, train.max_rows, train.workers, train.evaluations) == (1.5, 500, 2, config.tune.evaluations)
    assert config.train.epochs == 9


def test_trial_rows_never_exceed_those_of_the_run() -> None:
    for sets, expected in [
        (["train.max_rows=100"], 100),
        (["train.max_rows=100", "tune.max_rows=null"], 100),
        (["tune.max_rows=null"], None),
    ]:
        config = load(sets=sets)
        assert trial_config(config, points(config, 1e-4)[0]).train.max_rows == expected


def test_every_drawn_point_makes_a_valid_config() -> None:
    config = load(sets=["tune.warmup=[0, 0.99]"])
    try:
        for point in draw(config, 50, 1e-4):
            trial_config(config, point)
    except UserError as e:
        raise AssertionError(str(e)) from e


def test_a_trial_has_workers_of_its_own_number() -> None:
    config = load(None, ["train.workers=4", "train.min_workers=2"])
    trial = trial_config(config, {})
    assert (trial.train.workers, trial.train.min_workers) == (config.tune.workers, None)
