"""``broadsheet predict``: batch inference over files of any size, to Parquet, each row exactly once (see ``pieces``).

One task per file reads and cuts it, so that even a single large file keeps every replica of the model busy. The
output folder holds ``_plan.json`` from the beginning, a part per finished piece, and ``_SUCCESS.json`` at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.config import DataConfig
from pipeline.data.layout import raw_bytes
from pipeline.data.read import Source, content, find, read
from pipeline.data.reject import EMPTY
from pipeline.data.shards import write_parquet
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate import pieces
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.predict import BATCH_TOKENS, found_room, loaded, mapped, version_of
from pipeline.object_store import matches, split
from pipeline.storage import Place
from pipeline.train import checkpoint

IN_PROCESS_BYTES = 2 << 20  # raw; one process has classified them before Ray and its workers would have begun

# A piece on its way from reader to model: one row, because Ray Data cuts and joins blocks of rows as it sees fit.
# The last row of each source has no body: it says how many rows were read, and what earlier attempts have finished.
PIECE = pa.schema(
    [("source", pa.int32()), ("first", pa.int64()), ("body", pa.large_binary())]
    + [(name, pa.int64()) for name in ("read", "rows", "errors", "parts")]
)


def predict_files(
    patterns: tuple[str, ...], where: Place, out: Place, config: Config, address: str | None
) -> dict[str, Any]:
    """Classify every row of files, or go on with an attempt that was cut off; the label column is not needed.

    Args:
        patterns: files, globs or URIs.
        where: the checkpoint.
        out: a new folder, or that of an earlier attempt at the same job; ``_SUCCESS.json`` in it is written last.
        config: ``data.text``, ``data.format``, ``data.columns`` and ``data.encoding`` are used.
        address: the Ray cluster.

    Returns:
        ``{"rows", "errors", "parts", "out", "reused"}``: an unreadable or empty row stays in the output with its
        error; ``reused`` when the job was found finished.

    Raises:
        UserError: an input or the output folder will not do.
        WorkFailed: an input changed meanwhile, or rows got lost (which is a bug).
    """
    card = checkpoint.read_card(where)
    text = config.data.text if "text" in config.data.model_fields_set else tuple(card["text"])
    # There is no label to read: the first text column stands in for it, and is ignored.
    data = config.data.model_copy(update={"text": text, "label": text[0], "fill_from": ""})
    sources = find([(pattern, "test") for pattern in patterns], data)
    for name in (*patterns, *(source.uri for source in sources)):
        if among(out, name):
            raise UserError(f"--out {out} would lie among what is read ({name}): name a folder elsewhere")
    plan = pieces.agree(out, pieces.plan(sources, where, data))
    done = frozenset(f.name for f in out.files(".parquet"))
    if (out / pieces.SUCCESS).exists():
        facts = json.loads((out / pieces.SUCCESS).read_text())
        if len(done) == facts["parts"]:  # else somebody has deleted some: they are made again
            return {**{k: facts[k] for k in ("rows", "errors", "parts")}, "out": str(out), "reused": True}
        (out / pieces.SUCCESS).delete()
    if done:
        console.say("predict", f"going on with an attempt that was cut off: {len(done):,} parts are finished")
    total = dict.fromkeys(("read", "rows", "errors", "parts"), 0)
    with cluster.in_our_words(), console.bar("predict", "rows") as progress:
        for row in _laid_out(sources, data, str(where), out, int(plan["piece_bytes"]), done, config, address):
            total = {k: v + row[k] for k, v in total.items()}
            progress.update(total["rows"])
    _check(total, plan, sources, where, out)
    facts = {**total, "checkpoint": str(where), "inputs": {i["name"]: i["content"] for i in plan["inputs"]}}
    (out / pieces.SUCCESS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    return {**{k: total[k] for k in ("rows", "errors", "parts")}, "out": str(out), "reused": False}


def among(out: Place, pattern: str) -> bool:
    """Whether what is written into a folder would lie among what a pattern stands for, or around it."""
    wanted, written = (split(Place.of(one).uri)[0].split("/") for one in (pattern, out))
    shared = min(len(wanted), len(written))
    return wanted[:shared] == written[:shared] or matches([*written, pieces.part_name(0, 0)], wanted)


def _check(total: dict[str, int], plan: dict[str, Any], sources: Sequence[Source], where: Place, out: Place) -> None:
    """Rows read = rows written, in as many parts as there were pieces, of files that are still the same.

    Raises:
        WorkFailed: they are not.
    """
    changed = [s.name for s, i in zip(sources, plan["inputs"], strict=True) if content(s) != i["content"]]
    if changed:
        raise WorkFailed(f"{changed[0]} changed while it was read: delete {out} and run the same command again")
    if pieces.checkpoint_identity(where) != plan["checkpoint"]["identity"]:
        raise WorkFailed(f"{where} changed while it was used: delete {out} and run the same command again")
    parts = len(out.files(".parquet"))
    if total["read"] != total["rows"] or total["parts"] != parts:
        raise WorkFailed(
            f"{total['read']:,} rows were read and {total['rows']:,} written, {total['parts']:,} parts made and "
            f"{parts:,} found in {out}. On several nodes --out must be a folder that all of them see (shared, or on an "
            "object store). Else it is a bug in Broadsheet, unless another process wrote there"
        )


def _laid_out(
    sources: Sequence[Source], data: DataConfig, folder: str, out: Place, limit: int, done: frozenset[str],
    config: Config, address: str | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows that ``classify_piece`` returns for all pieces of all sources: made here, or on Ray Data."""
    names = [s.name for s in sources]
    small = raw_bytes(sources) <= min(IN_PROCESS_BYTES, config.data.in_process_mb << 20)
    if small and not cluster.is_named(address):
        classifier = Classifier.load(folder)
        for i, source in enumerate(sources):
            for piece in read_pieces(i, source, data, out, limit, done):
                yield from classify_piece(piece, lambda: classifier, names, out).to_pylist()
        return
    lay = found_room(address)
    count, version = lay.threads, version_of(Place.of(folder))

    def read_file(batch: pa.Table) -> Iterator[pa.Table]:
        for i in batch["item"].to_pylist():
            yield from read_pieces(i, sources[i], data, out, limit, done)

    def classify_and_write(piece: pa.Table) -> pa.Table:
        return classify_piece(piece, lambda: loaded(folder, count, version), names, out)

    items = cluster.data().from_items(list(range(len(sources))), override_num_blocks=len(sources))
    items.context.target_max_block_size = 1  # each piece is handed on the moment it is read
    read_ones = items.map_batches(read_file, batch_format="pyarrow", batch_size=1, num_cpus=0.25)
    yield from mapped(read_ones, classify_and_write, 1, lay).iter_rows()


