"""The two passes of ``prepare`` as plain functions over Arrow tables; ``prepare`` lays them out on Ray Data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import DataConfig
from pipeline.data import dedup, reject, split
from pipeline.data.clean import RULES, Rule, Tally, clean
from pipeline.data.exchange import ROWS
from pipeline.data.profile import SPLITS
from pipeline.data.read import Source
from pipeline.data.tokenize import TextTokenizer

PREPARED = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("label", pa.int32()), ("input_ids", pa.list_(pa.int32()))]
)
REJECTED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
DUPLICATES = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("kept_id", pa.string()),
        ("kept_label", pa.string()),
        ("kept_split", pa.string()),
        ("reason", pa.string()),
    ]
)


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


def clean_rows(
    chunk: pa.Table, sources: Sequence[Source], config: DataConfig, rules: Sequence[Rule] = RULES
) -> tuple[pa.Table, dict[str, Any]]:
    """The first pass over one block: name labels, clean, reject, and hash what is left.

    Args:
        chunk: columns ``source`` (index into ``sources``) and those of ``read.CHUNK``.
        sources: the files of the job.
        config: the data section.
        rules: cleaning rules, in order.

    Returns:
        The rows in schema ``exchange.ROWS``, every row of the chunk among them, and facts to add up:
        ``rules`` (rows changed by each), ``samples``, ``cut`` (rows cut at ``max_chars``).
    """
    tally = Tally()
    cut = 0
    out: dict[str, list[Any]] = {name: [] for name in ROWS.names}
    for source, row, raw, raw_label, error in zip(*(chunk[c].to_pylist() for c in chunk.column_names), strict=True):
        label, label_reason = label_name(raw_label, config)
        text = raw or ""
        if len(text) > config.max_chars:
            text, cut = text[: config.max_chars], cut + 1
        if error is not None:
            reason: str | None = reject.UNREADABLE
        else:
            text = clean(text, rules, tally)
            reason = reject.reason_for(text, raw, label, config.min_chars) or label_reason
        out["source"].append(source)
        out["row"].append(row)
        out["hint"].append(sources[source].split)
        out["text"].append(text)
        out["label"].append(label)
        key = f"{source}:{row}" if reason else text
        out["key"].append(dedup.text_key(key))
        out["reason"].append(reason)
        out["detail"].append(error)
    facts = {"rules": tally.changed, "samples": tally.samples, "cut": cut}
    return pa.table([pa.array(out[f.name], f.type) for f in ROWS], schema=ROWS), facts


def class_hashes(rows: pa.Table) -> dict[str, np.ndarray]:
    """The split hashes of the rows still in the running that belong to train files, by class."""
    labels, reasons, hints = (rows[c].to_pylist() for c in ("label", "reason", "hint"))
    hashes = dedup.halves(rows["key"].to_pylist())[:, 1]
    at: dict[str, list[int]] = {}
    for i, (label, reason, hint) in enumerate(zip(labels, reasons, hints, strict=True)):
        if reason is None and hint == "train":
            at.setdefault(label, []).append(i)
    return {label: hashes[indices] for label, indices in at.items()}


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
) -> Finished:
    """The second pass over one bucket: reject unlearnable labels, remove duplicates, split, tokenize.

    Args:
        rows: schema ``exchange.ROWS``, ordered by source and row; all rows of equal text are among them.
        sources: the files of the job.
        labels: the frozen label names; the label id is the index.
        bounds: from ``split.HashSketch.bounds``.
        tokenizer: turns text into ids.
    """
    columns = {name: rows[name].to_pylist() for name in ROWS.names}
    ids = [f"{sources[s].name}:{r}" for s, r in zip(columns["source"], columns["row"], strict=True)]
    label_ids = {name: i for i, name in enumerate(labels)}
    rejected, candidates, unlearnable = [], [], Counter[str]()
    for i, (reason, label) in enumerate(zip(columns["reason"], columns["label"], strict=True)):
        if reason is None and label not in label_ids:
            reason = reject.NOT_IN_TRAIN
            unlearnable[label] += 1
        if reason is None:
            candidates.append(i)
        else:
            rejected.append(
                (
                    ids[i],
                    columns["text"][i],
                    columns["label"][i],
                    _stage(reason),
                    reason,
                    columns["detail"][i],
                )
            )
    candidates.sort(key=lambda i: dedup.PRIORITY[columns["hint"][i]])  # stable: source and row order stay
    keys = [columns["key"][i] for i in candidates]
    keep, kept_at = dedup.first_of_each(keys)
    splits = split.assign(
        [columns["label"][i] for i in candidates],
        dedup.halves(keys)[:, 1],
        [columns["hint"][i] for i in candidates],
        {**dict.fromkeys(labels, (0, 0)), **bounds},
    )
    duplicates = []
    kept: dict[str, list[int]] = {s: [] for s in SPLITS}
    for n, i in enumerate(candidates):
        if keep[n]:
            kept[splits[n]].append(i)
            continue
        k = candidates[kept_at[n]]
        mine, its = columns["label"][i], columns["label"][k]
        # Equal texts hash alike, so a duplicate's own split would be its file's: compare where files put them.
        why = dedup.reason(mine, its, columns["hint"][i], columns["hint"][k])
        duplicates.append((ids[i], columns["text"][i], mine, columns["hint"][i], ids[k], its, splits[kept_at[n]], why))
    tables: dict[str, pa.Table] = {}
    facts: dict[str, Any] = {
        "read": rows.num_rows,
        "kept": {},
        "rejected": dict(Counter(r[4] for r in rejected)),
        "duplicates": dict(Counter(d[7] for d in duplicates)),
        "classes": {},
        "lengths": {},
        "truncated": {},
        "unlearnable": dict(unlearnable),
    }
    for name, indices in kept.items():
        indices.sort()
        texts = [columns["text"][i] for i in indices]
        input_ids, truncated = tokenizer.encode_arrow(pa.array(texts, pa.string()))
        tables[name] = pa.table(
            [
                pa.array([ids[i] for i in indices], pa.string()),
                pa.array(texts, pa.string()),
                pa.array([label_ids[columns["label"][i]] for i in indices], pa.int32()),
                input_ids,
            ],
            schema=PREPARED,
        )
        facts["kept"][name] = len(indices)
        facts["classes"][name] = dict(Counter(columns["label"][i] for i in indices))
        facts["lengths"][name] = {str(n): c for n, c in Counter(len(v) for v in input_ids).items()}
        facts["truncated"][name] = int(truncated.sum())
    tables["rejected"] = _from_rows(rejected, REJECTED)
    tables["duplicates"] = _from_rows(duplicates, DUPLICATES)
    return Finished(tables, facts)


def _stage(reason: str) -> str:
    if reason == reject.UNREADABLE:
        return "read"
    return "clean" if reason in (reject.EMPTY, reject.TOO_SHORT) else "label" if "label" in reason else "read"


def _from_rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in schema]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def digest(*parts: str) -> str:
    """A short hexadecimal fingerprint of strings, in order."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()
