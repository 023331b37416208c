"""What Ray Train 2.60 forgets: workers of a group that failed to start.

Where a node is lost while workers introduce themselves to each other (seconds after a start, or after a restart
because of another lost node), those on other nodes wait for half an hour, and keep their CPUs for good: the group
counts as started by then, so that nothing is cleaned up, and its controller does not have it yet, so that nothing is
shut down. The next group waits for those CPUs for ever. Seen on three hosts, see ``benchmarks/hosts_chaos.py``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ray.exceptions import RayError
from ray.train.v2._internal.constants import RAY_TRAIN_CALLBACKS_ENV_VAR
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

log = logging.getLogger(__name__)


class FreeFailedStart(WorkerGroupCallback):
    """Ends what is left of a group that failed to start, in Ray Train's controller."""

    groups: ClassVar[int] = 0  # whose start was tried, in this process

    def __init__(self) -> None:
        self._held: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Around the start of a group, as far as its workers know each other.

        What fails later in the start ends the run, and with its controller all is freed: the same command goes on.
        """
        FreeFailedStart.groups += 1
        self._held = None
        try:
            yield
        except BaseException:
            self._free()
            raise

    def after_worker_group_start(self, worker_group: Any) -> None:
        """The group has workers. The first callback of all, or this would come after what fails."""
        self._held = worker_group.get_worker_group_state()

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Ray Train has freed it."""
        self._held = None

    def after_worker_group_abort(self, worker_group_context: Any) -> None:
        """As above."""
        self._held = None

    def _free(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        try:
            held.shutdown()
        except (
            RayError,
            RuntimeError,
            ValueError,
        ) as e:  # of Ray, about what is dead already: the error of the start counts
            log.warning("workers of a group that failed to start may hold their CPUs: %s", e)


@contextmanager
def freed() -> Iterator[None]:
    """While a trainer is made and fitted, have it free what failed to start.

    Ray Train asks callbacks in their order; only those that this variable names come before its own.
    """
    before = os.environ.get(RAY_TRAIN_CALLBACKS_ENV_VAR)
    name = f"{FreeFailedStart.__module__}.{FreeFailedStart.__qualname__}"
    os.environ[RAY_TRAIN_CALLBACKS_ENV_VAR] = ",".join(filter(None, (name, before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[RAY_TRAIN_CALLBACKS_ENV_VAR]
        else:
            os.environ[RAY_TRAIN_CALLBACKS_ENV_VAR] = before
