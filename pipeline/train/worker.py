"""What each Ray Train worker does: load, step, evaluate, report; resume from the last checkpoint if there is one."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.prepared import Prepared, Tokens
from pipeline.errors import WorkFailed
from pipeline.evaluate import metrics
from pipeline.model import build
from pipeline.storage import local_folder
from pipeline.train import batches, checkpoint, recipe
from pipeline.train.distributed import Exchange, wrap
from pipeline.train.loop import Loop, precision

TELL_EVERY_SECONDS = 1.0


def train_worker(job: dict[str, Any]) -> None:
    """The training function handed to Ray Train.

    Args:
        job: ``config`` (dumped), ``prepared`` and ``initial`` (places), ``card`` (for broadsheet.json),
            ``threads``, and ``tell``, an actor queue for progress or None.

    Raises:
        WorkFailed: the loss is no longer a finite number.
    """
    import ray.train
    import ray.train.torch

    config = Config.model_validate(job["config"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job["threads"])
    prepared = Prepared.open(job["prepared"])
    train = sampled(prepared.tokens("train"), config.train.max_rows, config.seed)
    held_out = prepared.tokens("validation") if prepared.rows("validation") else train
    validation = sampled(held_out, config.train.validation_rows, config.seed)
    plan = batches.Plan(train.lengths, config.train.batch_tokens, config.train.epochs, config.seed)
    evaluate_after = batches.evaluation_steps(plan.steps, config.train.evaluations)
    with local_folder(job["initial"]) as folder:
        network = build.load(folder).to(device)
    settings = config.train
    recipe.freeze(network, settings.freeze_embeddings, settings.freeze_layers)
    if settings.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    peak = job["learning_rate"]
    optimizer = recipe.optimizer_for(network, peak, settings.weight_decay, settings.layer_decay)
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "history": [], "loss_curve": []}
    start = ray.train.get_checkpoint()
    if start is not None:
        with start.as_directory() as saved:
            progress = checkpoint.load_state(network, optimizer, Path(saved))
    kind, why = precision(config.train.precision, device, network.config.model_type)
    model: nn.Module = network
    exchange: Exchange | None = None
    pad_id = prepared.manifest["tokenizer"]["pad_id"]
    if world > 1:
        model, exchange = wrap(network, device, train, pad_id)
    weights = recipe.class_weights(settings.class_weights, prepared.labels, train.labels)
    loop = Loop(
        model, optimizer, train, pad_id, device, kind, settings.clip_norm, config.seed, rank, world, exchange,
        weights.to(device) if weights is not None else None, settings.label_smoothing, settings.micro_batch_tokens,
    )  # fmt: skip
    teller = _Teller(job["tell"] if rank == 0 else None)
    facts = {"device": str(device), "precision": f"{kind} ({why})", "threads": torch.get_num_threads()}
    teller.tell({"kind": "start", "steps": plan.steps, "step": progress["step"], "rows": len(train), **facts})
    began = time.monotonic() - progress["seconds"]
    running = torch.zeros((), dtype=torch.float64, device=device)
    counted = samples = 0
    for step in range(progress["step"], plan.steps):
        epoch, rows = plan.batch(step)
        rate = batches.learning_rate_at(step, plan.steps, peak, config.train.warmup)
        running += loop.step(step, rows, rate).double()
        counted, samples = counted + 1, samples + len(rows)
        if teller.due():
            teller.tell({"kind": "step", "step": step + 1, "samples": samples, "epoch": epoch})
        if step + 1 not in evaluate_after:
            continue
        loss = float(_summed(running / counted, world))
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise WorkFailed(
                f"the training loss is {loss} at step {step + 1}: lower train.learning_rate (now {peak:g}); "
                "the last good checkpoint is kept"
            )
        confusion, summed = loop.evaluate(validation, 4 * config.train.batch_tokens, len(prepared.labels))
        both = _summed(torch.cat([confusion.view(-1), summed]), world)
        figures = metrics.from_confusion(both[:-1].view_as(confusion).round().long().cpu().numpy(), prepared.labels)
        entry = {
            "step": step + 1,
            "epoch": round(plan.epochs_done(step), 4),
            "loss": round(loss, 6),
            "validation_loss": round(float(both[-1]) / max(1, len(validation)), 6),
            "validation_accuracy": figures["accuracy"],
            "validation_macro_f1": figures["macro_f1"],
            "learning_rate": rate,
            "seconds": round(time.monotonic() - began, 3),
        }
        progress = {
            "step": step + 1,
            "seconds": entry["seconds"],
            "history": [*progress["history"], entry],
            "loss_curve": [*progress["loss_curve"], [step + 1, entry["loss"]]],
        }
        running.zero_()
        counted = 0
        _report(network, optimizer, prepared, {**job["card"], "metrics": {"validation": figures}}, progress, rank)
        teller.tell({"kind": "evaluation", **entry})
    teller.tell({"kind": "end"})


def sampled(tokens: Tokens, max_rows: int | None, seed: int) -> Tokens:
    """The rows, or the configured sample of them, copied so that they lie together."""
    rows = batches.sample(tokens.labels, max_rows, seed)
    if len(rows) == len(tokens):
        return tokens
    lengths = tokens.lengths[rows]
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64).numpy()
    lengths.cumsum(out=offsets[1:])
    ids, mask = batches.pad(tokens.ids, tokens.offsets, rows, 0)
    return Tokens(ids[mask.astype(bool)].astype("int32"), offsets, tokens.labels[rows])


def _summed(value: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(value)
    return value


def _report(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    card: dict[str, Any],
    progress: dict[str, Any],
    rank: int,
) -> None:
    """Save on rank 0, and report on every rank: ``report`` is a barrier."""
    import ray.train

    entry = progress["history"][-1]
    plain = {k: float(v) for k, v in entry.items()}
    if rank != 0:
        ray.train.report(plain)
        return
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        folder = Path(temporary)
        with local_folder(prepared.place / "tokenizer") as tokenizer:
            checkpoint.save_model(network, tokenizer, card, folder)
        checkpoint.save_state(network, optimizer, progress, folder)
        ray.train.report(
            plain,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"checkpoint_{progress['step']:08d}",
        )


class _Teller:
    """Sends progress to the driver now and then; a lost driver does not stop training."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._last = 0.0

    def due(self) -> bool:
        return self._queue is not None and time.monotonic() - self._last >= TELL_EVERY_SECONDS

    def tell(self, event: dict[str, Any]) -> None:
        if self._queue is None:
            return
        self._last = time.monotonic()
        self._queue.actor.put_nowait.remote(event)  # not waited for
