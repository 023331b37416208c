"""The search space: keys of data, model and train with their domains, and the default recipe, which comes first."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import UserError

Point = dict[str, Any]
MOST = 1_000  # points of a grid

# The rows themselves, and how the work is laid out: neither is a hyper-parameter.
_NOT_SEARCHED = {
    *(f"data.{k}" for k in ("dataset", "train", "validation", "test", "label", "labels", "corrections", "format")),
    *(f"train.{k}" for k in ("workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "track")),
    *(f"train.{k}" for k in ("keep_checkpoints", "checkpoint_seconds", "evaluations", "evaluate_at")),
    *(f"train.{k}" for k in ("validation_rows", "max_rows", "teacher")),
}
# Each value of these is data of its own: all of them are prepared before the first trial.
_OF_DATA = ("model.name", "model.max_tokens", "model.vocab_size")
# What may change in the middle of a training without the rest of it losing its meaning.
GOES_ON = {f"train.{k}" for k in ("learning_rate", "weight_decay", "layer_decay", "label_smoothing", "clip_norm")}


@dataclass(frozen=True)
class Domain:
    """The values of one key.

    Attributes:
        kind: 'uniform', 'loguniform', 'int' (both ends count) or 'choice'.
        values: the two ends, or the choices.
    """

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        """A value; numbers are rounded to three digits, so that they can be typed again."""
        if self.kind == "choice":
            return generator.choice(self.values)
        low, high = self.values
        if self.kind == "int":
            return generator.randint(int(low), int(high))
        if self.kind == "uniform":
            return self.inside(generator.uniform(low, high))
        return self.inside(math.exp(generator.uniform(math.log(low), math.log(high))))

    def moved(self, value: Any, factor: float, generator: random.Random) -> Any:
        """A neighbour of a value: a number times ``factor``, or the choice before or after."""
        if self.kind == "choice":
            at = self.values.index(value) if value in self.values else 0
            return generator.choice([*self.values[max(0, at - 1) : at], *self.values[at + 1 : at + 2]] or [value])
        low, high = self.values
        near = min(high, max(low, value * factor))
        return round(near) if self.kind == "int" else self.inside(near)

    def inside(self, value: float) -> float:
        """A number cut to three digits and to the domain."""
        low, high = self.values
        return min(float(high), max(float(low), float(f"{value:.3g}")))

    def grid(self) -> tuple[Any, ...]:
        """All values, of a choice or of whole numbers."""
        return self.values if self.kind == "choice" else tuple(range(int(self.values[0]), int(self.values[1]) + 1))

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the domain."""
        if self.kind == "choice":
            return value in self.values
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if self.kind == "int" and not float(value).is_integer():
            return False
        return bool(self.values[0] <= value <= self.values[1])


Space = dict[str, Domain]


def shipped(kind: str, rate: float, lora: bool) -> dict[str, dict[str, tuple[Any, ...]]]:
    """The space of a kind of model, around the rate of its recipe: what suits an LSTM would wreck an encoder.

    Args:
        kind: 'transformer' or 'lstm'.
        rate: the recipe's peak rate.
        lora: whether adapters are trained.
    """
    common: dict[str, dict[str, tuple[Any, ...]]] = {
        "train.learning_rate": {"loguniform": (rate / 4, rate * 5)},
        "train.batch_tokens": {"choice": (1024, 2048, 4096)},
        "train.warmup": {"uniform": (0.0, 0.1)},
    }
    if kind == "lstm":
        return common | {
            "model.dropout": {"uniform": (0.1, 0.6)},
            "model.token_dropout": {"uniform": (0.0, 0.3)},
            "model.pooling": {"choice": ("max", "both", "mean")},
        }
    if lora:
        return common | {"model.lora_rank": {"choice": (4, 8, 16, 32)}}
    return common | {
        "train.layer_decay": {"uniform": (0.7, 1.0)},
        "train.label_smoothing": {"choice": (0.0, 0.1)},
        "train.weight_decay": {"loguniform": (1e-4, 0.1)},
    }


