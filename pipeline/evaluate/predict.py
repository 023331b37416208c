"""Batch inference laid out on Ray Data: over prepared rows (``evaluate``) and over files of any kind (``predict``)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Prepared
from pipeline.data.read import content, find, read
from pipeline.data.shards import write_parquet
from pipeline.errors import UserError
from pipeline.evaluate.classifier import Classifier
from pipeline.storage import Place
from pipeline.train import checkpoint

SLICE_ROWS = 1024
BATCH_TOKENS = 2048
CORES_PER_REPLICA = 4  # more threads than this gain little on batches of BATCH_TOKENS
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Pool:
    """How the model is laid out for batch inference: ``replicas`` of ``cpus`` and ``gpus``, ``threads`` for torch."""

    replicas: int
    cpus: float
    gpus: int
    threads: int


def pool(have: cluster.Resources) -> Pool:
    """One replica per GPU; without GPUs as many as fit of the size that suits the smallest node, about 4 cores each.

    Replicas leave half a CPU of each node alone, or the tasks that feed them would starve; a replica fits on one
    node, or Ray would wait for a larger one for ever.
    """
    if have.gpus:
        return Pool(have.gpus, 0.5, 1, 1)
    smallest = min((c for c, _ in have.per_node if c), default=1)
    replicas = -(-smallest // CORES_PER_REPLICA)
    cpus = (smallest - 0.5) / replicas
    fit = sum(int((c - 0.5) / cpus + 1e-9) for c, _ in have.per_node if c)
    return Pool(fit, cpus, 0, max(1, smallest // replicas))


@functools.lru_cache(maxsize=1)
def _loaded(folder: str, count: int) -> Classifier:
    """The classifier of this worker process: tasks that Ray gives to the same process load it once."""
    import torch

    torch.set_num_threads(count)
    return Classifier.load(folder)


class _OnGpu:
    """A function of Arrow tables as a Ray Data actor: on a GPU, Ray ends a task's process after the task."""

    def __init__(self, function: Callable[[pa.Table], Any]) -> None:
        self._function = function

    def __call__(self, table: pa.Table) -> Any:
        return self._function(table)


def _mapped(dataset: Any, function: Callable[[pa.Table], Any], batch_size: int | None, have: cluster.Resources) -> Any:
    """Lay a function that uses the model out over a data set: plain tasks on CPUs, actors on GPUs."""
    lay = pool(have)
    options = {"batch_format": "pyarrow", "batch_size": batch_size, "concurrency": lay.replicas, "num_cpus": lay.cpus}
    if lay.gpus:
        options["num_gpus"] = lay.gpus
        return dataset.map_batches(_OnGpu, fn_constructor_args=(function,), **options)
    return dataset.map_batches(function, **options)