def read_pieces(
    index: int, source: Source, data: DataConfig, out: Place, limit: int, done: frozenset[str]
) -> Iterator[pa.Table]:
    """The pieces of a source that no earlier attempt has finished, one row each, and the row that ends them.

    Args:
        index: of the source.
        source: the file.
        data: how it is read.
        out: the output folder.
        limit: see ``pieces.cut``.
        done: names of the parts that are in ``out``.
    """
    read_rows = finished = errors = parts = 0
    for piece in pieces.cut(read(source, data), limit):
        first, rows = int(piece["row"][0].as_py()), piece.num_rows
        read_rows += rows
        name = pieces.part_name(index, first)
        if name in done:
            with (out / name).open_random() as f:
                error = pq.ParquetFile(f).read(columns=["error"])["error"]
            if len(error) == rows:
                finished, errors, parts = finished + rows, errors + rows - error.null_count, parts + 1
                continue
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, piece.schema) as stream:
            stream.write_table(piece)
        yield pa.table([[index], [first], [sink.getvalue().to_pybytes()], [0], [0], [0], [0]], schema=PIECE)
    yield pa.table([[index], [0], [None], [read_rows], [finished], [errors], [parts]], schema=PIECE)


def classify_piece(piece: pa.Table, model: Callable[[], Classifier], names: Sequence[str], out: Place) -> pa.Table:
    """Classify one piece and write its part; the row that ends a source is passed on.

    Args:
        piece: one row of the schema ``PIECE``.
        model: gives the classifier.
        names: of the sources, for row ids.
        out: the output folder.

    Returns:
        One row of counts: ``read, rows, errors, parts``.
    """
    row = piece.to_pylist()[0]
    if row["body"] is None:
        return piece.select(["read", "rows", "errors", "parts"])
    rows = pa.ipc.open_stream(row["body"]).read_all()
    table, errors = classify_rows(model(), rows, names[row["source"]])
    write_parquet(table, out / pieces.part_name(row["source"], row["first"]))
    return pa.table({"read": [0], "rows": [table.num_rows], "errors": [errors], "parts": [1]})


def classify_rows(classifier: Classifier, block: pa.Table, name: str) -> tuple[pa.Table, int]:
    """Classify raw rows of one source.

    Args:
        classifier: the model.
        block: columns of ``parsers.CHUNK``.
        name: of the source, for row ids.

    Returns:
        One row per row read (``id, text, label, score, truncated, error``), and how many have an error.
    """
    rows = block.to_pylist()
    readable = [i for i, r in enumerate(rows) if r["error"] is None and (r["text"] or "").strip()]
    encoded = classifier.encode([rows[i]["text"] for i in readable])
    empty = {i for i, text in zip(readable, encoded.cleaned, strict=True) if not text}  # mark-up only, as in prepare
    scores = classifier.probabilities(classifier.all_logits(encoded.ids, BATCH_TOKENS))
    best = scores.argmax(-1) if len(scores) else np.empty(0, np.int64)
    label: list[str | None] = [None] * len(rows)
    score: list[float | None] = [None] * len(rows)
    truncated: list[bool | None] = [None] * len(rows)
    for n, i in enumerate(readable):
        if i in empty:
            rows[i]["error"] = EMPTY
            continue
        label[i] = classifier.labels[int(best[n])]
        score[i] = float(scores[n, best[n]])
        truncated[i] = encoded.truncated[n]
    error = [None if label[i] is not None else row["error"] or "missing text" for i, row in enumerate(rows)]
    columns = {
        "id": pa.array([f"{name}:{r['row']}" for r in rows], pa.string()),
        "text": pa.array([r["text"] for r in rows], pa.string()),
        "label": pa.array(label, pa.string()),
        "score": pa.array(score, pa.float64()),
        "truncated": pa.array(truncated, pa.bool_()),
        "error": pa.array(error, pa.string()),
    }
    return pa.table(columns), len(rows) - len(readable) + len(empty)
