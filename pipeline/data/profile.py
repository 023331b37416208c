"""What the prepared data looks like: class counts, token lengths, what the rules changed. Sums of shard facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any
from unicodedata import category, normalize

import numpy as np

SPLITS = ("train", "validation", "test")
HISTOGRAM_BINS = 32


def merged(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up nested counts: numbers are summed, mappings merged key by key, lists concatenated."""
    total: dict[str, Any] = {}
    for fact in facts:
        _merge(total, fact)
    return total


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, list):
            into[key] = into.get(key, []) + value
        else:
            into[key] = into.get(key, 0) + value


def percentile(counts: Sequence[int], share: float) -> int:
    """The smallest length at or below which ``share`` of the rows lie; ``counts[i]`` rows have length i."""
    total = sum(counts)
    if total == 0:
        return 0
    return int(np.searchsorted(np.cumsum(counts), share * total))


def token_profile(lengths: Mapping[int, int], truncated: int) -> dict[str, Any]:
    """Percentiles and a histogram of token lengths.

    Args:
        lengths: how many rows have each length.
        truncated: rows cut at ``max_tokens``.
    """
    top = max(lengths, default=0)
    counts = [lengths.get(i, 0) for i in range(top + 1)]
    rows = sum(counts)
    width = max(1, -(-(top + 1) // HISTOGRAM_BINS))
    edges = list(range(0, top + 1 + width, width))
    return {
        "rows": rows,
        "mean": round(sum(i * c for i, c in enumerate(counts)) / rows, 2) if rows else 0.0,
        "p50": percentile(counts, 0.50),
        "p95": percentile(counts, 0.95),
        "p99": percentile(counts, 0.99),
        "max": top,
        "truncated": truncated,
        "truncated_share": round(truncated / rows, 6) if rows else 0.0,
        "histogram": {
            "edges": edges,
            "counts": [sum(counts[a:b]) for a, b in pairwise(edges)],
        },
    }


def warnings(classes: Mapping[str, Mapping[str, int]], rejected_labels: Mapping[str, int]) -> list[str]:
    """Sentences about classes a user should know of before training.

    Args:
        classes: split -> label -> rows.
        rejected_labels: labels that stood in validation or test only, with their rows.
    """
    said = []
    train = classes["train"]
    single = [label for label, n in train.items() if n == 1]
    if single:
        said.append(f"{_names(single)} with a single training row: kept, but nothing can be learnt from it")
    none = sorted(set(train) | set(classes["test"]) | set(classes["validation"]))
    none = [label for label in none if train.get(label, 0) == 0]
    if none:
        said.append(
            f"{_names(none)} without any training row left (all were duplicates or near-duplicates of other rows)"
        )
    for label, rows in sorted(rejected_labels.items()):
        said.append(f"label '{label}' is seen only in validation or test: {rows:,} rows rejected")
    untested = [label for label in train if classes["test"].get(label, 0) == 0 and train[label] > 1]
    if untested:
        said.append(f"{_names(untested)} without a test row: the test says nothing about it")
    return said


def label_collisions(labels: Sequence[str]) -> list[str]:
    """Sentences about labels that look alike, most likely one class written in two ways."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        plain = "".join(c for c in normalize("NFKC", label) if category(c) != "Cf")  # without zero-width characters
        alike.setdefault(" ".join(plain.casefold().split()), []).append(label)
    return [
        f"labels {', '.join(repr(n) for n in names)} differ only by case, white space or encoding: one class, "
        "written twice?"
        for names in alike.values()
        if len(names) > 1
    ]


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:5])
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"{'class' if len(labels) == 1 else 'classes'} {shown}{more}"
