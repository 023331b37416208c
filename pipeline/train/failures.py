"""Why a training stopped, in one sentence, and whether going on from the last checkpoint can help."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ray.exceptions import LocalRayletDiedError, RayActorError
from ray.train import UserCallback
from torch import Tensor, nn

from pipeline import cluster
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from pipeline.train import batches, loop
from pipeline.train.failed_start import FreeFailedStart
from pipeline.train.store import Store, unwritable

SMALLEST_BUDGET = 64  # of train.batch_tokens
MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")


class FailurePolicy(UserCallback):
    """Decides, in Ray Train's controller, whether a training whose workers failed starts again.

    What would only happen again (a loss that is no number, no memory, no disk) ends the training with its reason.
    Anything else starts again from the last checkpoint, until it failed more than ``max_failures`` times in a row
    without a new checkpoint in between.

    Args:
        folder: of the training's checkpoints.
        max_failures: as configured.
        batch_tokens: as configured.
    """

    def __init__(self, folder: Place, max_failures: int, batch_tokens: int) -> None:
        self._store = Store(folder, 1)
        self._limit, self._budget = max_failures, batch_tokens
        self._failures, self._latest, self._group = 0, 0, -1

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the reason to stop, or return to go on."""
        for error in worker_exceptions.values():
            final = verdict(error, self._budget)
            if final is not None:
                raise final
        # A group one of whose nodes is being taken away is told of again and again until it is let go of.
        if self._group == FreeFailedStart.groups > 0:
            return
        self._group = FreeFailedStart.groups
        latest = max(self._store.steps(), default=0)
        self._failures = 1 if latest > self._latest else self._failures + 1
        self._latest = max(latest, self._latest)
        if self._failures > self._limit:
            raise WorkFailed(worn_out(worker_exceptions, self._failures, latest, self._budget))


