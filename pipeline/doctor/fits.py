"""Whether the configured run fits on what the cluster has, with the arithmetic. No Ray in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline import cluster
from pipeline.config import Config
from pipeline.doctor.judge import GB, Finding
from pipeline.errors import UserError
from pipeline.train.layout import train_layout

# Bytes per parameter, at the least: float32 weights and AdamW's two moments, on disk; the gradients too, in memory.
CHECKPOINT_BYTES, TRAINING_BYTES = 12, 16
AVERAGE_CHECKPOINT_BYTES, AVERAGE_BYTES = 8, 4  # more of these, where an average of the weights is kept


def findings(config: Config, have: cluster.Resources, here: tuple[float, float], loopback: bool, parameters: int,
             averaged: bool, disk_free: int | None) -> Iterator[Finding]:  # fmt: skip
    """Training, serving, memory and disk.

    Args:
        config: of the run.
        have: the cluster.
        here: CPUs and GPUs that the node of the command hands out, where an endpoint on loopback keeps its replicas.
        loopback: whether the endpoint listens there.
        parameters: of the model.
        averaged: whether training keeps an average of its weights.
        disk_free: bytes free where runs live; None where that cannot be measured.
    """
    try:
        layout = train_layout(config, have)
        yield Finding("training", True, f"{layout.arithmetic()} of {have.cpus} CPUs, {have.gpus} GPUs")
        if parameters:
            yield _memory(layout.workers, parameters, TRAINING_BYTES + AVERAGE_BYTES * averaged, have)
    except UserError as e:
        yield Finding("training", False, "does not fit", str(e))
    yield _serving(config, have, here, loopback)
    yield _disk(config, parameters, averaged, disk_free)


def parameters(config: Config, folder: Path | None) -> int:
    """How many parameters the model has: read off its files, or computed for an LSTM, but for its last layer.

    Those of ``linear`` are the words of the data, which nobody has counted yet: 0.

    Args:
        config: of the run.
        folder: of a pretrained model.
    """
    if folder is not None:
        return sum(_in_file(file) for file in folder.glob("*.safetensors"))
    m = config.model
    if m.name == "linear":
        return 0
    total, width, ways = m.vocab_size * m.embedding_dim, m.embedding_dim, 2 if m.bidirectional else 1
    for hidden in m.hidden:  # four gates of weights, and two biases each
        total += ways * 4 * (width * hidden + hidden * hidden + 2 * hidden)
        width = ways * hidden
    return total


def _in_file(file: Path) -> int:
    """The number of parameters in a safetensors file, from its header."""
    with file.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for n in tensor["shape"]:
                size *= n
            count += size
    return count


def _memory(workers: int, count: int, each: int, have: cluster.Resources) -> Finding:
    need = workers * count * each / GB
    total = have.memory_gb * 1e9 / GB
    fact = f"{workers} workers x {count / 1e6:.1f} M parameters x {each} bytes = {need:.1f} GB at the least, "
    advice = "take more or larger nodes, fewer workers (--workers), or train adapters only (model.lora_rank)"
    return Finding("training", need <= total, f"{fact}of the {total:.1f} GB that Ray hands out", advice)


def _serving(config: Config, have: cluster.Resources, here: tuple[float, float], loopback: bool) -> Finding:
    s = config.serve
    here_cpus, here_gpus = here
    size = f"{s.cpus_per_replica:g} CPU" + (f" and {s.gpus_per_replica:g} GPU" if s.gpus_per_replica else "")
    fact = f"{s.min_replicas} to {s.max_replicas} replicas of {size}"
    if loopback and have.nodes > 1:
        room = int(here_cpus / s.cpus_per_replica + 1e-9)
        if s.gpus_per_replica:
            room = min(room, int(here_gpus / s.gpus_per_replica + 1e-9))
        fact += f", all on this node, since the endpoint is on {s.host}: room for {room}"
        advice = "listen where other nodes can be reached: --host 0.0.0.0, with serve.keys or --insecure"
    else:
        room = have.room(s.cpus_per_replica, s.gpus_per_replica)
        fact += f", room for {room}"
        advice = "lower serve.min_replicas or serve.cpus_per_replica, or take more nodes"
    return Finding("serving", room >= max(1, s.min_replicas), fact, advice)


def _disk(config: Config, count: int, averaged: bool, free: int | None) -> Finding:
    kept = config.train.keep_checkpoints + 2
    each = CHECKPOINT_BYTES + AVERAGE_CHECKPOINT_BYTES * averaged
    need = kept * count * each
    fact = f"{kept} checkpoints x {count / 1e6:.1f} M parameters x {each} bytes = {need / GB:.1f} GB"
    if free is None:
        return Finding("disk", True, f"{fact}; an object store's room is not measured")
    fact += f", twice that must be free; {free / GB:.1f} GB are"
    return Finding("disk", free > 2 * need, fact, "free some disk, or choose another --storage")
