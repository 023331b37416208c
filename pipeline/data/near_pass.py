"""How near-duplicates are found among all rows: four steps over buckets, joined through the exchange.

1. ``write_codes``, for each block of the first pass: the LSH codes of its texts, bucketed by code.
2. ``meet``, for each bucket of codes: pairs of texts with an equal code, sent to the buckets of both texts.
3. ``gather``, for each bucket of texts: the n-grams of every text in a pair, bucketed by pair.
4. ``compare``, for each bucket of pairs: the Jaccard similarity of the real n-gram sets.

Memory is bounded by a bucket throughout. ``decide`` then reads the pairs that are alike, and only those, and says
which texts fall. Texts are named by the first half of their key, so that exact duplicates are one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, exchange, near
from pipeline.data.columns import file_splits, one, to_mask
from pipeline.data.config import DataConfig
from pipeline.data.profile import SPLITS
from pipeline.data.rank import Ranked
from pipeline.data.read import Source
from pipeline.data.shards import read_parquet, shard_name
from pipeline.storage import Place

EXAMPLES = 12
MOST_GRAMS = 2_048  # of a longer text a sample of its n-grams is compared: those whose hashes end in zeros

CODES = pa.schema([("code", pa.uint32()), ("key", pa.uint64()), ("order", pa.uint64())])
PAIRS = pa.schema([("a", pa.uint64()), ("b", pa.uint64())])
SETS = pa.schema(
    [
        *PAIRS,
        ("second", pa.bool_()),
        ("order", pa.uint64()),
        ("label", pa.int32()),
        ("level", pa.uint8()),
        ("grams", pa.list_(pa.uint64())),
    ]
)
ALIKE = pa.schema(
    [
        *((name, pa.uint64()) for name in ("better", "worse", "better_key", "worse_key")),
        ("better_label", pa.int32()),
        ("similarity", pa.float32()),
    ]
)
# A text that is not kept, and the row it is a near-duplicate of. 'order' and 'kept' are their orders of preference.
FALLEN = pa.schema(
    [
        ("key", pa.uint64()),
        ("order", pa.uint64()),
        ("kept", pa.uint64()),
        ("kept_key", pa.uint64()),
        ("kept_label", pa.int32()),
        ("kept_split", pa.int8()),
        ("similarity", pa.float32()),
    ]
)
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
_ROW_BITS = np.uint64(40)  # 22 bits above them number the source, two more the split


def orders(splits: I64, source: I64, row: I64) -> U64:
    """The order of preference of rows: test before validation before train, then by file and row."""
    order: U64 = (2 - splits).astype(np.uint64) << np.uint64(62)
    order |= source.astype(np.uint64) << _ROW_BITS
    order |= row.astype(np.uint64)
    return order


def place_of(order: U64) -> tuple[I64, I64]:
    """Source and row of each order of preference."""
    row = order & np.uint64((1 << 40) - 1)
    source = (order >> _ROW_BITS) & np.uint64((1 << 22) - 1)
    return source.astype(np.int64), row.astype(np.int64)


def split_of(order: U64) -> I64:
    """The split of each order of preference, as an index into ``SPLITS``."""
    return 2 - (order >> np.uint64(62)).astype(np.int64)


def write_codes(rows: pa.Table, sources: Sequence[Source], config: DataConfig, buckets: int, place: Place) -> None:
    """Step 1: the LSH codes of a block of cleaned rows (schema ``exchange.ROWS``)."""
    rows = rows.filter(pc.is_null(rows["reason"])).combine_chunks()
    codes = near.band_codes(one(rows["text"]), config.near_ngram, config.near_threshold)
    keys = dedup.halves_of(one(rows["key"]))[:, 0]
    order = orders(file_splits(rows, sources), one(rows["source"]).to_numpy(), one(rows["row"]).to_numpy())
    has = codes.ravel() != 0
    flat = codes.ravel()[has]
    bands = codes.shape[1]
    columns = [(flat >> np.uint64(32)).astype(np.uint32), np.repeat(keys, bands)[has], np.repeat(order, bands)[has]]
    exchange.write_part(pa.table(columns, schema=CODES), exchange.bucket_of(flat, buckets), buckets, place)


def meet(codes: pa.Table, buckets: int, place: Place) -> None:
    """Step 2: pairs of texts that agree in a band."""
    code, key, order = (one(codes[name]).to_numpy() for name in CODES.names)
    by = np.lexsort((order, key, code))
    code, key, order = code[by], key[by], order[by]
    first = np.ones(len(by), bool)  # equal texts are one
    first[1:] = (code[1:] != code[:-1]) | (key[1:] != key[:-1])
    code, key, order = code[first], key[first], order[first]
    better, worse = near.meetings(code.astype(np.uint64), order)
    a, b = np.minimum(key[better], key[worse]), np.maximum(key[better], key[worse])
    pairs = np.unique(np.stack([a, b], axis=1), axis=0) if len(a) else np.empty((0, 2), np.uint64)
    homes = exchange.bucket_of(pairs, buckets)
    both = np.concatenate([pairs, pairs[homes[:, 0] != homes[:, 1]]])
    home = np.concatenate([homes[:, 0], homes[homes[:, 0] != homes[:, 1]][:, 1]])
    exchange.write_part(pa.table([both[:, 0], both[:, 1]], schema=PAIRS), home, buckets, place)


def gather(rows: pa.Table, ranked: Ranked, pairs: pa.Table, n: int, bucket: int, buckets: int, place: Place) -> None:
    """Step 3: the n-grams of the texts of one bucket that are in pairs.

    Args:
        rows: of the bucket, as given to ``rank``.
        ranked: only texts that stand among their equals take part.
        pairs: schema ``PAIRS``, with a text of this bucket in each.
        n: units of an n-gram.
        bucket: the number of this one.
        buckets: how many there are.
        place: where the n-grams go.
    """
    distinct = np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()], axis=1)
    distinct = np.unique(distinct, axis=0) if len(distinct) else distinct
    winners = ranked.winners
    keys = dedup.halves_of(one(rows["key"]))[winners, 0]
    winners, keys = winners[np.argsort(keys, kind="stable")], np.sort(keys)
    parts = []
    for side in (0, 1):
        mine = distinct[exchange.bucket_of(distinct[:, side], buckets) == bucket]
        at = np.minimum(np.searchsorted(keys, mine[:, side]), max(0, len(keys) - 1))
        there = keys[at] == mine[:, side] if len(keys) else np.zeros(len(mine), bool)
        mine, of = mine[there], winners[at[there]] if len(keys) else np.empty(0, np.int64)
        parts.append((mine, of, np.full(len(mine), bool(side))))
    pair, row, second = (np.concatenate(c) for c in zip(*parts, strict=True))
    texts, inverse = np.unique(row, return_inverse=True)
    grams, levels = _sets(one(rows["text"]).take(pa.array(texts)), n)
    order = orders(ranked.splits[row], one(rows["source"]).to_numpy()[row], one(rows["row"]).to_numpy()[row])
    columns = [
        pair[:, 0], pair[:, 1], pa.array(second), order, pa.array(ranked.label[row], pa.int32()), levels[inverse],
        grams.take(pa.array(inverse)),
    ]  # fmt: skip
    home = exchange.bucket_of(pair[:, 0] ^ (pair[:, 1] >> np.uint64(7)), buckets)
    exchange.write_part(pa.table(columns, schema=SETS), home, buckets, place)


def _sets(texts: pa.StringArray, n: int) -> tuple[pa.ListArray, npt.NDArray[np.uint8]]:
    """The n-grams of each text, and by how many halvings they were sampled to be at most ``MOST_GRAMS`` or so."""
    grams, counts, levels = [], [np.empty(0, np.int64)], np.zeros(len(texts), np.uint8)
    for start in range(0, len(texts), near.BLOCK_TEXTS):
        hashes, offsets = near.ngrams(texts.slice(start, near.BLOCK_TEXTS), n)
        sizes = np.diff(offsets)
        level = np.ceil(np.log2(np.maximum(sizes / MOST_GRAMS, 1))).astype(np.uint8)
        levels[start : start + len(sizes)] = level
        if level.any():
            text = np.repeat(np.arange(len(sizes)), sizes)
            keep = _sampled(hashes, level[text])
            hashes, sizes = hashes[keep], np.bincount(text[keep], minlength=len(sizes))
        grams.append(hashes)
        counts.append(sizes)
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    values = np.concatenate(grams) if grams else np.empty(0, np.uint64)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values)), levels


def _sampled(hashes: U64, level: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which n-grams belong to a sample: the same ones of every text, so that samples can be compared."""
    return (hashes & ((np.uint64(1) << level.astype(np.uint64)) - np.uint64(1))) == 0


