"""The search space: the domains of the keys, and the default recipe that every search starts from."""

from __future__ import annotations

import math
import random
from typing import Any

from pipeline.config import Config

KEYS = ("train.learning_rate", "train.batch_tokens", "train.warmup", "train.weight_decay")


def default_point(config: Config, rate: float) -> dict[str, float]:
    """The default recipe: trial 1 of every search, so that a search never ends below it.

    Args:
        config: the run's configuration.
        rate: the peak learning rate that it resolves to.
    """
    train = config.train
    return {
        "train.learning_rate": rate,
        "train.batch_tokens": train.batch_tokens,
        "train.warmup": train.warmup,
        "train.weight_decay": train.weight_decay,
    }


def draw(config: Config, count: int, rate: float) -> list[dict[str, float]]:
    """Points of the space, drawn before the search starts: the same whatever the order trials end in.

    Learning rate and weight decay are log-uniform (their effect is multiplicative), warm-up is uniform, the
    batch size a choice. Figures are rounded to three digits, so that they can be typed again. Without a range of
    its own the rate is searched around the recipe's: what suits an LSTM would wreck a pretrained encoder.
    """
    generator = random.Random(config.seed)
    tune = config.tune
    rates = tune.learning_rate or (rate / 4, rate * 5)
    return [
        {
            "train.learning_rate": _log_uniform(generator, *rates),
            "train.batch_tokens": generator.choice(tune.batch_tokens),
            "train.warmup": float(f"{generator.uniform(*tune.warmup):.3g}"),
            "train.weight_decay": _log_uniform(generator, *tune.weight_decay),
        }
        for _ in range(count)
    ]


def points(config: Config, rate: float) -> list[dict[str, float]]:
    """All trials of a search: the default recipe, then random points."""
    return [default_point(config, rate), *draw(config, config.tune.trials - 1, rate)]


def trial_config(config: Config, point: dict[str, float]) -> Config:
    """The configuration of one trial: the point, and the trial's share of rows, epochs and workers."""
    tune = config.tune
    changes: dict[str, Any] = {
        **point,
        "train.epochs": tune.epochs,
        "train.evaluations": tune.evaluations,
        "train.workers": tune.workers,
        "train.min_workers": None,
        "train.max_failures": 1,
    }
    if tune.max_rows is not None:
        limit = config.train.max_rows
        changes["train.max_rows"] = tune.max_rows if limit is None else min(limit, tune.max_rows)
    return config.updated(changes)


def _log_uniform(generator: random.Random, low: float, high: float) -> float:
    return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}")
