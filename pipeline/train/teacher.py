"""A teacher's answers to the training rows: made once on Ray Data, kept beside the prepared data, read by every worker.

Runs and trials that learn from the same teacher share them: the folder is a table of answers by row, and only rows that
have none are asked. A pass that was cut off goes on: each part is written whole or not at all.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import alone, cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Prepared, digest
from pipeline.data.shards import read_parquet, write_parquet
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place, identity
from pipeline.train import batches, checkpoint

Rows = npt.NDArray[np.int64]

FORMAT = 1
PART_ROWS = 1024
MOST_BYTES = 1 << 30  # of answers, which every worker holds in memory
NONE = "without a teacher: --set train.teacher=null"
_MODEL = re.compile(r"model.*\.safetensors")


def find(config: Config) -> tuple[Place, dict[str, Any]]:
    """The checkpoint that ``train.teacher`` names, and its card.

    Raises:
        UserError: there is none, or it cannot be used here.
    """
    from pipeline.evaluate.classifier import check_rules

    try:
        where = checkpoint.find(config.train.teacher or "")
        card = checkpoint.read_card(where)
        check_rules(where, card)
    except UserError as e:
        raise UserError(f"train.teacher: {e}; {NONE}") from e
    return where, card


def check(config: Config, kind: str) -> Config:
    """Look whether there is such a teacher, before anything is prepared.

    Args:
        config: of the run.
        kind: of model that is to learn.

    Returns:
        The configuration with the teacher's whole path: what is saved of it is read in other folders, too.

    Raises:
        UserError: there is none, or the model cannot learn from one.
    """
    if config.train.teacher is None:
        return config
    if kind == "linear":
        raise UserError(f"train.teacher: the linear model learns from labels alone; {NONE}")
    named, run = Place.of(config.train.teacher), Place.of(config.storage) / config.name
    config = config.updated({"train.teacher": str(named)})
    if not _recorded(config):
        where, _ = find(config)
        if _real(run) in (_real(where), _real(where.parent)):
            raise UserError(f"train.teacher: {where} would be overwritten by its student: give this run another --name")
    return config


def _real(place: Place) -> str:
    return os.path.realpath(place.uri) if place.is_local else place.uri


def _recorded(config: Config) -> str:
    """The identity of the teacher that a finished run of this name learnt from: it may be gone by now."""
    final = Place.of(config.storage) / config.name / "checkpoint"
    if not (final / checkpoint.CARD).exists():
        return ""
    card = checkpoint.read_card(final)
    same = card["config"]["train"].get("teacher") == config.train.teacher
    return str(card.get("training", {}).get("teacher") or "") if same else ""


def identity_of(config: Config) -> str:
    """What changes when the answers of the configured teacher do; empty where there is none.

    It is looked at once in a command: all that the command does, it does with one teacher.
    """
    if config.train.teacher is None:
        return ""
    try:
        where, _ = find(config)
    except UserError:
        if known := _recorded(config):
            return known
        raise
    return _identity_at_first(str(where))


@functools.cache
def _identity_at_first(where: str) -> str:
    return _identity(Place.of(where))


def _identity(where: Place) -> str:
    card = checkpoint.read_card(where)
    # Not the rest of the folder: evaluating and serving write there.
    files = [f for f in where.files() if f.name in ("config.json", "tokenizer.json") or _MODEL.fullmatch(f.name)]
    reads = (str(card["cleaning"]), str(card["max_tokens"]), *card["labels"])
    return digest(*(f"{f.name}|{identity(f.uri)}" for f in files), *reads)


def place_of(config: Config, prepared: Prepared) -> Place | None:
    """Where the answers lie, made or not; None where there is no teacher."""
    if config.train.teacher is None:
        return None
    return Place.of(config.storage) / "taught" / digest(str(FORMAT), prepared.fingerprint, identity_of(config))


def size_of(config: Config, prepared: Prepared) -> int:
    """Bytes of the answers that a worker holds; 0 where there is no teacher."""
    if config.train.teacher is None:
        return 0
    rows = prepared.rows("train")
    return 4 * len(prepared.labels) * min(rows, config.train.max_rows or rows)


def rows_of(config: Config, prepared: Prepared) -> Rows:
    """Numbers, in the train split, of the rows that are trained on, rising."""
    labels = prepared.table("train", ["label"])["label"].to_numpy().astype(np.int64)
    return batches.sample(labels, config.train.max_rows, config.seed)


def ask(config: Config, prepared: Prepared, address: str | None) -> None:
    """Have the teacher classify the training rows, go on with a pass that was cut off, or find it done.

    Args:
        config: ``train.teacher``, and which rows are trained on.
        prepared: the data.
        address: the Ray cluster.

    Raises:
        UserError: the teacher knows other labels, or its answers would not fit into memory.
        WorkFailed: the pass stopped half-way; the same command goes on with it.
    """
    place = place_of(config, prepared)
    if place is None:
        return
    where, card = find(config)
    order = _order(card["labels"], prepared.labels, where)
    if (size := size_of(config, prepared)) > MOST_BYTES:
        raise UserError(
            f"train.teacher: its answers, 4 bytes a training row and label, take {size / 1e9:.1f} GB in every worker; "
            f"up to {MOST_BYTES / 1e9:.1f} GB are held: lower train.max_rows; {NONE}"
        )
    wanted = rows_of(config, prepared)
    _warn_of_leaks(card, prepared, where)
    with alone.waiting(place, lambda who: console.say("teach", f"another command ({who}) asks: waiting for it")):
        place.sweep(".part-*.parquet.*")
        missing = _missing(place, wanted)
        if not len(missing):
            console.say("teach", f"unchanged, reusing the answers of {where} to {len(wanted):,} rows")
            return
        known = len(wanted) - len(missing)
        console.say("teach", f"{where} classifies {len(missing):,} training rows"
                    + (f"; its answers to {known:,} are there" if known else ""))  # fmt: skip
        with cluster.in_our_words():
            _classify(prepared, missing, where, order, place, address)
        if _identity(where) != _identity_at_first(str(where)):
            place.delete()
            raise WorkFailed(f"train.teacher: {where} changed while it was asked: run the same command again")


def _order(theirs: list[str], ours: list[str], where: Place) -> list[int]:
    """At which place of the teacher's labels each of ours stands.

    Raises:
        UserError: they are not the same labels.
    """
    odd = sorted(set(theirs) ^ set(ours))
    if odd:
        who = f"{where} does not know it" if odd[0] in ours else "the training rows do not have it"
        raise UserError(
            f"train.teacher: a teacher knows the labels that are to be learnt and no others, but of '{odd[0]}' {who}: "
            f"train the teacher on rows with the same labels; {NONE}"
        )
    return [theirs.index(label) for label in ours]


def _missing(place: Place, wanted: Rows) -> Rows:
    """Those of the rows that have no answer yet."""
    known = [np.empty(0, np.int64)]
    for part in place.files(".parquet"):
        with part.open_random() as f:
            known.append(pq.ParquetFile(f).read(columns=["row"])["row"].to_numpy())
    return np.setdiff1d(wanted, np.concatenate(known), assume_unique=True)


def _warn_of_leaks(card: dict[str, Any], prepared: Prepared, where: Place) -> None:
    from pipeline.evaluate.scored import learnt

    for split in ("test", "validation"):
        if not prepared.rows(split):
            continue
        known = learnt(card, prepared, split)
        if known is None:
            console.warn(
                "teach",
                f"the data that {where} was trained on is no longer where it was: whether test rows are among them, "
                "which would flatter the figures, is not known",
            )
            return
        if known:
            console.warn(
                "teach",
                f"{known:,} of {prepared.rows(split):,} {split} rows are among those that {where} was trained on: they "
                "flatter the figures. Prepare both from the same files, with the same seed",
            )


def cut(shards: Sequence[tuple[str, int]], rows: Rows, most: int) -> list[dict[str, Any]]:
    """Rows of the train split as tasks of one shard each.

    Args:
        shards: the Parquet files, as URIs, and how many rows each has.
        rows: numbers in the train split, rising.
        most: rows of a task.

    Returns:
        ``shard``, ``first`` (number of the shard's first row in the split) and ``rows`` (numbers in the split, as bytes
        of int64: there may be millions).
    """
    tasks, first = [], 0
    for shard, count in shards:
        inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + count)]
        for start in range(0, len(inside), most):
            tasks.append({"shard": shard, "first": first, "rows": inside[start : start + most].tobytes()})
        first += count
    return tasks


def _classify(prepared: Prepared, rows: Rows, where: Place, order: list[int], out: Place, address: str | None) -> None:
    from pipeline.evaluate.predict import BATCH_TOKENS, SLICES_PER_REPLICA, found_room, loaded, mapped, version_of

    shards = []
    for shard in prepared.shards("train"):
        with shard.open_random() as f:
            shards.append((str(shard), pq.ParquetFile(f).metadata.num_rows))
    lay = found_room(address)
    parts = -(-len(rows) // (SLICES_PER_REPLICA * lay.replicas * PART_ROWS))  # a task reads its whole shard first
    tasks = cut(shards, rows, PART_ROWS * parts)
    folder, count, version = str(where), lay.threads, version_of(where)

    def answer(batch: pa.Table) -> Iterator[pa.Table]:
        classifier = loaded(folder, count, version)
        for task in batch.to_pylist():
            mine = np.frombuffer(task["rows"], np.int64)
            with Place.of(task["shard"]).open_random() as f:
                texts = pq.ParquetFile(f).read(columns=["text"])["text"]
            for start in range(0, len(mine), PART_ROWS):
                some = mine[start : start + PART_ROWS]
                ids = classifier.encode(texts.take(pa.array(some - task["first"])).to_pylist()).ids
                logits = np.ascontiguousarray(classifier.all_logits(ids, BATCH_TOKENS)[:, order])
                column = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), len(order))
                # No two parts have the same first row: it had no answer before.
                write_parquet(pa.table({"row": some, "logits": column}), out / f"part-{some[0]:012d}.parquet")
                yield pa.table({"rows": [len(some)]})

    out.mkdir()
    data, done = cluster.data().from_items(tasks, override_num_blocks=len(tasks)), 0
    with console.bar("teach", "rows", len(rows)) as progress:
        for row in mapped(data, answer, 1, lay).iter_rows():
            done += row["rows"]
            progress.update(done)


def read(place: Place, rows: Rows, labels: int) -> npt.NDArray[np.float32]:
    """The answers to the rows that are trained on.

    Args:
        place: of the answers.
        rows: their numbers in the train split, rising.
        labels: how many there are.

    Returns:
        Logits, [rows, labels].

    Raises:
        WorkFailed: they are not all there.
    """
    answers = np.empty((len(rows), labels), np.float32)
    found = np.zeros(len(rows), bool)
    for part in place.files(".parquet"):
        table = read_parquet(part)
        theirs = table["row"].to_numpy()
        at = np.minimum(np.searchsorted(rows, theirs), len(rows) - 1)
        mine = rows[at] == theirs
        answers[at[mine]] = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, labels)[mine]
        found[at[mine]] = True
    if not found.all():
        raise WorkFailed(
            f"{place} has the teacher's answers to {found.sum():,} of {len(rows):,} rows: on a cluster every node must "
            "see the same storage; else run the same command again"
        )
    return answers