def predict_split(
    prepared: Prepared, split: str, folder: Place, address: str | None
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Probabilities for every row of a prepared split.

    Returns:
        Row ids, true labels [rows] and probabilities [rows, labels], ordered by shard and row.
    """
    have = cluster.connect(address)
    items = []
    for shard in prepared.shards(split):
        with shard.open_random() as f:
            rows = pq.ParquetFile(f).metadata.num_rows
        items += [f"{shard}|{start}" for start in range(0, rows, SLICE_ROWS)]
    where, count = str(folder), pool(have).threads

    def score(batch: pa.Table) -> Iterator[pa.Table]:
        classifier = _loaded(where, count)
        for item in batch["item"].to_pylist():
            uri, start = item.rsplit("|", 1)
            with Place.of(uri).open_random() as f:
                table = pq.ParquetFile(f).read(columns=["id", "label", "input_ids"]).slice(int(start), SLICE_ROWS)
            ids = [np.asarray(v.values.to_numpy(), np.int32) for v in table["input_ids"].combine_chunks()]
            probabilities = classifier.probabilities(classifier.all_logits(ids, BATCH_TOKENS))
            scores = pa.array(list(probabilities), pa.list_(pa.float64()))
            yield pa.table({"id": table["id"], "label": table["label"], "probabilities": scores})

    data = cluster.data().from_items(items, override_num_blocks=len(items))
    scored = _mapped(data, score, 1, have)
    tables = []
    done = 0
    with console.bar("evaluate", f"{split} rows", prepared.rows(split)) as progress:
        for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(batch)
            done += batch.num_rows
            progress.update(done)
    table = pa.concat_tables(tables)
    order = prepared.table(split, ["id"])["id"].to_pylist()
    at = {name: i for i, name in enumerate(table["id"].to_pylist())}
    if len(at) != len(order):
        raise UserError(f"{prepared.place}: {split} has {len(order)} rows, {len(at)} were scored; prepare again")
    table = table.take(pa.array([at[name] for name in order]))
    scores = np.array(table["probabilities"].to_pylist(), np.float64)
    return order, table["label"].to_numpy().astype(np.int64), scores


def classify_block(classifier: Classifier, block: pa.Table, names: list[str]) -> tuple[pa.Table, int]:
    """Classify a block of raw rows.

    Args:
        classifier: the model.
        block: columns ``source`` and those of ``parsers.CHUNK``.
        names: of the sources, for row ids.

    Returns:
        One row per row read (``id, text, label, score, truncated, error``), and how many have an error.
    """
    rows = block.to_pylist()
    readable = [i for i, r in enumerate(rows) if r["error"] is None and (r["text"] or "").strip()]
    encoded = classifier.encode([rows[i]["text"] for i in readable])
    scores = classifier.probabilities(classifier.all_logits(encoded.ids, BATCH_TOKENS))
    best = scores.argmax(-1) if len(scores) else np.empty(0, np.int64)
    label: list[str | None] = [None] * len(rows)
    score: list[float | None] = [None] * len(rows)
    truncated: list[bool | None] = [None] * len(rows)
    for n, i in enumerate(readable):
        label[i] = classifier.labels[int(best[n])]
        score[i] = float(scores[n, best[n]])
        truncated[i] = encoded.truncated[n]
    error = [None if label[i] is not None else row["error"] or "missing text" for i, row in enumerate(rows)]
    columns = {
        "id": pa.array([f"{names[r['source']]}:{r['row']}" for r in rows], pa.string()),
        "text": pa.array([r["text"] for r in rows], pa.string()),
        "label": pa.array(label, pa.string()),
        "score": pa.array(score, pa.float64()),
        "truncated": pa.array(truncated, pa.bool_()),
        "error": pa.array(error, pa.string()),
    }
    return pa.table(columns), len(rows) - len(readable)


def predict_files(
    patterns: tuple[str, ...], where: Place, out: Place, config: Config, address: str | None
) -> dict[str, Any]:
    """Classify every row of files; the label column is not needed.

    Args:
        patterns: files, globs or URIs.
        where: the checkpoint.
        out: an empty or new folder; ``_SUCCESS.json`` in it is written last.
        config: ``data.text``, ``data.format``, ``data.columns`` and ``data.encoding`` are used.
        address: the Ray cluster.

    Returns:
        ``{"rows", "errors", "out"}``: an unreadable or empty row stays in the output with its error.

    Raises:
        UserError: an input or the output folder will not do.
    """
    card = checkpoint.read_card(where)
    text = config.data.text if config.data.text != ("text",) else tuple(card["text"])
    # There is no label to read: the first text column stands in for it, and is ignored.
    data = config.data.model_copy(update={"text": text, "label": text[0], "fill_from": ""})
    sources = find([(pattern, "test") for pattern in patterns], data)
    if out.exists() and (out.is_file() or out.files()):
        raise UserError(f"--out {out} is not an empty folder: name a new one")
    have = cluster.connect(address)

    def read_file(batch: pa.Table) -> Iterator[pa.Table]:
        for i in batch["item"].to_pylist():
            for chunk in read(sources[i], data):
                yield chunk.add_column(0, "source", pa.array([i] * chunk.num_rows, pa.int32()))

    folder, count, written_names = str(where), pool(have).threads, [s.name for s in sources]

    def classify_and_write(block: pa.Table) -> pa.Table:
        table, errors = classify_block(_loaded(folder, count), block, written_names)
        first = block.slice(0, 1).to_pylist()[0]
        write_parquet(table, out / f"part-{first['source']:05d}-{first['row']:012d}.parquet")
        return pa.table({"rows": [table.num_rows], "errors": [errors]})

    ray_data = cluster.data()
    out.mkdir()
    inputs = ray_data.from_items(list(range(len(sources))), override_num_blocks=len(sources))
    inputs.context.target_max_block_size = BLOCK_BYTES
    rows = inputs.map_batches(read_file, batch_format="pyarrow", batch_size=1, num_cpus=0.25)
    written = _mapped(rows, classify_and_write, None, have)
    total = {"rows": 0, "errors": 0}
    with console.bar("predict", "rows") as progress:
        for row in written.iter_rows():
            total = {k: v + row[k] for k, v in total.items()}
            progress.update(total["rows"])
    facts = {**total, "checkpoint": str(where), "inputs": {s.name: content(s) for s in sources}}
    (out / "_SUCCESS.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    return {**total, "out": str(out)}
