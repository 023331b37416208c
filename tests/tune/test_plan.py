"""What comes next in a search: the same whenever it is asked, whatever was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from searching import entry, planned, trial

from tune.journal import Trial
from tune.plan import WAIT, Plan, facts_of
from tune.population import copies, round_over


def drain(plan: Plan, score: float = 0.5) -> list[Trial]:
    """Finish whatever comes, one at a time; returns the trials in the order of their first part."""
    done = []
    while True:
        found = plan.next(set())
        assert found != WAIT
        if found is None:
            return done
        assert isinstance(found, Trial)
        if found not in done:
            done.append(found)
        ends = plan.config.tune.rungs if found.until else 1
        known = len(found.history)
        upto = found.until or ends
        found.history += trial(found.trial, [score + 0.001 * found.trial] * upto).history[known:]
        found.status = "finished" if len(found.history) >= ends else "waiting"


def test_default_first_then_points_then_both_arms_on_each_seed(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=4", "tune.seeds=2")
    done = drain(plan)
    assert [t.phase for t in done] == ["search"] * 4 + ["final"] * 4
    assert done[0].point == plan.default
    assert len({str(t.point) for t in done[:4]}) == 4
    assert [(t.arm, t.seed) for t in done[4:]] == [("default", 18), ("winner", 18), ("default", 19), ("winner", 19)]
    assert done[5].point == done[3].point
    assert planned(tmp_path, "tune.trials=4", trials=done[:2]).next(set()) != done[1]


def test_the_default_as_winner_is_trained_once_more(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=2", trials=[trial(1, [0.9]), trial(2, [0.8])])
    done = drain(plan)
    assert [(t.arm, t.seed) for t in done] == [("default", 18)]
    assert drain(planned(tmp_path, "tune.trials=2", "tune.seeds=0", trials=[trial(1, [0.9]), trial(2, [0.8])])) == []


def test_what_was_cut_off_comes_first_and_finals_wait(tmp_path: Path) -> None:
    trials = [trial(1, [0.5]), trial(2, [0.4], "waiting"), trial(3, status="waiting")]
    plan = planned(tmp_path, "tune.trials=4", trials=trials)
    assert plan.next({3}) is trials[1]
    fourth = plan.next({2, 3})
    assert isinstance(fourth, Trial)
    assert fourth.trial == 4
    assert plan.next({2, 3, 4}) == WAIT


def test_a_point_depends_on_its_number_alone(tmp_path: Path) -> None:
    one = drain(planned(tmp_path, "tune.trials=5", "tune.seeds=0"))
    two = drain(planned(tmp_path, "tune.trials=5", "tune.seeds=0", trials=one[:2]))
    assert [t.point for t in one[2:]] == [t.point for t in two]
    other = drain(planned(tmp_path, "tune.trials=5", "tune.seeds=0", "seed=18"))
    assert other[1].point != one[1].point


def test_a_grid_is_tried_whole(tmp_path: Path) -> None:
    space = "tune.space={train.epochs: {int: [1, 3]}, train.batch_tokens: {choice: [512, 2048]}}"
    plan = planned(tmp_path, "tune.algorithm=grid", space, "tune.seeds=0", "train.epochs=2")
    points = [t.point for t in drain(plan)]
    assert len(points) == plan.count() == 6  # the default is one of them
    assert points[0] == {"train.epochs": 2.0, "train.batch_tokens": 2048}


def test_the_limit_of_steps_is_kept_and_one_trial_comes_to_its_end(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=90", "tune.max_steps=100", "tune.seeds=1", "tune.rungs=3")

    def steps(one: Trial) -> list[dict]:
        return [entry(i + 1, 0.5 + 0.001 * one.trial, step) for i, step in enumerate((3, 9, 27))]  # 27 in all

    found = plan.next(set())
    while isinstance(found, Trial) and found.phase == "search":
        found.history = steps(found)[: found.until]
        found.status = "finished" if len(found.history) == 3 else "waiting"
        found = plan.next(set())
    search = plan.journal.of("search")
    assert plan.spent == "tune.max_steps=100"
    assert 60 < plan.journal.steps() <= 100
    assert any(t.status == "finished" for t in search)
    assert all(t.ended for t in search)
    assert isinstance(found, Trial)
    assert found.phase == "final"


def test_when_time_is_up_only_finals_follow(tmp_path: Path) -> None:
    trials = [trial(1, [0.5], "waiting", until=1), trial(2, [], "waiting", until=1)]
    plan = planned(tmp_path, "tune.max_minutes=2", trials=trials)
    assert not plan.time_is_up(119.0)
    assert plan.next(set()) is trials[1]
    assert plan.time_is_up(121.0)
    found = plan.next(set())
    assert isinstance(found, Trial)
    assert found.phase == "final"
    assert [t.status for t in trials] == ["stopped", "stopped"]
    assert plan.spent == "tune.max_minutes=2"


def test_an_extended_search_keeps_the_finals_that_still_count(tmp_path: Path) -> None:
    trials = drain(planned(tmp_path, "tune.trials=3", "tune.seeds=1"))
    better = trial(len(trials) + 1, [0.99], point={"train.learning_rate": 0.005, "train.weight_decay": 0.0})
    plan = planned(tmp_path, "tune.trials=4", "tune.seeds=1", trials=[*trials, better])
    assert [(t.arm, t.point) for t in drain(plan)] == [("winner", better.point)]


def test_finals_of_another_size_do_not_count(tmp_path: Path) -> None:
    trials = drain(planned(tmp_path, "tune.trials=3", "tune.seeds=1"))
    plan = planned(tmp_path, "tune.trials=3", "tune.seeds=1", "tune.final_rows=20000", trials=trials)
    assert [(t.arm, t.size) for t in drain(plan)] == [("default", [20_000, 2.0]), ("winner", [20_000, 2.0])]


def test_finals_run_at_once(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=2", "tune.seeds=2", trials=[trial(1, [0.8]), trial(2, [0.9])])
    running: set[int] = set()
    while isinstance(found := plan.next(running), Trial):
        found.status = "running"
        running.add(found.trial)
    assert len(running) == 4


def test_steps_are_unknown_until_the_first_score(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.algorithm=random", "tune.trials=9", "tune.max_steps=100", "tune.evaluations=2")
    first = plan.next(set())
    assert isinstance(first, Trial)
    first.status = "running"
    assert plan.next({1}) == WAIT
    first.history = [entry(1, 0.5, 20)]
    second = plan.next({1})
    assert isinstance(second, Trial)
    second.status = "running"
    assert plan.next({1, 2}) == WAIT  # two whole trials of 40 steps are all that fits
    assert plan.spent == "tune.max_steps=100"


def test_a_member_is_judged_by_the_weights_it_has() -> None:
    one = trial(1, [0.9, 0.5], "finished", lineage=[{"round": 1, "from": 2}])
    assert one.best == 0.5


POPULATION = ("tune.algorithm=pbt", "tune.trials=4", "tune.evaluations=3", "tune.seeds=0")


def test_a_population_goes_on_together(tmp_path: Path) -> None:
    trials = [trial(n, [0.1 * n], "waiting", until=1) for n in (1, 2, 3, 4)]
    plan = planned(tmp_path, *POPULATION, trials=trials)
    assert round_over(trials) == 1
    assert plan.next(set()) is trials[0]
    assert trials[0].until == 2
    trials[0].history += trial(1, [0, 0.9]).history[1:]
    assert round_over(trials) is None
    for one in trials[1:]:
        one.until, one.status = 2, "running"
    assert plan.next({2, 3, 4}) == WAIT
    trials[3].until, trials[3].status = 1, "waiting"
    assert plan.next({2, 3}) is trials[3]
    trials[0].status = "running"
    trials[3].until, trials[3].status = 1, "waiting"
    assert plan.next({1, 2, 3}) == WAIT  # the first was scored, and has yet to pause


def test_the_last_take_over_from_the_first_once(tmp_path: Path) -> None:
    trials = [trial(n, [0.1 * n], "waiting", until=1) for n in range(1, 9)]
    plan = planned(tmp_path, *POPULATION, "tune.trials=8", trials=trials)
    found = copies(trials, 1, plan.space, 17)
    assert {c.trial for c in found} == {1, 2}
    assert {c.donor for c in found} <= {7, 8}
    assert copies(trials, 1, plan.space, 17) == found
    trials[0].lineage.append({"round": 1, "from": 8})
    assert [c.trial for c in copies(trials, 1, plan.space, 17)] == [2]
    for copy in found:
        assert copy.point != trials[copy.donor - 1].point
        assert all(plan.space[k].holds(v) for k, v in copy.point.items())


def test_a_population_goes_on_without_those_that_failed(tmp_path: Path) -> None:
    first, third = (trial(n, [0.1 * n], "waiting", until=1) for n in (1, 3))
    trials = [first, trial(2, [], "failed", error="x", until=1), third]
    plan = planned(tmp_path, *POPULATION, "tune.trials=3", trials=trials)
    assert round_over(trials) == 1
    assert [(c.trial, c.donor) for c in copies(trials, 1, plan.space, 17)] == [(1, 3)]
    for one in trials:
        one.status = "failed"
    assert plan.next(set()) is None


@pytest.mark.parametrize(
    ("sets", "same"),
    [(["tune.trials=99"], True), (["tune.max_steps=9"], True), (["tune.epochs=9"], False), (["tune.rungs=2"], False)],
)
def test_a_search_is_another_when_its_scores_would_be(sets: list[str], same: bool, tmp_path: Path) -> None:
    one, two = planned(tmp_path), planned(tmp_path, *sets)
    facts = [facts_of(p.config, p.space, p.default, {}) for p in (one, two)]
    assert (facts[0] == facts[1]) == same
