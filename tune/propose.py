"""Which point is tried next: a function of the space, the seed and what is known so far, of nothing else.

So a search that was cut off goes on as it would have, from its journal alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.train.store import SCORE
from tune.journal import Trial
from tune.space import Domain, Point, Space


def propose(algorithm: str, space: Space, default: Point, trials: Sequence[Trial], seed: int) -> Point | None:
    """The point of the next trial; None if there is none left.

    Args:
        algorithm: ``tune.algorithm``.
        space: the domains.
        default: the default recipe, which is always the first.
        trials: all before it, running ones included.
        seed: of the search.
    """
    number = len(trials)
    if number == 0:
        return dict(default)
    if algorithm == "grid":
        points = [p for p in grid(space) if p != default]
        return points[number - 1] if number <= len(points) else None
    if algorithm == "optuna":
        return _optuna(space, trials, seed)
    generator = random.Random(f"{seed}:{number}")
    return {key: domain.draw(generator) for key, domain in space.items()}


def grid(space: Space) -> list[Point]:
    """All points of a grid; a value that is named twice counts once."""
    axes = [{repr(value): value for value in domain.grid()}.values() for domain in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def check_installed() -> None:
    """Find out before the search that Optuna is there.

    Raises:
        UserError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as e:
        raise UserError("tune.algorithm=optuna needs Optuna: pip install 'broadsheet[optuna]'") from e


def _optuna(space: Space, trials: Sequence[Trial], seed: int) -> Point:
    """TPE's proposal (Bergstra et al., NeurIPS 2011), from a study made anew of all that is known.

    Trials that were stopped early count as Optuna's pruned ones: by how far they came, then by their score. Those that
    still run are taken into account, too, so that two at once do not try the same.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=4, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        inside = {k: v for k, v in trial.point.items() if space[k].holds(v)}
        if len(inside) < len(space) or trial.status == "failed":
            continue  # the default recipe may lie outside of what the user wants searched
        state, value = optuna.trial.TrialState.RUNNING, None
        if trial.status == "finished":
            state, value = optuna.trial.TrialState.COMPLETE, trial.best
        elif trial.status == "stopped" or (trial.status == "waiting" and trial.history):
            state = optuna.trial.TrialState.PRUNED  # one that has paused is judged by its score so far
        scores = {int(e["evaluation"]): float(e[SCORE]) for e in trial.history}
        study.add_trial(
            optuna.trial.create_trial(
                params={k: _encoded(v, space[k]) for k, v in inside.items()},
                distributions=distributions,
                intermediate_values=scores,
                value=value,
                state=state,
            )
        )
    asked = study.ask(distributions).params
    return {key: _decoded(asked[key], domain) for key, domain in space.items()}


def _encoded(value: Any, domain: Domain) -> Any:
    """As Optuna knows it: choices by their place, since it warns of any that is no plain number or text."""
    return list(domain.values).index(value) if domain.kind == "choice" else value


def _decoded(value: Any, domain: Domain) -> Any:
    if domain.kind == "choice":
        return domain.values[int(value)]
    return value if domain.kind == "int" else domain.inside(float(value))


def _distribution(domain: Domain) -> Any:
    import optuna

    if domain.kind == "choice":
        return optuna.distributions.CategoricalDistribution(list(range(len(domain.values))))
    low, high = domain.values
    if domain.kind == "int":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(float(low), float(high), log=domain.kind == "loguniform")
