"""How near-duplicates are found among all rows: four steps over buckets, joined through the exchange.

1. ``write_codes``, for each bucket of texts: the LSH codes of those that stand among their equals, bucketed by code.
2. ``meet``, for each bucket of codes: pairs of texts with an equal code, sent to the buckets of both texts and to one
   of pairs.
3. ``gather``, for each bucket of texts: the n-grams of every text in a pair, sent to the buckets of its pairs.
4. ``compare``, for each bucket of pairs: the Jaccard similarity of the n-gram sets.

Memory is bounded by a bucket, and by ``GRAMS_AT_ONCE``. ``decide`` then reads the pairs that are alike, and only those,
and says which texts fall. Texts are named by the first half of their key, so that exact duplicates are one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, exchange, near
from pipeline.data.columns import one
from pipeline.data.config import DataConfig
from pipeline.data.profile import SPLITS
from pipeline.data.rank import Ranked
from pipeline.data.read import Source
from pipeline.data.shards import read_parquet, shard_name
from pipeline.storage import Place

EXAMPLES = 12
MOST_GRAMS = 2_048  # of a text with more a sample of its n-grams is compared: those whose hashes end in zeros
GRAMS_AT_ONCE = 1 << 20  # of both sides of the pairs that are compared together

CODES = pa.schema([("code", pa.uint32()), ("key", pa.uint64()), ("order", pa.uint64())])
PAIRS = pa.schema([("a", pa.uint64()), ("b", pa.uint64())])
SETS = pa.schema(
    [
        ("key", pa.uint64()),
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


def write_codes(rows: pa.Table, ranked: Ranked, config: DataConfig, buckets: int, place: Place) -> None:
    """Step 1: the LSH codes of the texts of one bucket.

    Args:
        rows: of the bucket, as given to ``rank``.
        ranked: only texts that stand among their equals take part.
        config: the data section.
        buckets: how many there are.
        place: where the codes go.
    """
    at = ranked.winners
    codes = near.band_codes(one(rows["text"]).take(pa.array(at)), config.near_ngram, config.near_threshold)
    has = codes.ravel() != 0
    flat, bands = codes.ravel()[has], codes.shape[1]
    keys, order = _keys(rows)[at], _orders_of(rows, ranked, at)
    columns = [(flat >> np.uint64(32)).astype(np.uint32), np.repeat(keys, bands)[has], np.repeat(order, bands)[has]]
    exchange.write_part(pa.table(columns, schema=CODES), exchange.bucket_of(flat, buckets), buckets, place)


def _keys(rows: pa.Table) -> U64:
    return dedup.halves_of(one(rows["key"]))[:, 0]


def _orders_of(rows: pa.Table, ranked: Ranked, at: I64) -> U64:
    return orders(ranked.splits[at], one(rows["source"]).to_numpy()[at], one(rows["row"]).to_numpy()[at])


def meet(codes: pa.Table, buckets: int, to_texts: Place, to_pairs: Place) -> None:
    """Step 2: pairs of texts that agree in a band.

    Args:
        codes: schema ``CODES``, of one bucket.
        buckets: how many there are.
        to_texts: where the pairs go by the buckets of their texts.
        to_pairs: where they go by a bucket of their own.
    """
    code, key, order = (one(codes[name]).to_numpy() for name in CODES.names)
    better, worse = near.meetings(code.astype(np.uint64), order)
    pairs = _distinct(np.minimum(key[better], key[worse]), np.maximum(key[better], key[worse]))
    homes = exchange.bucket_of(pairs, buckets)
    apart = homes[:, 0] != homes[:, 1]
    both, home = np.concatenate([pairs, pairs[apart]]), np.concatenate([homes[:, 0], homes[apart][:, 1]])
    exchange.write_part(pa.table([both[:, 0], both[:, 1]], schema=PAIRS), home, buckets, to_texts)
    exchange.write_part(
        pa.table([pairs[:, 0], pairs[:, 1]], schema=PAIRS), _pair_bucket(pairs, buckets), buckets, to_pairs
    )


def _distinct(a: U64, b: U64) -> U64:
    """Each pair once, [pairs, 2]."""
    return np.unique(np.stack([a, b], axis=1), axis=0) if len(a) else np.empty((0, 2), np.uint64)


def _pair_bucket(pairs: U64, buckets: int) -> I64:
    return exchange.bucket_of(pairs[:, 0] ^ (pairs[:, 1] >> np.uint64(7)), buckets)


def gather(rows: pa.Table, ranked: Ranked, pairs: pa.Table, n: int, buckets: int, place: Place) -> None:
    """Step 3: the n-grams of the texts of one bucket that are in pairs, once for each bucket of pairs.

    Args:
        rows: of the bucket, as given to ``rank``.
        ranked: as given to ``write_codes``.
        pairs: schema ``PAIRS``, with a text of this bucket in each.
        n: units of an n-gram.
        buckets: how many there are.
        place: where the n-grams go.
    """
    distinct = _distinct(pairs["a"].to_numpy(), pairs["b"].to_numpy())
    homes = _pair_bucket(distinct, buckets).astype(np.uint64)
    wanted = _distinct(distinct.ravel(), np.repeat(homes, 2))  # a text, and a bucket that wants it
    at = ranked.winners[np.argsort(_keys(rows)[ranked.winners], kind="stable")]
    keys = _keys(rows)[at]
    wanted = wanted[np.isin(wanted[:, 0], keys)]
    texts, inverse = np.unique(np.searchsorted(keys, wanted[:, 0]), return_inverse=True)
    at = at[texts]
    grams, levels = _sets(one(rows["text"]).take(pa.array(at)), n)
    table = pa.table(
        [keys[texts], _orders_of(rows, ranked, at), pa.array(ranked.label[at], pa.int32()), levels, grams], schema=SETS
    )
    exchange.write_part(table.take(pa.array(inverse)), wanted[:, 1].astype(np.int64), buckets, place)


def _sets(texts: pa.StringArray, n: int) -> tuple[pa.ListArray, npt.NDArray[np.uint8]]:
    """The distinct n-grams of each text, and by how many halvings they were sampled to be ``MOST_GRAMS`` or so."""
    grams, counts, levels = [], [np.empty(0, np.int64)], np.zeros(len(texts), np.uint8)
    for start in range(0, len(texts), near.BLOCK_TEXTS):
        hashes, offsets = near.ngrams(texts.slice(start, near.BLOCK_TEXTS), n)
        count = len(offsets) - 1
        text = np.repeat(np.arange(count), np.diff(offsets))
        by = np.lexsort((hashes, text))
        hashes, text = hashes[by], text[by]
        new = np.ones(len(by), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (text[1:] != text[:-1])
        hashes, text = hashes[new], text[new]
        sizes = np.bincount(text, minlength=count)
        level = np.ceil(np.log2(np.maximum(sizes / MOST_GRAMS, 1))).astype(np.uint8)
        levels[start : start + count] = level
        keep = _sampled(hashes, level[text])
        grams.append(hashes[keep])
        counts.append(np.bincount(text[keep], minlength=count))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    values = np.concatenate(grams) if grams else np.empty(0, np.uint64)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values)), levels


def _sampled(hashes: U64, level: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which n-grams belong to a sample: the same ones of every text, so that samples can be compared."""
    return (hashes & ((np.uint64(1) << level.astype(np.uint64)) - np.uint64(1))) == 0


