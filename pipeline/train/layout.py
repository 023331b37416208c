"""How training is laid out over a cluster: workers, their cores and GPUs, and whether that fits."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from pipeline import cluster, console
from pipeline.cluster import Resources
from pipeline.config import Config
from pipeline.errors import UserError

WORKER_CPUS = 8  # of one worker: a step of 2,048 tokens has too little work for more threads
BUSY_SHARE = 0.75  # of all CPUs, that workers without a size of their own must keep busy
FEW = 2  # workers of a node, where all cores are not asked for
PATIENCE_S = 5.0  # for CPUs that are given back by what has just ended
LAST_PATIENCE_S = 30.0  # where not even the fewest workers have room


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
    least = train.workers or train.min_workers
    cpus = train.cpus_per_worker or (1 if gpus or lstm else _cpus_of_worker(least, train.workers is None, have))
    if train.workers is not None:
        workers = train.workers
    elif gpus:
        workers = max(1, int(have.gpus / gpus))
    else:
        few = lstm or train.cpus_per_worker is not None  # a configuration of before says 1, and does not mean all
        workers = max(1, min(have.room(cpus), FEW * have.nodes if few else have.room(cpus)))
    layout = Layout(workers, cpus, gpus)
    if train.min_workers is not None and train.min_workers > workers:
        of = "of train.workers" if train.workers is not None else f"for which the cluster has room ({have.line()})"
        raise UserError(f"train.min_workers={train.min_workers} is more than the {workers} {of}: lower it")
    check_fits("training", Layout(train.min_workers or workers, cpus, gpus), have, keys)
    return layout


def beside_others(config: Config, have: Resources) -> Layout:
    """``train_layout`` on a connected cluster, where an endpoint or another job may hold CPUs for good.

    Workers whose size or number is free take what nobody holds; what has just ended is given a moment to let go.

    Args:
        config: of the run.
        have: the cluster.

    Raises:
        UserError: as ``train_layout``.
    """
    layout, train = train_layout(config, have), config.train
    if train.workers is not None and layout.cpus in (1, train.cpus_per_worker):
        return layout
    began = time.monotonic()
    while (free := cluster.free()).room(layout.cpus, layout.gpus) < layout.workers:
        waited = time.monotonic() - began
        if waited > PATIENCE_S:
            with suppress(UserError):  # not even the fewest that were asked for
                return train_layout(config, free)
        if waited > LAST_PATIENCE_S:
            fewest = Layout(train.workers or train.min_workers or 1, train.cpus_per_worker or 1, layout.gpus)
            console.warn(
                "train",
                f"{fewest.arithmetic()} are wanted, but others hold the CPUs of {have.line()}: waiting. Stop what runs "
                "there ('broadsheet serve --stop --address ...'), or name another cluster with --address",
            )
            return fewest
        time.sleep(0.2)
    return layout


def _cpus_of_worker(least: int | None, more: bool, have: Resources) -> int:
    """The most CPUs that each worker can have.

    Threads of one process share its weights and gradients; processes have to exchange them after each step.

    Args:
        least: so many workers must fit, if that is said.
        more: whether there may be more of them, as many as keep most CPUs busy.
        have: the cluster.
    """
    for cpus in range(min(WORKER_CPUS, max((c for c, _ in have.per_node), default=1)), 1, -1):
        room = have.room(cpus)
        if room >= (least or 1) and (not more or room * cpus >= BUSY_SHARE * have.cpus):
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
