"""The two passes of ``prepare`` as plain functions over Arrow tables; ``prepare`` lays them out on Ray Data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, reject, split
from pipeline.data.clean import Tally, chosen, clean_column
from pipeline.data.config import DataConfig
from pipeline.data.exchange import ROWS
from pipeline.data.profile import SPLITS
from pipeline.data.read import Source
from pipeline.data.tokenize import TextTokenizer

PREPARED = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("label", pa.int32()), ("input_ids", pa.list_(pa.int32()))]
)
REJECTED = pa.schema([(n, pa.string()) for n in ("id", "text", "label", "stage", "reason", "detail")])
DUPLICATES = pa.schema(
    [
        (n, pa.string())
        for n in ("id", "text", "label", "split", "kept_id", "kept_label", "kept_split", "reason")
    ]
)  # fmt: skip
_CODE = {reason: i for i, reason in enumerate(reject.REASONS)}
_NAMES = pa.array(list(reject.REASONS), pa.string())


def label_name(raw: str | None, config: DataConfig) -> tuple[str | None, str | None]:
    """The name of a label as read, and the reason to reject it.

    With ``data.labels`` an integer is turned into its name; anything that is neither an integer in range nor
    one of the names is unknown.
    """
    value = (raw or "").strip()
    if not value:
        return None, reject.MISSING_LABEL
    if not config.labels:
        return value, None
    if value in config.labels:
        return value, None
    try:
        at = int(value) - config.labels_start
    except ValueError:
        return value, reject.UNKNOWN_LABEL
    return (config.labels[at], None) if 0 <= at < len(config.labels) else (value, reject.UNKNOWN_LABEL)


def clean_rows(chunk: pa.Table, sources: Sequence[Source], config: DataConfig) -> tuple[pa.Table, dict[str, Any]]:
    """The first pass over one block: name labels, clean, reject, and hash what is left.

    Args:
        chunk: columns ``source`` (index into ``sources``) and those of ``read.chunk_schema``.
        sources: the files of the job.
        config: the data section.

    Returns:
        The rows in schema ``exchange.ROWS``, every row of the chunk among them, and facts to add up:
        ``rules`` (rows changed by each), ``samples``, ``cut`` (rows cut at ``max_chars``), ``filled``.
    """
    chunk = chunk.combine_chunks()
    column = {name: _one(chunk[name]) for name in chunk.column_names}
    n = chunk.num_rows
    readable = pc.is_null(column["error"])
    raw, filled = fill_missing(column, readable, config)
    # An unreadable row is not cleaned: it counts for no rule.
    texts = pc.if_else(readable, pc.fill_null(raw, ""), "")
    long = pc.greater(pc.utf8_length(texts), config.max_chars)
    cut = pc.sum(long).as_py() or 0
    if cut:
        texts = pc.if_else(long, pc.utf8_slice_codeunits(texts, 0, config.max_chars), texts)
    tally = Tally()
    texts = clean_column(texts, chosen(config.extra_rules), tally)

    names, label_codes = _labels(column["label"], config)
    reasons = np.where(_numpy(pc.less(pc.utf8_length(texts), config.min_chars)), _CODE[reject.TOO_SHORT], -1)
    empty = np.flatnonzero(_numpy(pc.equal(pc.binary_length(texts), 0)))
    reasons = np.where((reasons < 0) & (label_codes == _CODE[reject.UNKNOWN_LABEL]), label_codes, reasons)
    reasons[empty] = _CODE[reject.EMPTY]
    reasons = np.where(label_codes == _CODE[reject.MISSING_LABEL], label_codes, reasons)
    # What was blank from the start is empty now as well, so only empty texts need the look.
    blank = [i for i, t in zip(empty, raw.take(pa.array(empty)).to_pylist(), strict=True) if not (t or "").strip()]
    reasons[blank] = _CODE[reject.MISSING_TEXT]
    reasons[~_numpy(readable)] = _CODE[reject.UNREADABLE]

    bad = reasons >= 0
    contents = texts.to_pylist()
    if bad.any():  # a rejected row is nobody's duplicate
        places = zip(column["source"].to_pylist(), column["row"].to_pylist(), strict=True)
        contents = [f"{p[0]}:{p[1]}" if b else t for t, b, p in zip(contents, bad.tolist(), places, strict=True)]
    keys = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(dedup.KEY_BYTES), n, [None, pa.py_buffer(b"".join(map(dedup.text_key, contents)))]
    )
    reason = pc.take(_NAMES, pa.array(reasons, mask=~bad))
    rows = [column["source"], column["row"], texts, names, keys, reason, column["error"]]
    counts = np.bincount(reasons[bad], minlength=len(_CODE))
    facts = {
        "read": n,
        "rejected": {name: int(counts[code]) for name, code in _CODE.items() if counts[code]},
        "rules": tally.changed,
        "samples": {rule: [list(s) for s in samples] for rule, samples in tally.chosen.items()},
        "cut": cut,
        "filled": filled,
    }
    return pa.table([_as(c, f.type) for c, f in zip(rows, ROWS, strict=True)], schema=ROWS), facts


def fill_missing(
    column: Mapping[str, pa.Array], readable: pa.BooleanArray, config: DataConfig
) -> tuple[pa.StringArray, dict[str, int]]:
    """Texts with missing ones replaced as the configuration asks, and how many were."""
    raw, filled = column["text"], {}
    ways = [(f"column '{config.fill_from}'", column["other"])] if config.fill_from else []
    if config.placeholder:
        ways.append(("placeholder", pa.scalar(config.placeholder, pa.string())))
    for name, replacement in ways:
        missing = pc.and_(readable, _blank(raw))
        if not isinstance(replacement, pa.Scalar):
            missing = pc.and_(missing, pc.invert(_blank(replacement)))
        if count := pc.sum(missing).as_py():
            filled[name] = count
            raw = pc.if_else(missing, replacement, raw)
    return raw, filled


def _blank(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.fill_null(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0), True)


def _labels(raw: pa.Array, config: DataConfig) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The label name of each row, and the code of the reason against it (-1 for none), one look per distinct value."""
    encoded = raw.dictionary_encode()
    named = [label_name(value, config) for value in encoded.dictionary.to_pylist()]
    at = pc.fill_null(encoded.indices, len(named))
    named.append((None, reject.MISSING_LABEL))
    codes = np.array([-1 if reason is None else _CODE[reason] for _, reason in named])
    return pa.array([name for name, _ in named], pa.string()).take(at), codes[at.to_numpy()]