def compare(pairs: pa.Table, sets: pa.Table, threshold: float) -> pa.Table:
    """Step 4: the pairs that are alike.

    Args:
        pairs: schema ``PAIRS``, of one bucket.
        sets: schema ``SETS``: the texts of these pairs.
        threshold: least Jaccard similarity.

    Returns:
        Schema ``ALIKE``.
    """
    sets = sets.sort_by("key").combine_chunks()
    key, order, label, level = (one(sets[name]).to_numpy() for name in SETS.names[:4])
    grams = one(sets["grams"])
    sizes = np.diff(grams.offsets.to_numpy())
    distinct = _distinct(pairs["a"].to_numpy(), pairs["b"].to_numpy())
    left, right = np.searchsorted(key, distinct[:, 0]), np.searchsorted(key, distinct[:, 1])
    similarity = np.zeros(len(distinct))
    ends = np.cumsum(sizes[left] + sizes[right]) if len(distinct) else np.empty(0, np.int64)
    start = 0
    while start < len(distinct):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + GRAMS_AT_ONCE, "right")))
        common = np.maximum(level[left[start:stop]], level[right[start:stop]])
        sides = [_side(grams, at[start:stop], common, level) for at in (left, right)]
        similarity[start:stop] = near.jaccard(*sides[0], *sides[1])
        start = stop
    alike = similarity >= threshold
    left, right, similarity = left[alike], right[alike], similarity[alike]
    swap = order[right] < order[left]
    better, worse = np.where(swap, right, left), np.where(swap, left, right)
    columns = [order[better], order[worse], key[better], key[worse], label[better], similarity.astype(np.float32)]
    return pa.table(columns, schema=ALIKE)


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
