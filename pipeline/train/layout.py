"""How training is laid out over a cluster: workers, their cores and GPUs, and whether that fits."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline import cluster
from pipeline.cluster import Resources
from pipeline.config import Config
from pipeline.errors import UserError

WORKER_CPUS = 8  # of one worker: a step of 2,048 tokens has too little work for more threads
BUSY_SHARE = 0.75  # of all CPUs, that workers without a size of their own must keep busy
PATIENCE_S = 5.0  # for CPUs that are given back by what has just ended


@dataclass(frozen=True)
class Layout:
    """How training is laid out: ``workers`` processes of ``cpus`` cores and ``gpus`` GPUs each."""

    workers: int
    cpus: int
    gpus: float

    @property
    def use_gpu(self) -> bool:
        """Whether workers hold GPUs."""
        return self.gpus > 0

    def arithmetic(self) -> str:
        """``2 workers x 1 CPU = 2 CPUs``."""
        workers = f"{self.workers} worker{'s' if self.workers != 1 else ''}"
        words = f"{workers} x {self.cpus} CPU = {self.workers * self.cpus} CPUs"
        return words + (f", x {self.gpus:g} GPU = {self.workers * self.gpus:g} GPUs" if self.gpus else "")


def train_layout(
    config: Config, have: Resources, keys: str = "train.workers (--workers) or train.cpus_per_worker"
) -> Layout:
    """The training layout that the configuration asks for or, where it is silent, what fits.

    Args:
        config: of the run.
        have: the cluster.
        keys: what to lower where it does not fit.

    Raises:
        UserError: it asks for more than the cluster has (with ``train.min_workers``: for more than that at the least).
    """
    train = config.train
    lstm = config.model.name == "lstm"
    gpus = train.gpus_per_worker if train.gpus_per_worker is not None else (1.0 if have.gpus else 0.0)
    cpus = train.cpus_per_worker or (1 if gpus or lstm else _cpus_of_worker(train.workers, have))
    if train.workers is not None:
        workers = train.workers
    elif gpus:
        workers = max(1, int(have.gpus / gpus))
    else:
        workers = max(1, min(have.room(cpus), 2 * have.nodes if lstm else have.room(cpus)))
    layout = Layout(workers, cpus, gpus)
    if train.min_workers is not None and train.min_workers > workers:
        raise UserError(f"train.min_workers={train.min_workers} is more than the {workers} of train.workers: lower it")
    least = Layout(train.min_workers or workers, cpus, gpus)
    check_fits("training", least, have, keys)
    return layout


def beside_others(config: Config, have: Resources) -> Layout:
    """``train_layout`` on a connected cluster, where an endpoint or another job may hold CPUs for good.

    Workers whose size is free take what nobody holds; what has just ended is given a moment to let go.

    Args:
        config: of the run.
        have: the cluster.

    Raises:
        UserError: as ``train_layout``.
    """
    layout = train_layout(config, have)
    if config.train.cpus_per_worker is not None or layout.cpus == 1:
        return layout
    began = time.monotonic()
    while (free := cluster.free()).room(layout.cpus) < layout.workers:
        if time.monotonic() - began > PATIENCE_S:
            try:
                return train_layout(config, free)
            except UserError:  # nothing is free, or not for so many: Ray waits
                return train_layout(config.updated({"train.cpus_per_worker": 1}), have)
        time.sleep(0.2)
    return layout


def _cpus_of_worker(workers: int | None, have: Resources) -> int:
    """The most CPUs that each of so many workers can have or, if the number is free, that leave few of them idle.

    Threads of one process share its weights and gradients; processes have to exchange them after each step.
    """
    for cpus in range(min(WORKER_CPUS, max((c for c, _ in have.per_node), default=1)), 1, -1):
        room = have.room(cpus)
        if (room * cpus >= BUSY_SHARE * have.cpus) if workers is None else room >= workers:
            return cpus
    return 1


def check_fits(what: str, layout: Layout, have: Resources, keys: str) -> None:
    """Refuse a layout that the nodes of the cluster have no room for.

    Raises:
        UserError: with the arithmetic and the keys to lower.
    """
    room = have.room(layout.cpus, layout.gpus)
    if layout.workers > room:
        short = layout.workers * layout.cpus > have.cpus or layout.workers * layout.gpus > have.gpus
        why = "" if short else f", where {room} such worker{'s' if room != 1 else ''} fit node by node"
        raise UserError(
            f"{what} does not fit: {layout.arithmetic()}, but the cluster has {have.line()}{why}. Lower {keys}"
        )
