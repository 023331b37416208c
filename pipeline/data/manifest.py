"""The end of ``prepare``: check that the ledger adds up, and write the profile and, last of all, the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.data import clean, gates, profile
from pipeline.data.prepared import FORMAT
from pipeline.data.read import Source
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place


def write(
    place: Place,
    config: Config,
    *,
    sources: Sequence[Source],
    labels: Sequence[str],
    tokenizer: dict[str, Any],
    shards: int,
    first: dict[str, Any],
    found: dict[str, Any],
    second: dict[str, Any],
) -> None:
    """Write ``labels.json``, ``profile.json`` and ``manifest.json``.

    Args:
        place: the prepared folder.
        config: resolved.
        sources: the files of the job.
        labels: the frozen label names.
        tokenizer: what ``prepare`` notes about it.
        shards: how many there are.
        first, second: the summed facts of the passes.
        found: ``pairs`` and ``examples`` of near-duplicates; ``words`` and ``tags`` of the profile.

    Raises:
        UserError: no row is left for training.
        WorkFailed: rows got lost, which is a bug.
    """
    ledger = add_up(first, second)
    if not second["kept"]["train"]:
        raise UserError("no row is left for training (see data.min_chars and data.near_duplicates): " + reasons(ledger))
    classes = {s: {n: second["classes"][s].get(n, 0) for n in labels} for s in profile.SPLITS}
    lengths = {s: {int(n): c for n, c in second["lengths"][s].items()} for s in profile.SPLITS}
    tokens = {s: profile.token_profile(lengths[s], second["truncated"][s]) for s in profile.SPLITS}
    for split, total in second["unknown"].items():
        counted = sum(n * c for n, c in lengths[split].items())
        tokens[split]["unknown_share"] = round(total / counted, 6) if counted else 0.0
    rules = clean.chosen(config.data.extra_rules)
    samples = {name: clean.fewest([(m, b, a) for m, b, a in found]) for name, found in first["samples"].items()}
    facts = {
        "classes": classes,
        "tokens": tokens,
        "rules": {rule.name: first["rules"].get(rule.name, 0) for rule in rules},
        "samples": [
            {"rule": rule.name, "before": before, "after": after}
            for rule in rules
            for _, before, after in samples.get(rule.name, [])
        ],
        "cut": first["cut"],
        "filled": dict(sorted(first["filled"].items())),
        "near_pairs": found["pairs"],
        "near_duplicates": found["examples"],
        "words": found.get("words"),
        "tags": found.get("tags"),
        "warnings": profile.warnings(classes, second["unlearnable"]) + profile.label_collisions(labels),
    }
    if "corrections" in first:
        facts["corrections"] = first["corrections"]
        facts["warnings"] += first["corrections"]["warnings"]
    content = {
        "format": FORMAT,
        "fingerprint": place.name,
        "cleaning": {"version": clean.VERSION, "rules": [rule.name for rule in rules]},
        "data": config.data.model_dump(mode="json", exclude={"in_process_mb", *gates.KEYS}),
        "sources": [{"name": s.name, "split": s.split, "format": s.format, "bytes": s.size} for s in sources],
        "tokenizer": tokenizer,
        "shards": shards,
        "ledger": ledger,
    }
    (place / "labels.json").write_text(_json(list(labels)))
    (place / "profile.json").write_text(_json(facts))
    (place / "manifest.json").write_text(_json(content))


def add_up(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The ledger: rows read = rows kept + rejected + duplicates.

    Raises:
        WorkFailed: it does not add up.
    """
    duplicates = sum(second["duplicates"].values())
    kept, rejected = sum(second["kept"].values()), sum(second["rejected"].values())
    if not first["read"] == second["read"] == kept + rejected + duplicates:
        raise WorkFailed(
            f"the ledger does not add up: {first['read']:,} rows read, {kept:,} kept + {rejected:,} rejected + "
            f"{duplicates:,} duplicates. This is a bug in Broadsheet; no prepared data was written"
        )
    return {
        "read": second["read"],
        "kept": second["kept"],
        "rejected": dict(sorted(second["rejected"].items())),
        "duplicates": duplicates,
        "duplicates_by_reason": dict(sorted(second["duplicates"].items())),
        "augmented": dict(sorted(second.get("augmented", {}).items())),  # made, not read: no part of the sum
    }


def reasons(ledger: dict[str, Any]) -> str:
    """Why rows were rejected or set aside, in words."""
    why = {**ledger["rejected"], **ledger["duplicates_by_reason"]}
    return ", ".join(f"{n:,} {reason}" for reason, n in why.items())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=False) + "\n"
