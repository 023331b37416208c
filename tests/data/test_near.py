"""Near-duplicates: units and n-grams against plain Python, MinHash against the real similarity, who falls for whom."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import near


def units_of(text: str) -> list[str]:
    """What ``near.units`` does, character by character."""
    found, word = [], ""
    for character in text.lower():
        size, kind = len(character.encode()), unicodedata.category(character)[0]
        if kind not in "PZ" and (size == 2 or (size == 1 and character.isalnum()) or 0x1E00 <= ord(character) < 0x2000):
            word += character
            continue
        found += [word] if word else []
        word = ""
        if size > 2 and kind not in "PZ":
            found.append(character)
    return [*found, word] if word else found


def ngrams_of(text: str, n: int) -> list[tuple[str, ...]]:
    units = units_of(text)
    return [tuple(units[i : i + n]) for i in range(max(1, len(units) - n + 1))] if units else []


def same_as(reference: list[list[object]], hashes: np.ndarray, offsets: np.ndarray) -> None:
    """Equal things have equal hashes, different ones different hashes."""
    assert np.diff(offsets).tolist() == [len(r) for r in reference]
    seen: dict[object, int] = {}
    for thing, value in zip((x for r in reference for x in r), hashes.tolist(), strict=True):
        assert seen.setdefault(thing, value) == value
    assert len(set(seen.values())) == len(seen)


TEXTS = st.lists(st.text(st.sampled_from("abAB1 .-é'Ёж中文，。！、“”«»，アếệ😀€"), max_size=12), max_size=8)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 4))
def test_units_and_ngrams_are_those_of_the_text(texts: list[str], n: int) -> None:
    column = pa.array(["cut off", *texts], pa.string()).slice(1)
    same_as([list(units_of(t)) for t in texts], *near.units(column))
    same_as([list(ngrams_of(t, n)) for t in texts], *near.ngrams(column, n))


def test_case_punctuation_and_space_do_not_count() -> None:
    codes = near.band_codes(pa.array(["Oil, prices -- RISE!", "oil prices rise", "oil prices fall", "...", ""]), 2, 0.8)
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any()
    assert (codes[3:] == 0).all(), "a text without a unit meets nobody"
    for a, b in (("你好，世界！", "你好世界"), ("«Правда» вышла", "правда вышла"), ("Tiếng Việt?", "tiếng việt")):
        same = near.band_codes(pa.array([a, b]), 2, 0.8)
        assert (same[0] == same[1]).all()
    assert np.diff(near.units(pa.array(["tiếng Việt rất hay"]))[1]).tolist() == [4]


def test_long_words_are_told_apart() -> None:
    a, b = "x" * 5_000 + "a", "x" * 5_000 + "b"
    hashes, _ = near.units(pa.array([a, b, a]))
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_lsh_finds_at_the_threshold(threshold: float) -> None:
    bands, rows = near.lsh_shape(threshold)
    found = 1 - (1 - threshold**rows) ** bands
    assert found >= (near.RECALL if threshold >= 0.5 else 0.9)
    assert bands * rows <= near.MAX_HASHES
    assert 1 - (1 - (threshold / 3) ** rows) ** bands < 0.75, "most of what is unlike is never compared"


def test_signatures_estimate_the_similarity() -> None:
    generator = np.random.default_rng(5)
    sets = generator.integers(0, 2**63, (400, 60)).astype(np.uint64)
    grams = np.concatenate([np.concatenate([s[:45], s[15:]]) for s in sets])  # 30 of 60 in common
    signatures = near.minima(grams, np.arange(801) * 45, 60)
    equal = signatures[::2] == signatures[1::2]
    assert abs(equal.mean() - 0.5) < 0.02
    assert equal.mean(axis=1).std() < 0.1, "hash functions are independent"
    assert (near.minima(np.empty(0, np.uint64), np.zeros(2, np.int64), 7) == 2**32 - 1).all()


def test_codes_do_not_depend_on_blocks() -> None:
    texts = pa.array([f"number {i} of {i * 7 % 13} words and more" for i in range(2 * near.BLOCK_TEXTS + 3)])
    whole = near.band_codes(texts, 2, 0.8)
    parts = [near.band_codes(texts.slice(i, 700), 2, 0.8) for i in range(0, len(texts), 700)]
    assert (np.concatenate(parts) == whole).all()


def test_few_that_agree_all_meet() -> None:
    codes = np.array([7, 5, 7, 9, 7, 5], np.uint64)
    orders = np.array([30, 20, 10, 1, 20, 40], np.uint64)
    better, worse = near.meetings(codes, orders)
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(1, 5), (2, 0), (2, 4), (4, 0)]
    assert [len(x) for x in near.meetings(codes[:0], orders[:0])] == [0, 0]


def test_many_that_agree_meet_the_best_ones() -> None:
    n = 5_000
    orders = np.random.default_rng(1).permutation(n).astype(np.uint64)
    better, worse = near.meetings(np.ones(n, np.uint64), orders)
    assert len(better) < n * (near.HUBS + 2)
    assert (orders[better] < orders[worse]).all()
    assert set(orders[better[orders[better] < near.HUBS]].tolist()) == set(range(near.HUBS))
    assert set(worse.tolist()) | {int(np.argmin(orders))} == set(range(n))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 9), max_size=8)] * 2), max_size=5))
def test_jaccard(pairs: list[tuple[list[int], list[int]]]) -> None:
    flat = []
    for side in (0, 1):
        flat.append(np.array([x for p in pairs for x in p[side]], np.uint64))
        flat.append(np.concatenate([[0], np.cumsum([len(p[side]) for p in pairs])]).astype(np.int64))
    expected = [len(set(a) & set(b)) / max(1, len(set(a) | set(b))) for a, b in pairs]
    assert near.jaccard(*flat).tolist() == pytest.approx(expected)


def test_no_chain_sweeps_texts_away() -> None:
    def fallen(pairs: list[tuple[int, int]], droppable: list[bool] | None = None) -> dict[int, int]:
        better, worse = (np.array([p[i] for p in pairs], np.uint64) for i in (0, 1))
        found = near.settle(better, worse, np.array(droppable or [True] * len(pairs)))
        return {worse_one: pairs[i][0] for worse_one, i in found.items()}

    assert fallen([(1, 2), (2, 3)]) == {2: 1}, "3 is like 2, which falls: it stands"
    assert fallen([(2, 3), (1, 3), (1, 2)]) == {2: 1, 3: 1}
    assert fallen([(2, 3), (1, 3)]) == {3: 1}, "the best of several"
    assert fallen([(1, 2), (2, 3)], [False, True]) == {3: 2}
    assert fallen([]) == {}
