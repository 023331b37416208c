"""Exact duplicates: rows whose cleaned texts are equal when case is ignored. (``near`` finds those that are alike.)

The first row of a fixed order is kept: test before validation before train (a text that is in the test set must
not be trained on), then by source file and row. So the outcome does not depend on how many workers there are.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

KEY_BYTES = 16

SAME, NEAR = "exact duplicate", "near-duplicate"
CONFLICT, NEAR_CONFLICT = f"{SAME} under another label", f"{NEAR} under another label"
LEAK, NEAR_LEAK = f"{SAME} of a row in another split", f"{NEAR} of a row in another split"


def text_key(text: str) -> bytes:
    """The 128-bit BLAKE2b digest under which equal texts meet, case ignored."""
    return hashlib.blake2b(text.casefold().encode("utf-8"), digest_size=KEY_BYTES).digest()


def halves_of(keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """The two 64-bit halves of each key, [rows, 2]: the first picks the shard, the second the split."""
    values = np.frombuffer(keys.buffers()[1], dtype="<u8").reshape(-1, 2) if len(keys) else np.empty((0, 2), "<u8")
    return values[keys.offset : keys.offset + len(keys)]


def first_of_each(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each row the first row of the same key, given rows in order of preference.

    Args:
        keys: [rows, 2], best row first.

    Returns:
        Indices [rows]; a row that stands for itself has its own.
    """
    n = len(keys)
    order = np.lexsort((np.arange(n), keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    starts = np.ones(n, bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(n, np.int64)
    first[order] = order[np.maximum.accumulate(np.where(starts, np.arange(n), 0))]
    return first


def settle_conflicts(
    first: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], sets: npt.NDArray[np.int64], policy: str
) -> npt.NDArray[np.int64]:
    """Which row stands for each row when equal texts have several labels.

    Only rows of the best set among equals have a say: a test row is not dropped because a training row
    contradicts it.

    Args:
        first: from ``first_of_each``.
        labels: label id of each row, in the same order.
        sets: where each row's file belongs, a number per split.
        policy: 'keep' the first row, the 'majority' label (its first row; a tie is dropped), or 'drop' them all.

    Returns:
        ``first``, changed where the policy says so: another row of the group, or -1 for the whole group.
    """
    disputed = (labels != labels[first]) & (sets == sets[first])
    if policy == "keep" or not disputed.any():
        return first
    standing = first.copy()
    order = np.argsort(first, kind="stable")
    heads = np.unique(first[disputed])
    begins, ends = (np.searchsorted(first[order], heads, side) for side in ("left", "right"))
    for head, begin, end in zip(heads, begins, ends, strict=True):
        group = order[begin:end]
        voters = group[sets[group] == sets[head]]
        names, votes = np.unique(labels[voters], return_counts=True)
        winners = names[votes == votes.max()]
        if policy == "drop" or len(winners) > 1:
            standing[group] = -1
        else:
            standing[group] = voters[labels[voters] == winners[0]][0]
    return standing


def reason(near: bool, same_label: bool, same_split: bool) -> str:
    """Why a duplicate is worth a second look: another label, another split, or just the same again."""
    if not same_label:
        return NEAR_CONFLICT if near else CONFLICT
    if not same_split:
        return NEAR_LEAK if near else LEAK
    return NEAR if near else SAME
