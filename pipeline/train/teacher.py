"""A teacher's answers to the training rows: made once on Ray Data, kept beside the prepared data, read by every worker.

Runs and trials that learn the same rows from the same teacher share them. A pass that was cut off goes on: each part is
named after its first row, and written whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
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

FORMAT = 1
PART_ROWS = 1024
MOST_BYTES = 4 << 30  # of answers, which every worker holds in memory
_MODEL = re.compile(r"model.*\.safetensors")
COUNTED = ("row", "logits")  # columns of a part: the row's number in the train split, and a number per label


@dataclass(frozen=True)
class Piece:
    """Rows of one shard that are one part of the answers.

    Attributes:
        shard: the Parquet file, as a URI.
        first: number of the shard's first row in the train split.
        rows: their numbers in the train split, rising.
    """

    shard: str
    first: int
    rows: list[int]

    @property
    def name(self) -> str:
        """Of the part."""
        return f"part-{self.rows[0]:012d}.parquet"


def find(config: Config) -> tuple[Place, dict[str, Any]]:
    """The checkpoint that ``train.teacher`` names, and its card.

    Raises:
        UserError: there is none.
    """
    try:
        where = checkpoint.find(config.train.teacher)
        return where, checkpoint.read_card(where)
    except UserError as e:
        raise UserError(f"train.teacher: {e}") from e


def check(config: Config, kind: str) -> None:
    """Look whether there is such a teacher, before anything is prepared.

    Args:
        config: of the run.
        kind: of model that is to learn.

    Raises:
        UserError: there is none, or the model cannot learn from one.
    """
    if config.train.teacher:
        if kind == "linear":
            raise UserError("train.teacher: the linear model learns from labels alone: leave the teacher out")
        where, _ = find(config)
        run = Place.of(config.storage) / config.name
        if str(where).startswith(f"{run}/"):
            raise UserError(
                f"train.teacher: {where} would be overwritten by its own student: give this run another --name"
            )


def identity_of(config: Config) -> str:
    """What changes when the answers of the configured teacher do; empty where there is none."""
    if not config.train.teacher:
        return ""
    where, card = find(config)
    # Not the rest of the folder: evaluating and serving write there.
    files = [f for f in where.files() if f.name in ("config.json", "tokenizer.json") or _MODEL.fullmatch(f.name)]
    reads = (str(card["cleaning"]), str(card["max_tokens"]), *card["labels"])
    return digest(*(f"{f.name}|{identity(f.uri)}" for f in files), *reads)


def place_of(config: Config, prepared: Prepared) -> Place | None:
    """Where the answers lie, made or not; None where there is no teacher."""
    if not config.train.teacher:
        return None
    sample = (None, None) if config.train.max_rows is None else (config.train.max_rows, config.seed)
    mark = digest(str(FORMAT), prepared.fingerprint, identity_of(config), *map(str, sample))
    return Place.of(config.storage) / "taught" / mark


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
    pieces = cut(prepared, config)
    rows = sum(len(p.rows) for p in pieces)
    if rows * len(order) * 4 > MOST_BYTES:
        raise UserError(
            f"train.teacher: answers to {rows:,} rows with {len(order):,} labels each take "
            f"{rows * len(order) * 4 / 1e9:.1f} GB in every worker; up to {MOST_BYTES / 1e9:.1f} GB are held: lower "
            "train.max_rows, or leave the teacher out"
        )
    _warn_of_leaks(card, prepared, where)
    with alone.waiting(place, lambda who: console.say("teach", f"another command ({who}) asks: waiting for it")):
        place.sweep(".part-*.parquet.*")
        done = {f.name for f in place.files(".parquet")}
        missing = [p for p in pieces if p.name not in done]
        if not missing:
            console.say("teach", f"unchanged, reusing the answers of {where} to {rows:,} rows")
            return
        if done:
            console.say(
                "teach", f"going on with a pass that was cut off: {len(done):,} of {len(pieces):,} parts are done"
            )
        console.say("teach", f"{where} classifies {rows:,} training rows")
        try:
            _classify(missing, rows, where, order, place, address)
        except Exception as e:
            ours = cluster.our_error(e)
            if ours is None:
                raise
            raise ours from None


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
            "train the teacher on rows with the same labels"
        )
    return [theirs.index(label) for label in ours]


def cut(prepared: Prepared, config: Config) -> list[Piece]:
    """The rows that are trained on, in pieces that depend on nothing else."""
    labels = prepared.table("train", ["label"])["label"].to_numpy().astype(np.int64)
    chosen = batches.sample(labels, config.train.max_rows, config.seed)
    pieces, first = [], 0
    for shard in prepared.shards("train"):
        with shard.open_random() as f:
            after = first + pq.ParquetFile(f).metadata.num_rows
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, after)]
        for start in range(0, len(inside), PART_ROWS):
            pieces.append(Piece(str(shard), first, inside[start : start + PART_ROWS].tolist()))
        first = after
    return pieces


def _warn_of_leaks(card: dict[str, Any], prepared: Prepared, where: Place) -> None:
    from pipeline.evaluate.scored import learnt

    for split in ("validation", "test"):
        if prepared.rows(split) and (known := learnt(card, prepared, split)):
            console.warn(
                "teach",
                f"WARN {known:,} of {prepared.rows(split):,} {split} rows are among those that {where} was trained on: "
                "figures on them will be too good. Prepare both from the same files, with the same seed",
            )


def _classify(pieces: list[Piece], total: int, where: Place, order: list[int], out: Place, address: str | None) -> None:
    from pipeline.evaluate.predict import BATCH_TOKENS, found_room, loaded, mapped, version_of

    lay = found_room(address)
    folder, count, version = str(where), lay.threads, version_of(where)

    def answer(batch: pa.Table) -> Iterator[pa.Table]:
        classifier = loaded(folder, count, version)
        for item in batch.to_pylist():
            piece = Piece(**item)
            with Place.of(piece.shard).open_random() as f:
                texts = pq.ParquetFile(f).read(columns=["text"])["text"]
            rows = pa.array(np.array(piece.rows) - piece.first)
            ids = classifier.encode(texts.take(rows).to_pylist()).ids
            logits = np.ascontiguousarray(classifier.all_logits(ids, BATCH_TOKENS)[:, order])
            column = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), len(order))
            write_parquet(pa.table(dict(zip(COUNTED, (piece.rows, column), strict=True))), out / piece.name)
            yield pa.table({"rows": [len(piece.rows)]})

    out.mkdir()
    done = total - sum(len(p.rows) for p in pieces)
    data = cluster.data().from_items([vars(piece) for piece in pieces], override_num_blocks=len(pieces))
    with console.bar("teach", "rows", total) as progress:
        for row in mapped(data, answer, 1, lay).iter_rows():
            done += row["rows"]
            progress.update(done)


def read(place: Place, rows: npt.NDArray[np.int64], labels: int) -> npt.NDArray[np.float32]:
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
    found = 0
    for part in place.files(".parquet"):
        table = read_parquet(part)
        at = np.searchsorted(rows, table["row"].to_numpy())
        if len(at) and (at[-1] >= len(rows) or not np.array_equal(rows[at], table["row"].to_numpy())):
            raise WorkFailed(f"{part} answers to other rows than are trained on: delete {place}, and run again")
        answers[at] = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, labels)
        found += len(at)
    if found != len(rows):
        raise WorkFailed(
            f"{place} has the teacher's answers to {found:,} of {len(rows):,} rows: on a cluster every node must see "
            "the same storage; else delete it, and run again"
        )
    return answers