def verdict(error: BaseException, batch_tokens: int) -> UserError | WorkFailed | None:
    """The reason that makes it useless to start again, or None."""
    ours = cluster.raised(error)
    if ours is not None:
        return ours
    if any(type(e).__name__ == "OutOfMemoryError" or is_memory(e) for e in chain(error)):
        return WorkFailed(out_of_memory("a worker", batch_tokens, batch_tokens // 2))
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what Ray has wrapped in it."""
    seen: list[BaseException] = [error]
    for e in seen:  # grows while it is walked
        yield e
        inside = (e.__cause__, e.__context__, *(getattr(e, n, None) for n in ("cause", "health_check_failure")))
        seen += [i for i in inside if isinstance(i, BaseException) and i not in seen]


def is_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in MEMORY)


def out_of_memory(where: str, budget: int, fits: int, tried: bool = False) -> str:
    """The sentence for it.

    Args:
        where: ``cuda:0``, or another thing that ran out.
        budget: tokens of a batch as configured.
        fits: tokens that are proposed; below the smallest that can be configured there is nothing to propose.
        tried: whether a step with them was taken.
    """
    if fits < SMALLEST_BUDGET:
        way = "even the smallest batch does not fit: use a smaller model (--model), or lower model.max_tokens"
    elif tried:
        way = f"a step of {fits:,} tokens fits: --set train.batch_tokens={fits}"
    else:
        way = f"halve the batch: --set train.batch_tokens={fits}"
    return f"{where} ran out of memory with train.batch_tokens={budget}; {way}; the last good checkpoint is kept"


def worn_out(errors: dict[int, Exception], failures: int, latest: int, batch_tokens: int) -> str:
    """The sentence for a training that failed again and again at the same place."""
    last = [(str(e).strip().splitlines() or [type(e).__name__])[-1] for e in errors.values()]
    died = any("ActorDiedError" in type(e).__name__ for error in errors.values() for e in chain(error))
    kept = f"the checkpoint after step {latest:,} is kept" if latest else "there was no checkpoint yet"
    times = f"{failures} time{'s' if failures != 1 else ''} in a row"
    if died:
        return (
            f"a worker process was killed, {times} without a new checkpoint in between: if it is memory that runs "
            f"short, --set train.batch_tokens={max(SMALLEST_BUDGET, batch_tokens // 2)}; {kept}"
        )
    return f"training failed {times} without a new checkpoint in between ({last[0]}); {kept}"


def fitting(budget: int, fits: Callable[[int], bool]) -> int:
    """The largest of budget / 2, / 4, ... that fits; 0 if none from ``SMALLEST_BUDGET`` up does."""
    budget //= 2
    while budget >= SMALLEST_BUDGET:
        if fits(budget):
            return budget
        budget //= 2
    return 0


def explained(error: Exception, device: torch.device, budget: int, probe: Callable[[int], None] | None) -> Exception:
    """The error as the reason to stop, where it is one that would come again; else the error itself.

    Args:
        error: raised by the training on this rank.
        device: of the rank.
        budget: tokens of a batch as configured.
        probe: takes a step with the given budget, on this rank alone; None where that cannot be.
    """
    if cluster.raised(error) is not None:
        return error
    if not is_memory(error):
        return error

    def fits(tokens: int) -> bool:
        assert probe is not None
        try:
            probe(tokens)
        except Exception as e:
            if not is_memory(e):
                raise
            return False
        return True

    _forget(error, device)
    found, tried = budget // 2, False
    if probe is not None:
        try:
            found, tried = fitting(budget, fits), True
        except Exception as e:  # what the probe met must not hide why training stopped
            logging.getLogger(__name__).warning("the probe for memory failed: %s", e)
    return WorkFailed(out_of_memory(str(device), budget, found, tried))


def _forget(error: BaseException, device: torch.device) -> None:
    """Let go of the tensors that the frames of a failed step hold."""
    for e in chain(error):
        traceback.clear_frames(e.__traceback__)
    _release(device)


def probe_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    lengths: batches.Rows,
    kind: str,
    world: int,
    micro_tokens: int | None = None,
) -> Callable[[int], None]:
    """What ``explained`` tries: forward and backward over the longest rows that a budget allows, then room for moments.

    Nothing is exchanged with other ranks and no weight changes.

    Args:
        network: unwrapped.
        optimizer: over its parameters; where it has taken no step yet, its moments are allocated on trial.
        lengths: tokens of each row.
        kind: 'bf16' or 'fp32'.
        world: ranks that share a batch.
        micro_tokens: of one forward pass, if a share is done in pieces.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    device = parameters[0].device
    longest = np.sort(lengths)[::-1]

    def take(budget: int) -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        _release(device)
        first = batches.cut(np.arange(len(longest)), longest, budget)[0]
        rows = batches.share(first, 0, world)
        if micro_tokens:
            rows = batches.cut(rows, longest[rows], micro_tokens)[0]
        shape = (len(rows), max(1, int(longest[rows[0]])))
        moments: list[Tensor] = []
        try:
            ids = torch.zeros(shape, dtype=torch.int64, device=device)
            with loop.autocast(kind, device):
                logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            logits.float().sum().backward()
            if not optimizer.state:
                moments += [torch.empty_like(p) for p in parameters for _ in range(2)]
        finally:
            optimizer.zero_grad(set_to_none=True)
            moments.clear()

    return take


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def stopped(error: Exception, work: Place) -> UserError | WorkFailed:
    """What the command says when Ray Train gave up."""
    ours = cluster.our_error(error, "train.batch_tokens (it then begins anew)")
    if ours is not None:
        return ours
    for e in chain(error):
        reason = unwritable(e, work) if isinstance(e, OSError) else None
        if reason:
            return WorkFailed(reason)
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if any(isinstance(e, (RayActorError, LocalRayletDiedError)) for e in chain(error)):
        last = "Ray went away under it (a node was lost, or its raylet was killed)"
    return WorkFailed(f"training stopped: {last}. Checkpoints so far are in {work}; the same command resumes")
