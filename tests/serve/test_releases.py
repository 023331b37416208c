"""The lineup's operations, and the share of a canary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from serve.releases import PARTS, Lineup, Release, Split, parse_share
from serve.tally import BOUNDS, Tally

A, B, C = (Release(f"/{name}", name) for name in "abc")
RELEASES = st.sampled_from([A, B, C, Release("/a", "trained again")])
OPERATIONS = st.one_of(
    st.builds(lambda r: lambda x: x.update(r), RELEASES),
    st.builds(lambda r, s: lambda x: x.canary(r, s), RELEASES, st.floats(-0.5, 1.5)),
    st.builds(lambda r: lambda x: x.shadowed(r), RELEASES),
    st.just(Lineup.promote),
    st.just(Lineup.rollback),
)


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=20))
def test_whatever_is_asked_the_lineup_is_valid_or_as_it_was(operations: list[Callable[[Lineup], Lineup]]) -> None:
    lineup = Lineup(A)
    for operation in operations:
        try:
            after = operation(lineup)
        except UserError:
            continue
        assert after.generation == lineup.generation + 1
        named = [r for r in (after.stable, after.candidate, after.previous) if r is not None]
        assert list(after.releases) == named
        assert len(set(named)) == len(named)
        assert (after.candidate is None) == (after.share == 0 and not after.shadow)
        assert not (after.share and after.shadow)
        lineup = after


@settings(deadline=None)
@given(RELEASES, st.booleans())
def test_a_rollback_restores_what_was_there(release: Release, on_trial: bool) -> None:
    before = Lineup(C, 7, previous=Release("/older", "older"))
    if release == C:
        return
    after = before.canary(release, 0.1).promote() if on_trial else before.update(release)
    assert (after.stable, after.previous) == (release, C)
    assert after.rollback().stable == C
    assert before.canary(release, 0.1).rollback().releases == before.releases


def test_operations() -> None:
    lineup = Lineup(A).update(B)
    assert lineup == Lineup(B, 2, previous=A)
    trial = lineup.canary(C, 0.1)
    assert trial == Lineup(B, 3, A, C, 0.1)
    assert trial.canary(C, 0.5).share == 0.5
    assert trial.shadowed(C) == Lineup(B, 4, A, C, shadow=True)
    assert trial.update(C) == trial.promote() == Lineup(C, 4, previous=B)
    assert trial.rollback() == Lineup(B, 4, A)
    assert trial.rollback().rollback() == Lineup(A, 5)
    assert lineup.instead(trial) == Lineup(B, 4, A)
    assert lineup.canary(A, 0.1) == Lineup(B, 3, None, A, 0.1)  # one on trial again


def test_what_the_lineup_does_not_allow() -> None:
    trial = Lineup(A).canary(B, 0.1)
    with pytest.raises(UserError, match=r"/a \(a\) serves already"):
        trial.update(A)
    for operation in (trial.update, trial.shadowed, lambda r: trial.canary(r, 0.1)):
        with pytest.raises(UserError, match=r"/b \(b\) is on trial: --promote it, or end that with --rollback, first"):
            operation(C)
    with pytest.raises(UserError, match="nothing to promote"):
        Lineup(A).promote()
    with pytest.raises(UserError, match="nothing to roll back to"):
        Lineup(A).rollback()
    with pytest.raises(UserError, match="nothing to roll back to"):
        Lineup(A).update(B).rollback().rollback()  # the second does not bring back what was just taken away
    with pytest.raises(ValueError, match="either a share or shadows"):
        Lineup(A, candidate=B)


@settings(deadline=None)
@given(st.integers(1, PARTS - 1), st.integers(0, 3 * PARTS))
def test_the_share_is_exact_at_any_time(parts: int, requests: int) -> None:
    split = Split(parts / PARTS)
    assert sum(split.next() for _ in range(requests)) == requests * parts // PARTS


def test_no_share_is_nothing() -> None:
    split = Split(0)
    assert not any(split.next() for _ in range(100))


def test_shares_as_they_are_written() -> None:
    assert [parse_share(text) for text in ("10%", " 0.5 ", "0.01%", "99.9 %")] == pytest.approx([0.1, 0.5, 1e-4, 0.999])
    for text in ("", "%", "0", "0%", "100%", "1", "-5%", "10", "nan", "inf%", "half", "0.0001%"):
        with pytest.raises(UserError, match="between 0% and 100%"):
            parse_share(text)


def test_tallies_add_up() -> None:
    names = ["x", "y"]
    one, two = Tally(), Tally()
    one.answered(np.array([[0.9, 0.1], [0.2, 0.8]]), names, 0.002)
    two.answered(np.array([[0.3, 0.7]]), names, 50)
    two.refused()
    both = one.plus(two)
    assert (both.requests, both.failed, both.texts, both.labels) == (3, 1, 3, {"x": 1, "y": 2})
    assert both.confidence == pytest.approx(2.4)
    assert both.quantile(0.5) == pytest.approx(0.002, rel=0.25)
    assert both.quantile(1) == BOUNDS[-1]
    assert Tally().quantile(0.5) is None
    assert both.plus(Tally()) == both