def of_population(space: Mapping[str, dict[str, tuple[Any, ...]]]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """What of a shipped space a population can change on its way."""
    return {key: domain for key, domain in space.items() if key in GOES_ON}


def space_of(config: Config, kind: str, rate: float) -> Space:
    """The configured space, or the one shipped for this kind of model.

    Args:
        config: the run's.
        kind: of model.
        rate: the recipe's peak rate.

    Raises:
        UserError: a key cannot be searched over, or a value of its domain is none for it.
    """
    tune = config.tune
    given = tune.space
    if given is None:
        given = shipped(kind, rate, bool(config.model.lora_rank))
        if tune.algorithm == "pbt":
            given = of_population(given)
        if tune.algorithm == "grid":
            raise UserError(
                "tune.algorithm=grid needs a grid: --set 'tune.space={train.learning_rate: {choice: [5e-5, 1e-4]}}'"
            )
    space = {key: Domain(*next(iter(domain.items()))) for key, domain in given.items()}
    known = configuration.all_keys()
    for key, domain in space.items():
        if key not in known:
            raise UserError(f"tune.space: {configuration.unknown_key(key)}")
        if key.split(".")[0] not in ("data", "model", "train") or key in _NOT_SEARCHED:
            raise UserError(f"tune.space: {key} is no hyper-parameter; search over other keys of data, model and train")
        if needs_data(key) and domain.kind != "choice":
            raise UserError(
                f"tune.space: each value of {key} is data of its own to prepare: name them, {{choice: [...]}}"
            )
        if tune.algorithm == "grid" and domain.kind not in ("choice", "int"):
            raise UserError(f"tune.space: a grid has no {domain.kind} domain: write {key} as {{choice: [...]}}")
        if tune.algorithm == "pbt" and key not in GOES_ON:
            raise UserError(
                f"tune.space: a population changes its keys in the middle of training, and {key} cannot change there; "
                f"these can: {', '.join(sorted(GOES_ON))}"
            )
        for value in domain.values:
            try:
                config.updated({key: value})
            except UserError as e:
                raise UserError(f"tune.space: {e}") from e
        if domain.kind in ("uniform", "loguniform"):
            try:
                config.updated({key: domain.values[0] + 0.37 * (domain.values[1] - domain.values[0])})
            except UserError as e:
                raise UserError(f"tune.space: {e}; write whole numbers as {{int: [...]}}") from e
    if tune.algorithm == "grid" and (size := math.prod(len(set(map(repr, d.grid()))) for d in space.values())) > MOST:
        raise UserError(f"tune.space: a grid of {size:,} points; up to {MOST:,} are tried: name fewer values")
    if not space:
        raise UserError("tune.space is empty: name at least one key, or leave it null")
    return space


def needs_data(key: str) -> bool:
    """Whether another value of a key means other prepared data."""
    return key.startswith("data.") or key in _OF_DATA


def default_point(config: Config, space: Space, rate: float) -> Point:
    """The default recipe: trial 1 of every search, so that a search never ends below it.

    Args:
        config: the run's configuration.
        space: its keys.
        rate: the peak learning rate that the configuration resolves to.
    """
    tree: Any = config.model_dump(mode="json")
    point: Point = {}
    for key in space:
        section, _, leaf = key.partition(".")
        point[key] = tree[section][leaf]
    if "train.learning_rate" in point:
        point["train.learning_rate"] = rate
    return point


def trial_config(config: Config, point: Point) -> Config:
    """The configuration of one trial: the trial's share of rows, epochs and workers, and the point."""
    tune = config.tune
    changes: dict[str, Any] = {
        "train.epochs": tune.epochs,
        "train.evaluations": tune.evaluations,
        "train.evaluate_at": shares(config),
        "train.workers": tune.workers,
        "train.min_workers": None,
        "train.cpus_per_worker": config.train.cpus_per_worker or 1,
        "train.max_failures": 1,
        "train.track": (),
        "train.max_rows": _least(tune.max_rows, config.train.max_rows),
    }
    return config.updated({**changes, **point})


def final_config(config: Config, point: Point, seed: int) -> Config:
    """The configuration with which the winner or the default recipe is trained again."""
    tune = config.tune
    again = trial_config(config, point)
    changes: dict[str, Any] = {"seed": seed, "train.evaluate_at": None}
    if tune.final_rows is not None:
        changes["train.max_rows"] = _least(tune.final_rows, config.train.max_rows)
    if tune.final_epochs is not None and "train.epochs" not in point:
        changes["train.epochs"] = tune.final_epochs
    return again.updated(changes)


def shares(config: Config) -> tuple[float, ...] | None:
    """At which shares of its training a trial is scored, where trials are stopped early; else evenly (None)."""
    tune = config.tune
    if not stops_early(tune.algorithm):
        return None
    return tuple(tune.reduction_factor ** (i - tune.rungs + 1) for i in range(tune.rungs))


def stops_early(algorithm: str) -> bool:
    """Whether an algorithm stops trials that fall behind."""
    return algorithm in ("asha", "optuna")


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
