"""The first pass of ``prepare``: label, clean, reject and hash the rows of a block. Plain functions over Arrow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dedup, reject
from pipeline.data.clean import Tally, chosen, clean_column
from pipeline.data.columns import as_type, one, row_ids, to_mask
from pipeline.data.config import DataConfig
from pipeline.data.corrections import Corrections
from pipeline.data.exchange import ROWS
from pipeline.data.read import Source

_BREAKS = re.compile(r"[\r\n\t\v\f\x1c-\x1f\x85\u2028\u2029]")
_WHOLE = re.compile(r"-?[0-9]+\.0+")
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
    if _BREAKS.search(value):
        value = " ".join(value.split())  # line ends and tabs inside: no table nor page could show them
    if value in config.labels:
        return value, None
    if value.endswith("0") and _WHOLE.fullmatch(value):  # a column of integers with a gap, as pandas writes it
        value = value.partition(".")[0]
    if not config.labels:
        return value, None
    if _WHOLE.fullmatch(f"{value}.0"):  # '2' may be the '2.0' among names of numbers
        for name in config.labels:
            if _WHOLE.fullmatch(name) and int(name.partition(".")[0]) == int(value):
                return name, None
    try:
        at = int(value) - config.labels_start
    except ValueError:
        return value, reject.UNKNOWN_LABEL
    return (config.labels[at], None) if 0 <= at < len(config.labels) else (value, reject.UNKNOWN_LABEL)


def clean_rows(
    chunk: pa.Table, sources: Sequence[Source], config: DataConfig, corrections: Corrections | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """The first pass over one block: name labels, clean, reject, and hash what is left.

    Args:
        chunk: columns ``source`` (index into ``sources``) and those of ``read.chunk_schema``.
        sources: the files of the job.
        config: the data section.
        corrections: of labels, if any.

    Returns:
        The rows in schema ``exchange.ROWS``, every row of the chunk among them, and facts to add up:
        ``rules`` (rows changed by each), ``samples``, ``cut`` (rows cut at ``max_chars``), ``filled``, and
        ``corrections`` where there are some.
    """
    chunk = chunk.combine_chunks()
    column = {name: one(chunk[name]) for name in chunk.column_names}
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
    corrected: dict[str, Any] = {}
    dropped = np.zeros(n, bool)
    if corrections is not None:
        names, label_codes, dropped, facts_of = _corrected(column, sources, names, label_codes, corrections)
        corrected = {"corrections": facts_of}
    reasons = np.where(to_mask(pc.less(pc.utf8_length(texts), config.min_chars)), _CODE[reject.TOO_SHORT], -1)
    empty = np.flatnonzero(to_mask(pc.equal(pc.binary_length(texts), 0)))
    reasons = np.where((reasons < 0) & (label_codes == _CODE[reject.UNKNOWN_LABEL]), label_codes, reasons)
    reasons[empty] = _CODE[reject.EMPTY]
    reasons = np.where(label_codes == _CODE[reject.MISSING_LABEL], label_codes, reasons)
    # What was blank from the start is empty now as well, so only empty texts need the look.
    blank = [i for i, t in zip(empty, raw.take(pa.array(empty)).to_pylist(), strict=True) if not (t or "").strip()]
    reasons[blank] = _CODE[reject.MISSING_TEXT]
    reasons[~to_mask(readable)] = _CODE[reject.UNREADABLE]
    reasons[dropped] = _CODE[reject.DROPPED]

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
        **corrected,
    }
    return pa.table([as_type(c, f.type) for c, f in zip(rows, ROWS, strict=True)], schema=ROWS), facts


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


def _corrected(
    column: Mapping[str, pa.Array],
    sources: Sequence[Source],
    names: pa.StringArray,
    codes: npt.NDArray[np.int64],
    corrections: Corrections,
) -> tuple[pa.StringArray, npt.NDArray[np.int64], npt.NDArray[np.bool_], dict[str, Any]]:
    """Labels and codes with the corrections made, which rows are dropped, and facts for ``corrections.summary``.

    A row whose label is not the one that was judged is left alone: its line may have moved in the file.
    """
    source = column["source"].to_numpy()
    ids = row_ids(pa.array([s.name for s in sources], pa.string()), source, column["row"].to_numpy())
    at = pc.index_in(ids, corrections.ids)
    wanted, expected = corrections.labels.take(at), corrections.expected.take(at)
    met = to_mask(pc.is_valid(at))
    stale = met & ~to_mask(pc.fill_null(pc.equal(expected, pc.fill_null(names, "")), True))
    dropped = met & ~stale & to_mask(pc.fill_null(pc.equal(wanted, ""), False))
    new = met & ~stale & ~dropped
    relabelled = new & ~to_mask(pc.fill_null(pc.equal(wanted, names), False))
    in_train = np.array([s.split == "train" for s in sources])[source]
    read = Counter(names.filter(pa.array(in_train & (codes < 0))).to_pylist())
    index = at.fill_null(-1).to_numpy()
    facts = {
        "relabelled": int(relabelled.sum()),
        "dropped": int(dropped.sum()),
        "met": index[met].tolist(),
        "stale": index[stale].tolist(),
        "labels": dict(read),
    }
    return pc.if_else(pa.array(new), wanted, names), np.where(new, -1, codes), dropped, facts


def class_hashes(rows: pa.Table, sources: Sequence[Source]) -> dict[str, npt.NDArray[np.uint64]]:
    """The split hashes of the rows still in the running that belong to train files, by class."""
    in_train = np.array([s.split == "train" for s in sources])
    alive = to_mask(pc.is_null(one(rows["reason"]))) & in_train[rows["source"].to_numpy()]
    encoded = one(rows["label"]).dictionary_encode()
    labels = pc.fill_null(encoded.indices, -1).to_numpy()
    hashes = dedup.halves_of(one(rows["key"]))[:, 1]
    labels, hashes = labels[alive], hashes[alive]
    order = np.argsort(labels, kind="stable")  # once: there may be as many labels as rows
    counts = np.bincount(labels + 1, minlength=len(encoded.dictionary) + 1)
    parts = np.split(hashes[order], np.cumsum(counts)[:-1])[1:]  # without those that have no label
    return {name: part for name, part in zip(encoded.dictionary.to_pylist(), parts, strict=True) if len(part)}