def compare(sets: pa.Table, threshold: float) -> pa.Table:
    """Step 4: the pairs that are alike.

    Args:
        sets: schema ``SETS``, both texts of each pair among them (one is missing where it does not stand).
        threshold: least Jaccard similarity.

    Returns:
        Schema ``ALIKE``.
    """
    sets = sets.sort_by([("a", "ascending"), ("b", "ascending"), ("second", "ascending")]).combine_chunks()
    a, b = (one(sets[name]).to_numpy() for name in ("a", "b"))
    second = to_mask(one(sets["second"]))
    left = np.flatnonzero((a[1:] == a[:-1]) & (b[1:] == b[:-1]) & second[1:] & ~second[:-1])
    right = left + 1
    level = one(sets["level"]).to_numpy()
    common = np.maximum(level[left], level[right])
    hashes = [_side(one(sets["grams"]), at, common, level) for at in (left, right)]
    similarity = near.jaccard(*hashes[0], *hashes[1])
    alike = np.flatnonzero(similarity >= threshold)
    left, right, similarity = left[alike], right[alike], similarity[alike]
    order = one(sets["order"]).to_numpy()
    swap = order[right] < order[left]
    keys = np.where(swap, b[left], a[left]), np.where(swap, a[left], b[left])
    better, worse = np.where(swap, right, left), np.where(swap, left, right)
    label = one(sets["label"]).to_numpy()[better]
    return pa.table([order[better], order[worse], *keys, label, similarity.astype(np.float32)], schema=ALIKE)


