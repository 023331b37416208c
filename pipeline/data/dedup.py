"""Exact duplicates: rows whose cleaned texts are equal when case is ignored.

The first row of a fixed order is kept: test before validation before train (a text that is in the test set must
not be trained on), then by source file and row. So the outcome does not depend on how many workers there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
PRIORITY = {"test": 0, "validation": 1, "train": 2}

SAME = "exact duplicate"
CONFLICT = "exact duplicate under another label"
LEAK = "exact duplicate of a row in another split"


def text_key(text: str) -> bytes:
    """The 128-bit BLAKE2b digest under which equal texts meet, case ignored."""
    return hashlib.blake2b(text.casefold().encode("utf-8"), digest_size=KEY_BYTES).digest()


def text_keys(texts: Sequence[str]) -> npt.NDArray[np.void]:
    """``text_key`` of each text, as an array of 16-byte values [rows]."""
    joined = b"".join(text_key(t) for t in texts)
    return np.frombuffer(joined, dtype=f"V{KEY_BYTES}")


def halves(keys: Sequence[bytes] | npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The two 64-bit halves of each key, [rows, 2]: the first picks the shard, the second the split."""
    raw = keys.tobytes() if isinstance(keys, np.ndarray) else b"".join(keys)
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2)


def first_of_each(keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which rows to keep, given rows already in order of preference.

    Args:
        keys: the key of each row, best row first.

    Returns:
        ``keep`` [rows], True for the first row of each key, and ``kept_at`` [rows], the index of the row that
        stands for this one.
    """
    seen: dict[bytes, int] = {}
    kept_at = np.empty(len(keys), np.int64)
    for i, key in enumerate(keys):
        kept_at[i] = seen.setdefault(key, i)
    return kept_at == np.arange(len(keys)), kept_at


def reason(label: str, kept_label: str, split: str, kept_split: str) -> str:
    """Why a duplicate is worth a second look: another label, another split, or just the same again."""
    if label != kept_label:
        return CONFLICT
    return LEAK if split != kept_split else SAME
