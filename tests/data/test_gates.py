"""Gates: what is waved through, what is warned of, what stops before training."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import load
from pipeline.data import dedup, gates
from pipeline.errors import UserError


def verdicts(
    rejected: int = 0, leaks: int = 0, conflicts: int = 0, train: dict[str, int] | None = None, *sets: str
) -> dict[str, str]:
    train = train or {"a": 400, "b": 400}
    return {g.name: g.verdict for g in gates.judge(load(sets=sets).data, *facts(rejected, leaks, conflicts, train))}


def facts(rejected: int, leaks: int, conflicts: int, train: dict[str, int]) -> tuple[dict[str, Any], Any]:
    by_reason = {dedup.LEAK: leaks, dedup.CONFLICT: conflicts}
    kept = {"train": sum(train.values()), "validation": 100, "test": 100}
    ledger = {"read": 1000, "kept": kept, "rejected": {"too short": rejected}, "duplicates_by_reason": by_reason}
    return ledger, {"train": train}


def test_good_data_passes() -> None:
    assert set(verdicts().values()) == {"PASS"}


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"rejected": 60}, "reject rate", "WARN"),
        ({"rejected": 501}, "reject rate", "FAIL"),
        ({"leaks": 3}, "leak rate", "WARN"),
        ({"leaks": 201}, "leak rate", "FAIL"),
        ({"conflicts": 11}, "conflict rate", "WARN"),
        ({"conflicts": 201}, "conflict rate", "FAIL"),
        ({"train": {"a": 19, "b": 100}}, "rows of the smallest class", "WARN"),
        ({"train": {"a": 30, "b": 630}}, "class balance", "WARN"),
    ],
)
def test_each_gate(change: dict[str, Any], name: str, verdict: str) -> None:
    got = verdicts(**change)
    assert got.pop(name) == verdict
    assert set(got.values()) == {"PASS"}


def test_a_failed_gate_names_the_figure_and_the_key() -> None:
    with pytest.raises(UserError, match=r"'reject rate': 60\.00%: 600 of 1,000 rows.*data\.gate_reject_rate"):
        gates.refuse(load().data, *facts(600, 0, 0, {"a": 1, "b": 1}))
    gates.refuse(load(sets=["data.gate_reject_rate=[0.1,0.7]"]).data, *facts(600, 0, 0, {"a": 1, "b": 1}))
