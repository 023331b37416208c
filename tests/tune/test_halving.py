"""Who goes on from a rung."""

from __future__ import annotations

from searching import trial

from tune.halving import hopeless, places, promoted


def waiting(number: int, *scores: float) -> object:
    return trial(number, scores, "waiting", until=len(scores))


def number(found: object) -> int | None:
    return getattr(found, "trial", None)


def test_the_best_third_goes_on_while_new_trials_come() -> None:
    trials = [waiting(1, 0.5), waiting(2, 0.6)]
    assert promoted(trials, 3, 3, more=True) is None
    trials.append(waiting(3, 0.4))
    assert number(promoted(trials, 3, 3, more=True)) == 2
    trials[1].until = 2
    trials[1].status = "running"
    assert promoted(trials, 3, 3, more=True) is None


def test_at_the_end_the_best_go_on_even_if_they_are_few() -> None:
    trials = [waiting(1, 0.5), waiting(2, 0.6)]
    assert number(promoted(trials, 3, 3, more=False)) == 2
    trials[1] = waiting(2, 0.6, 0.55)
    assert number(promoted(trials, 3, 3, more=False)) == 2
    trials[1] = trial(2, [0.6, 0.55, 0.7], "finished", until=3)
    assert promoted(trials, 3, 3, more=False) is None


def test_who_still_runs_is_waited_for() -> None:
    trials = [waiting(1, 0.5), trial(2, [], "running", until=1)]
    assert promoted(trials, 3, 3, more=False) is None
    trials = [waiting(1, 0.5, 0.6), trial(2, [0.4], "running", until=2), waiting(3, 0.3)]
    assert promoted(trials, 3, 3, more=False) is None


def test_higher_rungs_come_first_and_failed_trials_do_not_count() -> None:
    trials = [waiting(n, 0.1 * n) for n in range(1, 7)]
    trials += [waiting(n, 0.9, 0.1 * (n - 6)) for n in (7, 8, 9)]
    assert number(promoted(trials, 3, 3, more=True)) == 9
    for one in trials[6:]:
        one.status = "failed"
    assert number(promoted(trials, 3, 3, more=True)) == 6


def test_a_whole_search_takes_a_quarter_of_the_steps() -> None:
    trials, steps = [], 0.0
    shares = (1 / 9, 1 / 3, 1.0)
    while True:
        one = promoted(trials, 3, 3, more=len(trials) < 16)
        if one is None:
            if len(trials) == 16:
                break
            one = trial(len(trials) + 1, [], "waiting", until=0)
            trials.append(one)
        one.until += 1
        steps += shares[one.until - 1] - (shares[one.until - 2] if one.until > 1 else 0.0)
        one.history = trial(1, [one.trial * 7 % 16 / 16] * one.until).history
        one.status = "finished" if one.until == 3 else "waiting"
    assert sum(t.status == "finished" for t in trials) == 2
    assert {t.trial for t in trials if t.status == "finished"} == {t.trial for t in sorted(
        trials, key=lambda t: -t.history[0]["validation_macro_f1"])[:2]}  # fmt: skip
    assert 0.2 < steps / 16 < 0.3


def test_who_cannot_go_on_any_more_is_known() -> None:
    assert [places(16, 3, rung) for rung in (1, 2)] == [5, 2]
    assert places(2, 3, 1) == 1
    trials = [waiting(n, 0.01 * n) for n in range(1, 8)]
    assert [t.trial for t in hopeless(trials, 3, 3, 16)] == [2, 1]
    assert hopeless(trials, 3, 3, 99) == []
