"""How many trials run at once: what fits by CPUs, GPUs and memory, with the arithmetic."""

from __future__ import annotations

from pipeline import cluster
from pipeline.config import Config
from pipeline.train.layout import Layout

PROCESS_GB = 0.7  # a worker with torch loaded and no model yet
# Weights, their gradient and the two moments of AdamW, and copies of all but the gradient for checkpoints.
COPIES = 7
AVERAGE_COPIES = 3  # more, where an average of the weights is kept: itself, and weights and average for checkpoints
FLOATS_PER_UNIT = 34  # activations of a transformer layer, per token and hidden unit (Korthikanti et al., 2022)


def worker_gb(weights_bytes: int, batch_tokens: int, hidden: int, layers: int, averaged: bool = False) -> float:
    """Memory of one worker in GB, about.

    Args:
        weights_bytes: of the model, as stored.
        batch_tokens: of one step on this worker.
        hidden, layers: of the network.
        averaged: whether an average of the weights is kept.
    """
    activations = 2 * FLOATS_PER_UNIT * batch_tokens * hidden * layers  # 34 bytes in half precision, twice that here
    return PROCESS_GB + ((COPIES + AVERAGE_COPIES * averaged) * weights_bytes + activations) / 1e9


def at_once(config: Config, trials: int, layout: Layout, have: cluster.Resources, each_gb: float) -> tuple[int, str]:
    """How many trials run at once, and the arithmetic.

    Args:
        config: ``tune.concurrent`` lowers the number.
        trials: there are so many.
        layout: of one trial.
        have: the cluster.
        each_gb: memory of one worker.
    """
    room = have.room(layout.cpus, layout.gpus)
    by_memory = int(have.memory_gb / each_gb) if have.memory_gb else room
    fit = min(room, by_memory) // layout.workers
    size = f"{layout.cpus} CPU" + (f" + {layout.gpus:g} GPU" if layout.gpus else "")
    words = f"room for {room} workers of {size}"
    words += f", for {by_memory} of about {each_gb:.1f} GB" if have.memory_gb else ""
    words += f"; {min(room, by_memory)} / {layout.workers} a trial = {fit}"
    wanted = min(trials, config.tune.concurrent or fit)
    # Where memory is short by our reckoning, one at a time is still tried.
    return max(1, min(fit, wanted)), words
