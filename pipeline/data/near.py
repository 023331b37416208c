"""Near-duplicates: texts whose sets of n-grams overlap, found by MinHash and locality-sensitive hashing (LSH).

Two texts are near-duplicates when the Jaccard similarity of their n-gram sets, ``|A & B| / |A | B|``, reaches a
threshold. A text is cut into units: words in Latin, Greek, Cyrillic, Arabic or Hebrew script, and every single
character from U+0800 on (Chinese, Japanese, Korean, Thai, emoji). Case, punctuation and white space do not count. A
text shorter than n units is one n-gram.

MinHash (Broder 1997): for a random hash, two sets have the same minimum with a probability equal to their Jaccard
similarity. LSH (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4): ``bands`` groups of ``rows`` minima
each; texts that agree in all minima of a band are compared. At similarity s they are with probability
``1 - (1 - s**rows) ** bands``; ``lsh_shape`` picks both so that at the threshold it is at least 0.97. What is
compared is then measured on the real sets.

All of it is NumPy over the bytes of an Arrow column, in blocks that fit the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

VERSION = 1  # raise it whenever other texts would be found: prepared data is then made anew
BLOCK_TEXTS = 1_000  # a block's arrays stay in the cache: three times the speed of one pass over 20,000 news texts
MAX_HASHES = 64  # per text: what they cost, and what is kept of them between the passes, grows with them
RECALL = 0.97  # at the threshold; above it, it soon is 1
ALL_PAIRS_UP_TO = 16  # texts that agree in a band; of more, each is compared with the best ones
HUBS = 8
# What is no word and no character of its own, beyond ASCII: punctuation and spaces of all scripts.
_MARKS = r"[\p{P}\p{Z}]"

_BREAK, _LETTER, _ALONE = 0, 1, 2
_KIND = np.zeros(256, np.uint8)
_KIND[[i for i in range(128) if chr(i).isalnum()]] = _LETTER
_KIND[0x80:] = _LETTER
_KIND[0xE0:] = _ALONE  # leads a character of three or four bytes
_MAX_UNIT = 1 << 12  # bytes of a unit whose place counts; those behind count as a multiset


def _mix(h: U64) -> U64:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _powers() -> U64:
    base, powers = 0x9E3779B97F4A7C15, [1]
    for _ in range(_MAX_UNIT - 1):
        powers.append(powers[-1] * base % 2**64)
    return np.array(powers, np.uint64)


_POWERS = _powers()


def units(texts: pa.StringArray) -> tuple[U64, I64]:
    """A hash of each unit of each text.

    Args:
        texts: strings without nulls.

    Returns:
        ``hashes`` [units of all texts] and ``offsets`` [texts + 1].
    """
    texts = pc.utf8_lower(texts)
    ascii_only = pc.string_is_ascii(texts)
    if not pc.all(ascii_only).as_py():
        texts = pc.if_else(ascii_only, texts, pc.replace_substring_regex(texts, _MARKS, " "))
    bounds = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    values = texts.buffers()[2]
    data = np.frombuffer(values, np.uint8)[bounds[0] : bounds[-1]] if values is not None else np.empty(0, np.uint8)
    bounds -= bounds[0]
    if not len(data):
        return np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    kind = _KIND[data]
    alone = np.flatnonzero(kind == _ALONE)
    if len(alone):
        # U+1E00 to U+1FFF are letters of Latin (Vietnamese) and Greek words, in three bytes.
        letters = (data[alone] == 0xE1) & (data[np.minimum(alone + 1, len(data) - 1)] >= 0xB8)
        kind[alone[letters]] = _LETTER
        alone = alone[~letters]
    inside = kind != _BREAK
    begins = np.empty(len(data), bool)
    begins[0] = inside[0]
    np.greater(inside[1:], inside[:-1], out=begins[1:])
    firsts = bounds[:-1][bounds[:-1] < bounds[1:]]
    begins[firsts] |= inside[firsts]
    if len(alone):
        begins |= kind == _ALONE
        behind = alone + np.where(data[alone] >= 0xF0, 4, 3)
        behind = behind[behind < len(data)]
        begins[behind] |= inside[behind]
    at = np.flatnonzero(inside)
    starts = np.flatnonzero(begins[at])
    counted = np.zeros(len(data) + 1, np.int64)
    np.cumsum(begins, out=counted[1:])
    if not len(starts):
        return np.empty(0, np.uint64), counted[bounds]
    place = np.arange(len(at)) - np.repeat(starts, np.diff(starts, append=len(at)))
    np.minimum(place, _MAX_UNIT - 1, out=place)
    hashes = np.add.reduceat((data[at] + np.uint64(1)) * _POWERS[place], starts)
    return _mix(hashes), counted[bounds]


def ngrams(texts: pa.StringArray, n: int) -> tuple[U64, I64]:
    """A hash of each n-gram of each text; a text may hold the same one twice.

    Args:
        texts: strings without nulls.
        n: units of an n-gram.

    Returns:
        ``hashes`` [n-grams of all texts] and ``offsets`` [texts + 1].
    """
    hashes, bounds = units(texts)
    counts = np.diff(bounds)
    grams = hashes.copy()
    if len(grams) and n > 1:
        left = np.repeat(bounds[1:], counts) - np.arange(len(hashes))  # units from here to the end of the text
        for k in range(1, n):
            here = np.flatnonzero(left > k)
            grams[here] = _mix(grams[here] * np.uint64(3) + hashes[here + k])
        first = np.zeros(len(hashes), bool)
        first[bounds[:-1][counts > 0]] = True
        keep = (left >= n) | first
        grams = grams[keep]
        counts = np.where(counts > 0, np.maximum(counts - n + 1, 1), 0)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return grams, offsets


def lsh_shape(threshold: float) -> tuple[int, int]:
    """``(bands, rows)`` for a threshold: as many rows (few chance meetings) as ``MAX_HASHES`` allows at ``RECALL``."""
    for rows in range(12, 0, -1):
        bands = math.ceil(math.log(1 - RECALL) / math.log(1 - threshold**rows)) if threshold < 1 else 1
        if bands * rows <= MAX_HASHES:
            return bands, rows
    return MAX_HASHES, 1


def minima(grams: U64, offsets: I64, count: int) -> npt.NDArray[np.uint32]:
    """MinHash signatures, [texts, count]; those of a text without n-grams are all ``2**32 - 1``.

    Each hash function multiplies by a random odd number and folds the upper half in, which gives two of 32 bits.
    """
    out = np.full((len(offsets) - 1, count), 0xFFFFFFFF, np.uint32)
    some = np.flatnonzero(np.diff(offsets))
    if not len(some):
        return out
    starts = offsets[some]
    factors = np.random.default_rng(20_261_124).integers(0, 2**63, (count + 1) // 2, np.uint64) * np.uint64(2)
    for i, factor in enumerate(factors + np.uint64(1)):
        product = grams * factor
        product ^= product >> np.uint64(32)
        halves = product.view(np.uint32)
        for k in range(2 * i, min(2 * i + 2, count)):
            out[some, k] = np.minimum.reduceat(halves[k % 2 :: 2], starts)
    return out


def band_codes(texts: pa.StringArray, n: int, threshold: float) -> U64:
    """The code of each text in each band: texts with equal codes are worth comparing.

    Args:
        texts: strings without nulls.
        n: units of an n-gram.
        threshold: Jaccard similarity that is to be found.

    Returns:
        Codes [texts, bands]; 0 for a text that has no unit at all (it meets nobody).
    """
    bands, rows = lsh_shape(threshold)
    codes = np.zeros((len(texts), bands), np.uint64)
    for start in range(0, len(texts), BLOCK_TEXTS):
        grams, offsets = ngrams(texts.slice(start, BLOCK_TEXTS), n)
        signature = minima(grams, offsets, bands * rows).reshape(-1, bands, rows).astype(np.uint64)
        code = np.broadcast_to(np.arange(bands, dtype=np.uint64), signature.shape[:2])
        for k in range(rows):
            code = _mix(code * np.uint64(31) + signature[:, :, k])
        codes[start : start + len(code)] = np.where(np.diff(offsets)[:, None] > 0, np.maximum(code, 1), 0)
    return codes


def meetings(codes: U64, orders: U64) -> tuple[I64, I64]:
    """Pairs of entries with equal codes.

    Up to ``ALL_PAIRS_UP_TO`` equals all meet each other. Of more, each meets the ``HUBS`` most preferred ones and its
    neighbours in the order of preference, so that a text that repeats a thousand times costs no million comparisons.

    Args:
        codes: [entries], of one text each.
        orders: [entries] of preference, distinct for distinct texts; smaller is better.

    Returns:
        Indices ``(better, worse)`` [pairs].
    """
    by = np.lexsort((orders, codes))
    same = codes[by][1:] == codes[by][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(by) else np.empty(0, np.int64)
    sizes = np.diff(starts, append=len(by))
    better, worse = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        groups = by[starts[sizes == size][:, None] + np.arange(size)]
        for a, b in _partners(int(size)):
            better.append(groups[:, a].ravel())
            worse.append(groups[:, b].ravel())
    return np.concatenate(better), np.concatenate(worse)


def _partners(size: int) -> Iterator[tuple[I64, I64]]:
    if size <= ALL_PAIRS_UP_TO:
        yield np.triu_indices(size, 1)
        return
    for hub in range(HUBS):
        others = np.arange(hub + 1, size)
        yield np.full(len(others), hub), others
    yield np.arange(HUBS, size - 1), np.arange(HUBS + 1, size)


def jaccard(a: U64, a_offsets: I64, b: U64, b_offsets: I64) -> npt.NDArray[np.float64]:
    """Jaccard similarity of pairs of sets.

    Args:
        a, b: n-gram hashes of the first and the second set of each pair, end to end, repetitions allowed.
        a_offsets, b_offsets: [pairs + 1].

    Returns:
        [pairs], 0 where both sets are empty.
    """
    pairs = len(a_offsets) - 1
    pair = np.concatenate([np.repeat(np.arange(pairs), np.diff(o)) for o in (a_offsets, b_offsets)])
    side = np.repeat(np.array([0, 1], np.uint8), [a_offsets[-1], b_offsets[-1]])
    hashes = np.concatenate([a[: a_offsets[-1]], b[: b_offsets[-1]]])
    by = np.lexsort((side, hashes, pair))
    pair, side, hashes = pair[by], side[by], hashes[by]
    new = np.ones(len(by), bool)  # the first of equal n-grams of a pair
    new[1:] = (pair[1:] != pair[:-1]) | (hashes[1:] != hashes[:-1])
    # Sides are sorted within equals: both are there where one of set b follows one of set a.
    both = np.zeros(len(by), bool)
    both[1:] = ~new[1:] & (side[1:] != side[:-1])
    union = np.bincount(pair[new], minlength=pairs)
    shared = np.bincount(pair[both], minlength=pairs)
    return shared / np.maximum(union, 1)


def settle(better: U64, worse: U64, droppable: npt.NDArray[np.bool_]) -> dict[int, int]:
    """Which texts stand: in order of preference, a text falls if it is like one that stands.

    So every text that falls is like the one named for it, and no chain of likenesses sweeps a class away, as it
    would if all that are connected fell together.

    Args:
        better, worse: the orders of preference of both texts of each pair, [pairs].
        droppable: whether the worse one may fall because of the better one, [pairs].

    Returns:
        For each that falls, the pair that says so (an index).
    """
    fallen: dict[int, int] = {}
    # Once all pairs of a text with better ones are seen, its fate is known: they come first in this order.
    for i in np.lexsort((better, worse)).tolist():
        loser = int(worse[i])
        if droppable[i] and loser not in fallen and int(better[i]) not in fallen:
            fallen[loser] = i
    return fallen
