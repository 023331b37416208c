"""Where a training process sits: as one rank among several under Ray Train, or alone in a process of its own.

Light to import: Ray Train's controller has to, and would otherwise wait for torch and transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol


class Seat(Protocol):
    """What a training process knows of the others, and whom it tells of an evaluation."""

    @property
    def rank(self) -> int:
        """Its number among the ranks, from 0."""

    @property
    def world(self) -> int:
        """How many ranks there are."""

    def device(self) -> Any:
        """The ``torch.device`` to train on."""

    def from_rank_zero(self, value: Any) -> Any:
        """The value that rank 0 has."""

    def leaving(self) -> frozenset[str]:
        """The nodes of this training that are to be taken away soon, by id; all ranks ask alike, and hear the same."""

    def report(self, entry: dict[str, float], checkpoint: str, written: Future[None] | None) -> None:
        """Tell of an evaluation; called by all ranks.

        Args:
            entry: its figures.
            checkpoint: name of the folder of its checkpoint.
            written: on rank 0, done when the checkpoint is.
        """


class RayTrainSeat:
    """A worker of Ray Train."""

    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def device(self) -> Any:
        """As of ``Seat``."""
        import ray.train.torch

        return ray.train.torch.get_device()

    def from_rank_zero(self, value: Any) -> Any:
        """As of ``Seat``."""
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value)

    def leaving(self) -> frozenset[str]:
        """As of ``Seat``."""
        if not _watched():
            return frozenset()
        import ray.train

        notice = ray.train.get_preemption_info()
        return frozenset(notice.preempted_node_ids if notice is not None else ())

    def report(self, entry: dict[str, float], checkpoint: str, written: Future[None] | None) -> None:
        """As of ``Seat``. Ray Train takes the checkpoint as such once it is written; nobody waits for that."""
        import ray.train
        from ray.train import CheckpointUploadMode

        if written is None:
            ray.train.report(entry, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        storage = ray.train.get_context().get_storage()
        place = ray.train.Checkpoint(storage.build_checkpoint_path_from_name(checkpoint), storage.storage_filesystem)

        def wait(handed: Any, _: str) -> Any:
            written.result()
            return handed

        ray.train.report(
            entry,
            checkpoint=place,
            checkpoint_dir_name=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # it is the checkpoint itself
            checkpoint_upload_fn=wait,
        )


class LoneSeat:
    """The only process of a training.

    Args:
        tell: takes the figures of an evaluation, once its checkpoint is written.
        gpu: whether the process was given one.
    """

    rank, world = 0, 1

    def __init__(self, tell: Callable[[dict[str, float]], None], gpu: bool) -> None:
        self._tell, self._gpu = tell, gpu

    def device(self) -> Any:
        """As of ``Seat``."""
        import torch

        return torch.device("cuda", 0) if self._gpu else torch.device("cpu")

    def from_rank_zero(self, value: Any) -> Any:
        """As of ``Seat``."""
        return value

    def leaving(self) -> frozenset[str]:
        """As of ``Seat``. Ray Train has a watcher for its workers; a process on its own asks as that one does."""
        if not _watched():
            return frozenset()
        import ray

        return frozenset(ray._private.state.state.get_draining_nodes()) & {ray.get_runtime_context().get_node_id()}

    def report(self, entry: dict[str, float], checkpoint: str, written: Future[None] | None) -> None:
        """As of ``Seat``. Whoever is told may end the training at once: so the checkpoint comes first."""
        if written is not None:
            written.result()
        self._tell(entry)


def _watched() -> bool:
    """Whether this is a cluster whose nodes can be taken away: see ``cluster.connect``."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"


def train_worker(job: dict[str, Any]) -> None:
    """The training function handed to Ray Train; see ``worker.fit``."""
    from pipeline.train.worker import fit

    fit(job, RayTrainSeat())
