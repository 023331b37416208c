"""What comes next in a search: the same whenever it is asked, whatever was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from searching import planned, trial

from tune.journal import Trial
from tune.plan import WAIT, Plan, facts_of, item_until


def drain(plan: Plan, score: float = 0.5) -> list[Trial]:
    """Finish whatever comes, one at a time."""
    done = []
    while True:
        found = plan.next({})
        assert found != WAIT
        if found is None:
            return done
        assert isinstance(found, Trial)
        one = trial(found.trial, [score + 0.001 * found.trial])
        found.history, found.status = one.history, "finished"
        done.append(found)


def test_default_first_then_points_then_both_arms_on_each_seed(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=4", "tune.seeds=2")
    done = drain(plan)
    assert [t.phase for t in done] == ["search"] * 4 + ["final"] * 4
    assert done[0].point == plan.default
    assert len({str(t.point) for t in done[:4]}) == 4
    assert [(t.arm, t.seed) for t in done[4:]] == [("default", 18), ("winner", 18), ("default", 19), ("winner", 19)]
    assert done[5].point == done[3].point
    assert planned(tmp_path, "tune.trials=4", trials=done[:2]).next({}) != done[1]


def test_the_default_as_winner_is_trained_once_more(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=2", trials=[trial(1, [0.9]), trial(2, [0.8])])
    done = drain(plan)
    assert [(t.arm, t.seed) for t in done] == [("default", 18)]
    assert drain(planned(tmp_path, "tune.trials=2", "tune.seeds=0", trials=[trial(1, [0.9]), trial(2, [0.8])])) == []


def test_what_was_cut_off_comes_first_and_finals_wait(tmp_path: Path) -> None:
    trials = [trial(1, [0.5]), trial(2, [0.4], "waiting"), trial(3, status="waiting")]
    plan = planned(tmp_path, "tune.trials=4", trials=trials)
    assert plan.next({3: None}) is trials[1]
    fourth = plan.next({2: None, 3: None})
    assert isinstance(fourth, Trial)
    assert fourth.trial == 4
    assert plan.next({2: None, 3: None, 4: None}) == WAIT


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


def test_a_spent_budget_ends_the_search_but_not_the_finals(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tune.trials=9", "tune.max_steps=30", trials=[trial(1, [0.5]), trial(2, [0.6, 0.7])])
    assert plan.budget(0.0) == "tune.max_steps=30"
    found = plan.next({})
    assert isinstance(found, Trial)
    assert found.phase == "final"
    assert planned(tmp_path, "tune.max_minutes=2").budget(119.0) is None
    assert planned(tmp_path, "tune.max_minutes=2").budget(121.0) == "tune.max_minutes=2"


def test_an_extended_search_keeps_the_finals_that_still_count(tmp_path: Path) -> None:
    trials = drain(planned(tmp_path, "tune.trials=3", "tune.seeds=1"))
    better = trial(len(trials) + 1, [0.99], point={"train.learning_rate": 0.005, "train.weight_decay": 0.0})
    plan = planned(tmp_path, "tune.trials=4", "tune.seeds=1", trials=[*trials, better])
    assert [(t.arm, t.point) for t in drain(plan)] == [("winner", better.point)]


POPULATION = ("tune.algorithm=pbt", "tune.trials=4", "tune.evaluations=3", "tune.seeds=0")


def test_a_population_goes_on_together(tmp_path: Path) -> None:
    trials = [trial(n, [0.1 * n], "waiting") for n in (1, 2, 3, 4)]
    plan = planned(tmp_path, *POPULATION, trials=trials)
    assert plan.round_over() == 1
    assert plan.next({}) is trials[0]
    assert item_until(plan.config, trials[0]) == 2
    trials[0].history += trial(1, [0, 0.9]).history[1:]
    assert plan.round_over() is None
    assert plan.next({2: 2, 3: 2, 4: 2}) == WAIT
    assert plan.next({2: 2, 3: 2}) is trials[3]
    assert plan.next({1: 2, 2: 2, 3: 2}) == WAIT  # the first was scored, and has yet to pause


def test_the_last_take_over_from_the_first_once(tmp_path: Path) -> None:
    trials = [trial(n, [0.1 * n], "waiting") for n in range(1, 9)]
    plan = planned(tmp_path, *POPULATION, "tune.trials=8", trials=trials)
    copies = plan.copies(1)
    assert {c.trial for c in copies} == {1, 2}
    assert {c.donor for c in copies} <= {7, 8}
    assert plan.copies(1) == copies
    trials[0].lineage.append({"round": 1, "from": 8})
    assert [c.trial for c in plan.copies(1)] == [2]
    for copy in copies:
        assert copy.point != trials[copy.donor - 1].point
        assert all(plan.space[k].holds(v) for k, v in copy.point.items())


def test_a_population_goes_on_without_those_that_failed(tmp_path: Path) -> None:
    trials = [trial(1, [0.1], "waiting"), trial(2, [], "failed", error="x"), trial(3, [0.3], "waiting")]
    plan = planned(tmp_path, *POPULATION, "tune.trials=3", trials=trials)
    assert plan.round_over() == 1
    assert [(c.trial, c.donor) for c in plan.copies(1)] == [(1, 3)]
    for one in trials:
        one.status = "failed"
    assert plan.next({}) is None


@pytest.mark.parametrize(
    ("sets", "same"),
    [(["tune.trials=99"], True), (["tune.max_steps=9"], True), (["tune.epochs=9"], False), (["tune.rungs=2"], False)],
)
def test_a_search_is_another_when_its_scores_would_be(sets: list[str], same: bool, tmp_path: Path) -> None:
    one, two = planned(tmp_path), planned(tmp_path, *sets)
    facts = [facts_of(p.config, p.space, p.default, {}) for p in (one, two)]
    assert (facts[0] == facts[1]) == same
