"""What a search tries and how much it may cost: the section ``tune`` of the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

DOMAINS = ("uniform", "loguniform", "int", "choice")


class TuneConfig(Section):
    """The search over hyper-parameters."""

    algorithm: Literal["asha", "random", "grid", "optuna", "pbt"] = Field(
        "asha",
        description="'asha': random points, most of them stopped early; 'optuna': points proposed by TPE, stopped "
        "likewise (extra broadsheet[optuna]); 'random', 'grid': full trials; 'pbt': a population that copies its best.",
    )
    space: dict[str, dict[str, tuple[Any, ...]]] | None = Field(
        None,
        description="Key of data, model or train: its domain, for example {train.epochs: {int: [1, 4]}, "
        "train.warmup: {uniform: [0, 0.2]}}; also loguniform and choice. null: the space of this kind of model.",
    )
    trials: int = Field(8, ge=1, le=10_000, description="Trials, the default recipe among them (flag --trials).")
    max_minutes: float | None = Field(None, gt=0, description="Time for the trials; null: no limit.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps of all trials together; null: no limit.")
    max_rows: int | None = Field(3_000, ge=8, description="Training rows of one trial; null: as train.max_rows.")
    epochs: float = Field(2.0, gt=0, description="Epochs of a trial that is never stopped.")
    rungs: int = Field(
        3, ge=1, le=8, description="asha, optuna: times a full trial is scored, each after reduction_factor times more."
    )
    reduction_factor: int = Field(3, ge=2, description="asha, optuna: one trial in this many goes on from each rung.")
    evaluations: int = Field(4, ge=2, description="random, grid: scores of a trial; pbt: rounds of the population.")
    workers: int = Field(1, ge=1, description="DDP workers of one trial.")
    concurrent: int | None = Field(None, ge=1, description="Trials at once; null: as many as the resources allow.")
    seeds: int = Field(
        3, ge=0, le=100, description="Seeds with which the winner and the default recipe are trained again; 0: none."
    )
    final_rows: int | None = Field(None, ge=8, description="Training rows of those; null: as a trial.")
    final_epochs: float | None = Field(None, gt=0, description="Epochs of those; null: as a trial.")

    @model_validator(mode="after")
    def _domains(self) -> TuneConfig:
        for key, domain in (self.space or {}).items():
            if len(domain) != 1 or next(iter(domain)) not in DOMAINS:
                raise ValueError(
                    f"space: {key} needs one domain, for example {{uniform: [0, 0.2]}}; there are {', '.join(DOMAINS)}"
                )
            kind, values = next(iter(domain.items()))
            if kind == "choice":
                if not values:
                    raise ValueError(f"space: {key}: choice needs at least one value")
                continue
            if len(values) != 2 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
                raise ValueError(f"space: {key}: {kind} needs two numbers, the lower one first")
            low, high = values
            if not low < high:
                raise ValueError(f"space: {key}: the first number must be below the second, got {low} and {high}")
            if kind == "loguniform" and low <= 0:
                raise ValueError(f"space: {key}: on a log scale both ends must be above 0")
            if kind == "int" and not all(float(v).is_integer() for v in values):
                raise ValueError(f"space: {key}: int needs whole numbers")
        return self
