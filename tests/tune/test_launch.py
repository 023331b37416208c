"""What Ray's ASHA remembers of earlier commands: its rungs are private, so an upgrade of Ray must fail here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from searching import trial

from tune.launch import remember
from tune.trial import CLOCK


def asked(scheduler: Any, name: str, clock: int, score: float) -> str:
    one: Any = SimpleNamespace(trial_id=name)
    if name not in scheduler._trial_info:
        scheduler.on_trial_add(None, one)
    return str(scheduler.on_trial_result(None, one, {CLOCK: clock, "score": score}))


def test_a_search_that_goes_on_judges_by_what_was_before() -> None:
    def fresh() -> Any:
        options = {"grace_period": 1, "reduction_factor": 3, "max_t": 9}
        return ASHAScheduler(time_attr=CLOCK, metric="score", mode="max", **options)

    before = [trial(1, [0.5, 0.8, 0.9]), trial(2, [0.6, 0.7]), trial(3, [0.4])]
    new = fresh()
    assert asked(new, "a", 1, 0.55) == TrialScheduler.CONTINUE  # the first of a rung always goes on
    going_on = fresh()
    remember(going_on, before, 3)
    assert asked(going_on, "a", 1, 0.55) == TrialScheduler.CONTINUE  # cut-off: 0.533
    assert asked(going_on, "b", 1, 0.50) == TrialScheduler.STOP
    assert asked(going_on, "c", 1, 0.90) == TrialScheduler.CONTINUE
    assert asked(going_on, "c", 3, 0.75) == TrialScheduler.STOP  # cut-off: 0.767
    rungs = {clock: len(recorded) for clock, recorded in going_on._brackets[0]._rungs}
    assert rungs == {9: 1, 3: 3, 1: 6}