def _side(grams: pa.ListArray, at: I64, common: npt.NDArray[np.uint8], level: npt.NDArray[np.uint8]) -> tuple[U64, I64]:
    """The n-grams of one side of each pair, sampled as coarsely as those of the other side are."""
    lists = grams.take(pa.array(at))
    hashes, sizes = lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy())
    pair = np.repeat(np.arange(len(at)), sizes)
    if (common != level[at]).any():
        keep = _sampled(hashes, common[pair])
        hashes, sizes = hashes[keep], np.bincount(pair[keep], minlength=len(at))
    offsets = np.zeros(len(at) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return hashes, offsets


def decide(alike: pa.Table, sources: Sequence[Source], policy: str) -> pa.Table:
    """Which texts fall.

    A row of a test or validation file stays beside its like in the same split: a test set that was given is not
    thinned out. Policy 'leaks' lets a text fall only for one in another split.

    Args:
        alike: schema ``ALIKE``, all pairs.
        sources: the files of the job.
        policy: ``data.near_duplicates``.

    Returns:
        Schema ``FALLEN``.
    """
    better, worse = (alike[name].to_numpy() for name in ("better", "worse"))
    from_train = np.array([s.split == "train" for s in sources] or [True])[place_of(worse)[0]]
    droppable = split_of(better) != split_of(worse)
    if policy == "drop":
        droppable |= from_train
    fallen = np.array(sorted(near.settle(better, worse, droppable).values()), np.int64)
    rows = alike.take(pa.array(fallen)).combine_chunks()
    split = pa.array(split_of(rows["better"].to_numpy()), pa.int8())
    names = ("worse_key", "worse", "better", "better_key", "better_label")
    return pa.table([*(rows[name] for name in names), split, rows["similarity"]], schema=FALLEN)


def examples(place: Place, fallen: pa.Table, sources: Sequence[Source], buckets: int) -> list[dict[str, Any]]:
    """Some texts that fell, from the least alike to the most, each beside the one that is kept.

    Args:
        place: the prepared folder, its shards written.
        fallen: schema ``FALLEN``, all of them.
        sources: the files of the job.
        buckets: how many there are.

    Returns:
        Rows of ``duplicates/``, with ``kept_text``.
    """
    by = np.lexsort((fallen["key"].to_numpy(), fallen["similarity"].to_numpy()))
    chosen = by[np.unique(np.linspace(0, len(by) - 1, EXAMPLES).astype(np.int64))] if len(by) else by
    found = []
    for text in fallen.take(pa.array(chosen)).to_pylist():
        row = _row(place / "duplicates", text["key"], text["order"], sources, buckets)
        kept = _row(place / SPLITS[text["kept_split"]], text["kept_key"], text["kept"], sources, buckets)
        found.append({**row, "kept_text": kept["text"]})
    return found


def _row(folder: Place, key: int, order: int, sources: Sequence[Source], buckets: int) -> dict[str, Any]:
    source, row = (int(x[0]) for x in place_of(np.array([order], np.uint64)))
    shard = read_parquet(folder / shard_name(key % buckets))
    return dict(shard.filter(pc.equal(shard["id"], f"{sources[source].name}:{row}")).to_pylist()[0])
