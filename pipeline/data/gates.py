"""Gates: figures of the prepared data that tell whether training is worth its money: PASS, WARN or FAIL.

``prepare`` prints them; training refuses data that fails one, naming the key that moves the gate. The limits are no
part of the prepared data: moving one does not make it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data import dedup, reject
from pipeline.data.config import DataConfig
from pipeline.errors import UserError

KEYS = tuple(name for name in DataConfig.model_fields if name.startswith("gate_"))


@dataclass(frozen=True)
class Gate:
    """One judgement.

    Attributes:
        name: what was measured.
        verdict: PASS, WARN or FAIL.
        figure: the figure in words.
        key: the configuration key that moves the gate.
    """

    name: str
    verdict: str
    figure: str
    key: str


def judge(config: DataConfig, ledger: Mapping[str, Any], classes: Mapping[str, Mapping[str, int]]) -> list[Gate]:
    """All gates.

    Args:
        config: holds the limits, each a pair ``[WARN above, FAIL above]`` (``gate_class_rows``: below).
        ledger: of the manifest.
        classes: split -> label -> rows.
    """
    read = max(1, ledger["read"])
    rejected = sum(ledger["rejected"].values())
    train = classes["train"]
    least = min(train, key=lambda name: (train[name], name))
    most = max(train.values())
    listed = ledger["duplicates_by_reason"]
    disputed = sum(listed.get(reason, 0) for reason in (dedup.CONFLICT, dedup.NEAR_CONFLICT))
    disputed += ledger["rejected"].get(reject.DISPUTED, 0)
    leaks = sum(listed.get(reason, 0) for reason in (dedup.LEAK, dedup.NEAR_LEAK))
    held_out = ledger["kept"]["validation"] + ledger["kept"]["test"]
    rows, ratio = train[least], most / max(1, train[least])
    low, fail = config.gate_class_rows
    return [
        _above("reject rate", rejected / read, f"{rejected:,} of {ledger['read']:,} rows", "gate_reject_rate", config),
        Gate("rows of the smallest class", "FAIL" if rows < fail else "WARN" if rows < low else "PASS",
             f"{rows:,} training rows of '{least}'", "data.gate_class_rows"),
        _above("class balance", ratio, f"the largest class has {ratio:.1f} times the rows of the smallest",
               "gate_balance", config),
        _above("leak rate", leaks / max(1, held_out),
               f"{leaks:,} duplicates across splits for {held_out:,} held-out rows", "gate_leak_rate", config),
        _above("conflict rate", disputed / read, f"{disputed:,} rows equal or nearly equal to one of another label",
               "gate_conflict_rate", config),
    ]  # fmt: skip


def concerns(config: DataConfig, ledger: Mapping[str, Any], classes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence for each gate that does not pass."""
    return [
        f"{g.verdict} {g.name}: {g.figure} ({g.key})" for g in judge(config, ledger, classes) if g.verdict != "PASS"
    ]


def refuse(config: DataConfig, ledger: Mapping[str, Any], classes: Mapping[str, Mapping[str, int]]) -> None:
    """Stop before any money is spent on training.

    Raises:
        UserError: a gate says FAIL; the message carries the figure and the key.
    """
    failed = [g for g in judge(config, ledger, classes) if g.verdict == "FAIL"]
    if failed:
        g = failed[0]
        raise UserError(
            f"the data fails the gate '{g.name}': {g.figure}. Mend the data, or move the gate with --set {g.key}=..."
        )


def _above(name: str, value: float, figure: str, key: str, config: DataConfig) -> Gate:
    warn, fail = getattr(config, key)
    verdict = "FAIL" if value > fail else "WARN" if value > warn else "PASS"
    share = f"{value:.2%}: " if "rate" in key else ""
    return Gate(name, verdict, share + figure, f"data.{key}")
