"""The model laid out on Ray Data for batch inference, and what ``evaluate`` does with it: prepared rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cluster, console
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate.classifier import Classifier
from pipeline.storage import Place, identity
from pipeline.train import checkpoint

SLICE_ROWS = 1024
SLICES_PER_REPLICA = 32
BATCH_TOKENS = 2048
PATIENCE_S = 5.0  # for CPUs that are given back
LAST_PATIENCE_S = 30.0  # where not even the smallest replica has room: a training that was ended can take its time
LEAST_FREE = 1.0  # half a CPU for a replica, half for the tasks that feed it
CORES_PER_REPLICA = 4  # more threads than this gain little on batches of BATCH_TOKENS


@dataclass(frozen=True)
class Pool:
    """How the model is laid out for batch inference: ``replicas`` of ``cpus`` and ``gpus``, ``threads`` for torch."""

    replicas: int
    cpus: float
    gpus: int
    threads: int


def pool(have: cluster.Resources, free: float | None = None) -> Pool:
    """One replica per GPU; without GPUs as many as fit of the size that suits the smallest node, about 4 cores each.

    Replicas leave half a CPU of each node alone, or the tasks that feed them would starve; a replica fits on one
    node, or Ray would wait for a larger one for ever.

    Args:
        have: the cluster.
        free: CPUs of the node with the most to spare, where others hold the rest for good: replicas are no larger.
    """
    if have.gpus:
        return Pool(have.gpus, 0.5, 1, 1)
    smallest = min((c for c, _ in have.per_node if c), default=1)
    replicas = -(-smallest // CORES_PER_REPLICA)
    cpus = (smallest - 0.5) / replicas
    fit = sum(int((c - 0.5) / cpus + 1e-9) for c, _ in have.per_node if c)
    if free is not None and free - 0.5 < cpus:
        cpus = max(0.5, free - 0.5)
        return Pool(fit, cpus, 0, max(1, int(cpus + 0.5)))
    return Pool(fit, cpus, 0, max(1, smallest // replicas))


def found_room(address: str | None) -> Pool:
    """Connect, and lay the model out where there is room: an endpoint in the same cluster holds its CPUs for good.

    What has just ended gives its CPUs back within moments: those are waited for.

    Raises:
        UserError: no node has a whole CPU to spare, and none will join by itself.
    """
    lay = pool(cluster.connect(address))
    began = time.monotonic()
    while not lay.gpus and (free := cluster.most_free_cpus()) - 0.5 < lay.cpus - 1e-9:
        waited = time.monotonic() - began
        if waited > (PATIENCE_S if free >= LEAST_FREE else LAST_PATIENCE_S):
            if free < LEAST_FREE:
                _no_room(free)
            return pool(cluster.resources(), free)
        time.sleep(0.2)
    return lay


def _no_room(free: float) -> None:
    """Say that replicas wait for another node, where one may come.

    Raises:
        UserError: none will.
    """
    have = cluster.resources()
    what = (
        f"batch inference needs {LEAST_FREE:g} free CPU on one node (0.5 for a replica, 0.5 for what feeds it), but of "
        f"{have.line()} others hold all but {free:g} on the node with most to spare"
    )
    out = (
        "stop the endpoint there ('broadsheet serve --stop --address ...'), or name a cluster with more CPUs, --address"
    )
    if not cluster.may_grow():
        raise UserError(f"{what}: {out}")
    console.warn("ray", f"{what}: waiting for another node; if none comes, {out}")


@functools.lru_cache(maxsize=1)
def loaded(folder: str, count: int, version: str) -> Classifier:
    """The classifier of this worker process: tasks that Ray gives to the same process load it once.

    ``version`` is of the checkpoint: another training or another temperature in the same folder is loaded again.
    """
    import torch

    torch.set_num_threads(count)
    return Classifier.load(folder)


def version_of(folder: Place) -> str:
    """What changes when a checkpoint does, its temperature included."""
    return identity(str(folder / checkpoint.CARD))


class _OnGpu:
    """A function of Arrow tables as a Ray Data actor: on a GPU, Ray ends a task's process after the task."""

    def __init__(self, function: Callable[[pa.Table], Any]) -> None:
        self._function = function

    def __call__(self, table: pa.Table) -> Any:
        return self._function(table)


def mapped(dataset: Any, function: Callable[[pa.Table], Any], batch_size: int | None, lay: Pool) -> Any:
    """Lay a function that uses the model out over a data set: plain tasks on CPUs, actors on GPUs."""
    options = {"batch_format": "pyarrow", "batch_size": batch_size, "concurrency": lay.replicas, "num_cpus": lay.cpus}
    if lay.gpus:
        options["num_gpus"] = lay.gpus
        return dataset.map_batches(_OnGpu, fn_constructor_args=(function,), **options)
    return dataset.map_batches(function, **options)


def predict_split(
    prepared: Prepared, split: str, folder: Place, address: str | None, anew: bool = False
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Probabilities for every row of a prepared split, which has some.

    Args:
        prepared: the data.
        split: its name.
        folder: the checkpoint.
        address: the Ray cluster.
        anew: clean and tokenize the texts as the checkpoint does, instead of taking the tokens as prepared.

    Returns:
        Row ids, true labels [rows] and probabilities [rows, labels], ordered by shard and row.
    """
    lay = found_room(address)
    sizes: dict[Place, int] = {}
    for shard in prepared.shards(split):
        with shard.open_random() as f:
            sizes[shard] = pq.ParquetFile(f).metadata.num_rows
    total = sum(sizes.values())
    rows_each = max(SLICE_ROWS, total // (SLICES_PER_REPLICA * lay.replicas))  # each reads its whole shard first
    items = [f"{shard}|{start}" for shard, rows in sizes.items() for start in range(0, rows, rows_each)]
    where, count, version = str(folder), lay.threads, version_of(folder)
    column = "text" if anew else "input_ids"

    def score(batch: pa.Table) -> Iterator[pa.Table]:
        classifier = loaded(where, count, version)
        for item in batch["item"].to_pylist():
            uri, start = item.rsplit("|", 1)
            with Place.of(uri).open_random() as f:
                table = pq.ParquetFile(f).read(columns=["id", "label", column]).slice(int(start), rows_each)
            if anew:
                ids = classifier.encode(table["text"].to_pylist()).ids
            else:
                ids = [np.asarray(v.values.to_numpy(), np.int32) for v in table["input_ids"].combine_chunks()]
            probabilities = classifier.probabilities(classifier.all_logits(ids, BATCH_TOKENS))
            width = probabilities.shape[1]
            scores = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel(), pa.float64()), width)
            yield pa.table({"id": table["id"], "label": table["label"], "probabilities": scores})

    data = cluster.data().from_items(items, override_num_blocks=len(items))
    scored = mapped(data, score, 1, lay)
    tables = []
    done = 0
    with console.bar("evaluate", f"{split} rows", total) as progress:
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
    scores = table["probabilities"].combine_chunks()
    both = scores.flatten().to_numpy().reshape(len(order), -1)
    return order, table["label"].to_numpy().astype(np.int64), both
