"""The second pass of ``prepare``: the rows of one bucket become shards. Plain functions over Arrow tables.

A bucket holds all rows of equal text, so exact duplicates can be settled (``rank``). Which texts fall as
near-duplicates of others is known before (``near_pass``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, near_pass, reject
from pipeline.data.augment import augmented
from pipeline.data.columns import as_type, one, row_ids, to_mask
from pipeline.data.neighbours import Neighbours
from pipeline.data.profile import SPLITS
from pipeline.data.rank import Ranked
from pipeline.data.read import Source
from pipeline.data.tokenize import TextTokenizer

# Rows as they were read have no augmentation; changed copies name their operation, and the row that they were made of.
PREPARED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("augmentation", pa.string()),
        ("augmented_from", pa.string()),
    ]
)
REJECTED = pa.schema([(n, pa.string()) for n in ("id", "text", "label", "stage", "reason", "detail")])
DUPLICATES = pa.schema(
    [
        *((n, pa.string()) for n in ("id", "text", "label", "split", "kept_id", "kept_label", "kept_split")),
        ("similarity", pa.float32()),
        ("reason", pa.string()),
    ]
)
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Augmentation:
    """What copies are made of training rows; arguments of ``augment.augmented``.

    Attributes:
        operations: none of them: no copies.
        rates: copies per row of each class, [labels].
        share: of a text's words that are changed.
        seed: of the configuration.
        neighbours: for the operation of that name.
    """

    operations: Sequence[str]
    rates: Sequence[float]
    share: float
    seed: int
    neighbours: Neighbours | None = None


@dataclass(frozen=True)
class Finished:
    """One shard of the prepared data: a table per folder, and its facts."""

    tables: dict[str, pa.Table]
    facts: dict[str, Any]


def finish_rows(
    rows: pa.Table,
    sources: Sequence[Source],
    labels: Sequence[str],
    ranked: Ranked,
    tokenizer: TextTokenizer,
    fallen: pa.Table,
    augmentation: Augmentation | None = None,
) -> Finished:
    """Reject unlearnable labels, set duplicates apart, tokenize what is kept.

    Args:
        rows: of one bucket, as given to ``rank``.
        sources: the files of the job.
        labels: the frozen label names; the label id is the index.
        ranked: from ``rank``.
        tokenizer: turns text into ids.
        fallen: schema ``near_pass.FALLEN``: the texts of this bucket that are near-duplicates of kept ones.
        augmentation: of the training rows, if any.
    """
    ids = row_ids(
        pa.array([s.name for s in sources], pa.string()), one(rows["source"]).to_numpy(), one(rows["row"]).to_numpy()
    )
    rows = rows.append_column("id", ids)
    label, splits = ranked.label, ranked.splits
    winners = ranked.winners
    keys = dedup.halves_of(one(rows["key"]))[:, 0]
    kept = np.zeros(rows.num_rows, bool)
    kept[winners[~np.isin(keys[winners], fallen["key"].to_numpy())]] = True
    tables: dict[str, pa.Table] = {}
    facts: dict[str, Any] = {"read": rows.num_rows}
    facts |= {fact: {} for fact in ("kept", "classes", "lengths", "truncated", "unknown")}
    for i, split_name in enumerate(SPLITS):
        at = np.flatnonzero(kept & (splits == i))
        texts = one(rows["text"]).take(pa.array(at))
        input_ids, truncated = tokenizer.encode_arrow(texts)
        none = pa.nulls(len(at), pa.string())
        columns = [one(rows["id"]).take(pa.array(at)), texts, pa.array(label[at], pa.int32()), input_ids, none, none]
        tables[split_name] = pa.table(columns, schema=PREPARED)
        facts["kept"][split_name] = len(at)
        counts = np.bincount(label[at], minlength=len(labels))
        facts["classes"][split_name] = {labels[k]: int(c) for k, c in enumerate(counts) if c}
        lengths = np.bincount(np.diff(input_ids.offsets.to_numpy()))
        facts["lengths"][split_name] = {str(length): int(c) for length, c in enumerate(lengths) if c}
        facts["truncated"][split_name] = int(truncated.sum())
        facts["unknown"][split_name] = tokenizer.unknown(input_ids)

    if augmentation is not None:
        copies = _copies(tables["train"], augmentation, tokenizer)
        tables["train"] = pa.concat_tables([tables["train"], copies])
        facts["augmented"] = dict(Counter(copies["augmentation"].to_pylist()))

    alive = to_mask(pc.is_null(one(rows["reason"])))
    unlearnable = alive & (label < 0)
    tables["rejected"] = _rejected(rows, alive, unlearnable, ranked.candidates[ranked.standing < 0])
    tables["duplicates"] = _duplicates(rows, ranked, kept, fallen, sources, labels)
    facts["rejected"] = dict(Counter(tables["rejected"]["reason"].to_pylist()))
    facts["duplicates"] = dict(Counter(tables["duplicates"]["reason"].to_pylist()))
    facts["unlearnable"] = dict(Counter(rows["label"].filter(pa.array(unlearnable)).to_pylist()))
    return Finished(tables, facts)


def _copies(train: pa.Table, how: Augmentation, tokenizer: TextTokenizer) -> pa.Table:
    """Changed copies of training rows, in the schema of the rows."""
    ids, texts, labels = (train[name].to_pylist() for name in ("id", "text", "label"))
    made = augmented(ids, texts, labels, how.rates, how.operations, how.share, how.seed, how.neighbours)
    source = pa.array(made.sources, pa.int64())
    new = pa.array(made.texts, pa.string())
    columns = [
        pa.array(made.ids, pa.string()), new, one(train["label"].take(source)), tokenizer.encode_arrow(new)[0],
        pa.array(made.operations, pa.string()), one(train["id"].take(source)),
    ]  # fmt: skip
    return pa.table(columns, schema=PREPARED)


def _rejected(rows: pa.Table, alive: Mask, unlearnable: Mask, dropped: Ints) -> pa.Table:
    reasons = one(rows["reason"])
    disputed = np.zeros(rows.num_rows, bool)
    disputed[dropped] = True
    reasons = pc.if_else(pa.array(unlearnable), reject.NOT_IN_TRAIN, reasons)
    reasons = pc.if_else(pa.array(disputed), reject.DISPUTED, reasons)
    at = pa.array(np.flatnonzero(~alive | unlearnable | disputed))
    reason = reasons.take(at)
    stage = pa.array([reject.STAGES[r] for r in reason.to_pylist()], pa.string())
    columns = [
        rows["id"].take(at),
        rows["text"].take(at),
        rows["label"].take(at),
        stage,
        reason,
        rows["detail"].take(at),
    ]
    return pa.table([as_type(one(c), pa.string()) for c in columns], schema=REJECTED)


def _duplicates(
    rows: pa.Table, ranked: Ranked, kept: Mask, fallen: pa.Table, sources: Sequence[Source], labels: Sequence[str]
) -> pa.Table:
    """Rows that stand aside for another one, which is kept: of equal text, or one that the text is like.

    Their reason says whether files put the two into different splits: that is a leak of the data as it was given. What
    a draw of ours would have put apart is none.
    """
    candidates, standing, label, hint = ranked.candidates, ranked.standing, ranked.label, ranked.hint
    stands = np.where(standing >= 0, candidates[standing], -1)
    aside = np.flatnonzero((stands >= 0) & ~kept[candidates])
    aside = aside[np.argsort(candidates[aside])]
    at, of = candidates[aside], stands[aside]
    kept_id, kept_label, kept_split = one(rows["id"]).take(pa.array(of)), label[of].copy(), ranked.splits[of].copy()
    similarity = np.ones(len(at), np.float32)
    own, files = hint[at].copy(), hint[of].copy()
    keys = dedup.halves_of(one(rows["key"]))[:, 0]
    order = np.argsort(fallen["key"].to_numpy())
    found = fallen.take(pa.array(order))
    near = np.isin(keys[of], found["key"].to_numpy())
    if near.any():
        found = found.take(pa.array(np.searchsorted(found["key"].to_numpy(), keys[of][near])))
        source, row = near_pass.place_of(found["kept"].to_numpy())
        names = pa.array([s.name for s in sources], pa.string())
        kept_id = pc.replace_with_mask(kept_id, pa.array(near), row_ids(names, source, row))
        kept_label[near] = found["kept_label"].to_numpy()
        kept_split[near] = found["kept_split"].to_numpy()
        files[near] = np.array([SPLITS.index(s.split) for s in sources])[source]
        similarity[near] = found["similarity"].to_numpy()
        own[near] = ranked.splits[at][near]
    differs = label[at] != kept_label
    why = [
        dedup.reason(bool(n), not d, bool(a == b)) for n, d, a, b in zip(near, differs, hint[at], files, strict=True)
    ]
    take, split_names = pa.array(at), pa.array(SPLITS, pa.string())
    columns = [
        *(rows[name].take(take) for name in ("id", "text", "label")), split_names.take(pa.array(own)),
        kept_id, pa.array(labels, pa.string()).take(pa.array(kept_label)), split_names.take(pa.array(kept_split)),
        pa.array(similarity), pa.array(why, pa.string()),
    ]  # fmt: skip
    return pa.table([as_type(one(c), f.type) for c, f in zip(columns, DUPLICATES, strict=True)], schema=DUPLICATES)


def train_texts(rows: pa.Table, ranked: Ranked, fallen: pa.Table) -> list[str]:
    """The distinct texts of one bucket that are kept for training, in order."""
    winners = np.sort(ranked.winners)
    winners = winners[ranked.splits[winners] == 0]
    keys = dedup.halves_of(one(rows["key"]))[winners, 0]
    stay = winners[~np.isin(keys, fallen["key"].to_numpy())]
    return list(one(rows["text"]).take(pa.array(stay)).to_pylist())