def class_hashes(rows: pa.Table, sources: Sequence[Source]) -> dict[str, npt.NDArray[np.uint64]]:
    """The split hashes of the rows still in the running that belong to train files, by class."""
    in_train = np.array([s.split == "train" for s in sources])
    alive = _numpy(pc.is_null(_one(rows["reason"]))) & in_train[rows["source"].to_numpy()]
    encoded = _one(rows["label"]).dictionary_encode()
    labels = pc.fill_null(encoded.indices, -1).to_numpy()
    hashes = _halves(rows)[:, 1]
    return {
        name: hashes[alive & (labels == i)]
        for i, name in enumerate(encoded.dictionary.to_pylist())
        if (alive & (labels == i)).any()
    }


@dataclass(frozen=True)
class Finished:
    """One shard of the prepared data: a table per folder, and its facts."""

    tables: dict[str, pa.Table]
    facts: dict[str, Any]


def finish_rows(
    rows: pa.Table,
    sources: Sequence[Source],
    labels: Sequence[str],
    bounds: Mapping[str, tuple[int, int]],
    tokenizer: TextTokenizer,
    conflicts: str = "keep",
) -> Finished:
    """The second pass over one bucket: reject unlearnable labels, remove duplicates, split, tokenize.

    Args:
        rows: schema ``exchange.ROWS``, ordered by source and row; all rows of equal text are among them.
        sources: the files of the job.
        labels: the frozen label names; the label id is the index.
        bounds: from ``split.HashSketch.bounds``.
        tokenizer: turns text into ids.
        conflicts: ``data.conflicts``, what becomes of equal texts under several labels.
    """
    rows = rows.combine_chunks()
    name = pa.array([s.name for s in sources], pa.string()).take(_one(rows["source"]))
    rows = rows.append_column("id", pc.binary_join_element_wise(name, pc.cast(rows["row"], pa.string()), ":"))
    label = _label_ids(_one(rows["label"]), labels)
    hint = _sets(rows, sources)
    alive = _numpy(pc.is_null(_one(rows["reason"])))
    unlearnable = alive & (label < 0)
    candidates = np.flatnonzero(alive & (label >= 0))
    candidates = candidates[np.argsort(-hint[candidates], kind="stable")]  # test before validation before train
    keys = _halves(rows)[candidates]
    first = dedup.first_of_each(keys)
    standing = dedup.settle_conflicts(first, label[candidates], hint[candidates], conflicts)
    itself = standing == np.arange(len(candidates))

    splits = np.full(rows.num_rows, -1)
    splits[candidates] = split.assign(label[candidates], keys[:, 1], hint[candidates], split.as_arrays(labels, bounds))
    tables: dict[str, pa.Table] = {}
    facts: dict[str, Any] = {"read": rows.num_rows}
    facts |= {fact: {} for fact in ("kept", "classes", "lengths", "truncated", "unknown")}
    kept = np.zeros(rows.num_rows, bool)
    kept[candidates[itself]] = True
    for i, split_name in enumerate(SPLITS):
        at = np.flatnonzero(kept & (splits == i))
        texts = _one(rows["text"]).take(pa.array(at))
        input_ids, truncated = tokenizer.encode_arrow(texts)
        columns = [_one(rows["id"]).take(pa.array(at)), texts, pa.array(label[at], pa.int32()), input_ids]
        tables[split_name] = pa.table(columns, schema=PREPARED)
        facts["kept"][split_name] = len(at)
        counts = np.bincount(label[at], minlength=len(labels))
        facts["classes"][split_name] = {labels[k]: int(c) for k, c in enumerate(counts) if c}
        lengths = np.bincount(np.diff(input_ids.offsets.to_numpy()))
        facts["lengths"][split_name] = {str(length): int(c) for length, c in enumerate(lengths) if c}
        facts["truncated"][split_name] = int(truncated.sum())
        facts["unknown"][split_name] = tokenizer.unknown(input_ids)

    tables["rejected"] = _rejected(rows, alive, unlearnable, candidates[standing < 0])
    again = np.flatnonzero((standing >= 0) & ~itself)
    again = again[np.argsort(candidates[again])]
    twice, of = candidates[again], candidates[standing[again]]
    tables["duplicates"] = _duplicates(rows, twice, of, label, hint, splits)
    facts["rejected"] = dict(Counter(tables["rejected"]["reason"].to_pylist()))
    facts["duplicates"] = dict(Counter(tables["duplicates"]["reason"].to_pylist()))
    facts["unlearnable"] = dict(Counter(rows["label"].filter(pa.array(unlearnable)).to_pylist()))
    return Finished(tables, facts)


def _label_ids(names: pa.Array, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """The id of each label name, -1 for none."""
    found = pc.index_in(names, pa.array(labels, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _rejected(
    rows: pa.Table, alive: npt.NDArray[np.bool_], unlearnable: npt.NDArray[np.bool_], dropped: npt.NDArray[np.int64]
) -> pa.Table:
    reasons = _one(rows["reason"])
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
    return pa.table([_as(_one(c), pa.string()) for c in columns], schema=REJECTED)


def _duplicates(
    rows: pa.Table,
    twice: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    label: npt.NDArray[np.int64],
    hint: npt.NDArray[np.int64],
    splits: npt.NDArray[np.int64],
) -> pa.Table:
    # Equal texts hash alike, so a duplicate's own split would be its file's: compare where files put them.
    why = [dedup.reason(bool(label[i] == label[k]), bool(hint[i] == hint[k])) for i, k in zip(twice, kept, strict=True)]
    names = pa.array(SPLITS, pa.string())
    at, of = pa.array(twice), pa.array(kept)
    columns = [
        *(rows[name].take(at) for name in ("id", "text", "label")), names.take(pa.array(hint[twice])),
        rows["id"].take(of), rows["label"].take(of), names.take(pa.array(splits[kept])), pa.array(why, pa.string()),
    ]  # fmt: skip
    return pa.table([_as(_one(c), pa.string()) for c in columns], schema=DUPLICATES)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if column.type == kind else column.cast(kind)


def _numpy(mask: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    return mask.to_numpy(zero_copy_only=False).astype(bool)


def _halves(rows: pa.Table) -> npt.NDArray[np.uint64]:
    return dedup.halves_of(_one(rows["key"]))


def train_texts(
    rows: pa.Table, sources: Sequence[Source], labels: Sequence[str], bounds: Mapping[str, tuple[int, int]]
) -> list[str]:
    """The distinct texts of one bucket that belong to the train split, in order."""
    rows = rows.combine_chunks()
    label = _label_ids(_one(rows["label"]), labels)
    hint = _sets(rows, sources)
    at = np.flatnonzero(_numpy(pc.is_null(_one(rows["reason"]))) & (label >= 0) & (hint == 0))
    keys = _halves(rows)[at]
    splits = split.assign(label[at], keys[:, 1], hint[at], split.as_arrays(labels, bounds))
    first = dedup.first_of_each(keys) == np.arange(len(at))
    return list(_one(rows["text"]).take(pa.array(at[first & (splits == 0)])).to_pylist())


def _sets(rows: pa.Table, sources: Sequence[Source]) -> npt.NDArray[np.int64]:
    """Where each row's file belongs, as an index into ``SPLITS``."""
    return np.array([SPLITS.index(s.split) for s in sources] or [0])[rows["source"].to_numpy()]


def digest(*parts: str) -> str:
    """A short hexadecimal fingerprint of strings, in order."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()
