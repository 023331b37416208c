"""What each Ray Train worker does: load, step, evaluate, save; resume from the last good checkpoint if there is one."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.prepared import Prepared, Tokens
from pipeline.errors import WorkFailed
from pipeline.evaluate import metrics
from pipeline.folders import local_folder
from pipeline.model import adapters, build
from pipeline.storage import Place
from pipeline.train import batches, checkpoint, failures, recipe, teacher
from pipeline.train.adversarial import Adversary
from pipeline.train.average import Average
from pipeline.train.distill import Teaching
from pipeline.train.distributed import Exchange, wrap
from pipeline.train.loop import Loop, precision
from pipeline.train.seat import Seat
from pipeline.train.store import SCORE, Store, Writer, name_of, not_finite

FIRST_STEPS = 8  # after so many, ranks agree on the time of the first checkpoint


def fit(job: dict[str, Any], seat: Seat) -> None:
    """Train what a job says, from its last good checkpoint if there is one.

    Args:
        job: ``config`` (dumped), ``prepared`` and ``initial`` (places), ``folder`` (of the checkpoints), ``card`` (for
            broadsheet.json), ``learning_rate`` (the peak), ``ema_decay`` and ``adversarial`` (0: none), ``teacher``
            (the place of its answers; None: there is none), ``threads``, ``until`` (the evaluation to stop after;
            None: the last) and ``tell``, an actor queue for progress or None.
        seat: of this process among those that train.

    Raises:
        WorkFailed: it would only fail again: loss or weights are no finite numbers, there is no memory for a step,
            or a checkpoint cannot be written.
    """
    config = Config.model_validate(job["config"])
    rank, world, device = seat.rank, seat.world, seat.device()
    if device.type == "cpu":
        torch.set_num_threads(job["threads"])
        pa.set_cpu_count(job["threads"])
    prepared = Prepared.open(job["prepared"])
    train = sampled(prepared.tokens("train"), config.train.max_rows, config.seed)
    held_out = prepared.tokens("validation") if prepared.rows("validation") else train
    validation = sampled(held_out, config.train.validation_rows, config.seed)
    plan = batches.Plan(train.lengths, config.train.batch_tokens, config.train.epochs, config.seed)
    evaluate_after = batches.evaluation_steps(plan.steps, config.train.evaluations, config.train.evaluate_at)
    until = evaluate_after[min(job["until"] or len(evaluate_after), len(evaluate_after)) - 1]
    with local_folder(job["initial"]) as folder:
        network = build.load(folder)
    settings = config.train
    recipe.freeze(network, settings.freeze_embeddings, settings.freeze_layers)
    if settings.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    kind, why = precision(settings.precision, device, network.config.model_type)
    if config.model.lora_rank:
        torch.manual_seed(config.seed)  # of the adapters' first weights
        on_gpu = device.type == "cuda" and kind == "bf16"
        adapters.add(
            network, config.model.lora_rank, config.model.lora_alpha, config.model.lora_dropout,
            torch.bfloat16 if on_gpu else torch.float32,
        )  # fmt: skip
    twin = copy.deepcopy(network) if rank == 0 else None
    network.to(device)
    peak = job["learning_rate"]
    optimizer = recipe.optimizer_for(network, peak, settings.weight_decay, settings.layer_decay)
    teller = _Teller(job["tell"] if rank == 0 else None)
    store = Store(Place(job["folder"]), config.train.keep_checkpoints)
    average = Average(network, job["ema_decay"]) if job["ema_decay"] else None
    adversary = Adversary(network, job["adversarial"]) if job["adversarial"] else None
    progress = _resume(store, network, optimizer, average, teller, seat, device)
    writer = None
    if rank == 0:

        def save(card: dict[str, Any], folder: Path) -> None:
            with local_folder(prepared.place / "tokenizer") as tokenizer:
                checkpoint.save_model(snapshot.model, tokenizer, card, folder)

        snapshot = checkpoint.Snapshot(network, optimizer, twin, average)
        writer = Writer(store, snapshot, save, config.train.checkpoint_seconds, progress["stalled"])
    model: nn.Module = network
    exchange: Exchange | None = None
    pad_id = prepared.manifest["tokenizer"]["pad_id"]
    if world > 1:
        model, exchange = wrap(network, device, train, pad_id)
    weights = recipe.class_weights(settings.class_weights, prepared.labels, train.labels)
    teaching = None
    if job["teacher"]:
        rows = teacher.rows_of(config, prepared)
        answers = teacher.read(Place.of(job["teacher"]), rows, len(prepared.labels))
        teaching = Teaching(torch.from_numpy(answers), settings.teacher_weight, settings.teacher_temperature)
    loop = Loop(
        model, optimizer, train, pad_id, device, kind, settings.clip_norm, config.seed, rank, world, exchange,
        weights.to(device) if weights is not None else None, settings.label_smoothing, settings.micro_batch_tokens,
        adversary, teaching,
    )  # fmt: skip
    facts = {"device": str(device), "precision": f"{kind} ({why})", "threads": torch.get_num_threads()}
    facts |= {"steps": plan.steps, "rows": len(train), "workers": world}
    teller.tell({"kind": "start", "step": progress["step"], **facts})
    began = time.monotonic() - progress["seconds"]
    # The sum of losses since the last evaluation: what is carried over from before lies with rank 0.
    running = torch.zeros((), dtype=torch.float64, device=device)
    running += progress["running"][0] if rank == 0 else 0.0
    counted, samples = progress["running"][1], 0
    agreed, agree_at, last = time.monotonic(), progress["step"] + FIRST_STEPS, progress["step"]
    watch, look = _Clock(1.0), _Clock(1.0)
    known: frozenset[str] = frozenset()  # nodes that will be taken away
    try:
        for step in range(progress["step"], until):
            epoch, rows = plan.batch(step)
            rate = batches.learning_rate_at(step, plan.steps, peak, config.train.warmup)
            running += loop.step(step, rows, rate).double()
            if average is not None:
                average.update(step + 1, now=step + 1 in evaluate_after)
            counted, samples = counted + 1, samples + len(rows)
            if watch.due():
                _refuse(float(running), step + 1)
                teller.tell({"kind": "step", "step": step + 1, "samples": samples, "epoch": epoch})
            if writer is not None:
                writer.check()
            evaluating = step + 1 in evaluate_after
            if not evaluating and step + 1 < agree_at:
                continue
            wait = writer.steps_to_next(step + 1 - last, time.monotonic() - agreed) if writer is not None else 0
            ask = rank == 0 and look.due()
            sums = torch.tensor([0.0, wait, ask], dtype=torch.float64, device=device)
            sums[0] = running
            total, wait, ask = _summed(sums, world).tolist()
            agree_at, agreed, last = step + 1 + int(wait), time.monotonic(), step + 1
            _refuse(total, step + 1)
            running.fill_(total if rank == 0 else 0.0)
            progress |= {"step": step + 1, "running": [total, counted], "seconds": time.monotonic() - began}
            leaving = seat.leaving() - known if ask else frozenset()
            if leaving:
                teller.tell({"kind": "leaving", "nodes": len(leaving), "step": step + 1})
                known |= leaving
                if writer is not None:
                    writer.hurry()
            if not evaluating:
                if writer is not None and (leaving or writer.due()):
                    writer.put(progress, job["card"])
                continue
            with average.applied() if average is not None else contextlib.nullcontext():
                confusion, summed = loop.evaluate(validation, 4 * config.train.batch_tokens, len(prepared.labels))
            both = _summed(torch.cat([confusion.view(-1), summed]), world)
            figures = metrics.from_confusion(both[:-1].view_as(confusion).round().long().cpu().numpy(), prepared.labels)
            entry = {
                "step": step + 1,
                "evaluation": len(progress["history"]) + 1,
                "epoch": round(plan.epochs_done(step), 4),
                "loss": round(total / counted, 6),
                "validation_loss": round(float(both[-1]) / max(1, len(validation)), 6),
                "validation_accuracy": figures["accuracy"],
                SCORE: figures["macro_f1"],
                "learning_rate": rate,
                "seconds": round(time.monotonic() - began, 3),
            }
            progress |= {
                "running": [0.0, 0],
                "seconds": entry["seconds"],
                "history": [*progress["history"], entry],
                "loss_curve": [*progress["loss_curve"], [step + 1, entry["loss"]]],
            }
            running.zero_()
            counted = 0
            written = None
            if writer is not None:
                told = {k: v for k, v in figures.items() if k != "confusion"}  # of 2,000 classes it has 32 MB
                written = writer.put(progress, {**job["card"], "metrics": {"validation": told}}, entry[SCORE])
            seat.report({k: float(v) for k, v in entry.items()}, name_of(entry["step"]), written)
            teller.tell({"kind": "evaluation", **entry})
    except Exception as e:
        # Under DDP the hooks of the step that failed are still armed: there is no step on this rank alone.
        alone = failures.probe_step(network, optimizer, train.lengths, kind, world, settings.micro_batch_tokens)
        probe = alone if world == 1 else None
        raise failures.explained(e, device, config.train.batch_tokens, probe) from None
    teller.tell({"kind": "end"})


def _resume(
    store: Store,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    teller: _Teller,
    seat: Seat,
    device: torch.device,
) -> dict[str, Any]:
    """Restore the last checkpoint that every rank finds undamaged, if there is one; returns the progress."""
    if seat.rank == 0:
        store.sweep()
    steps = seat.from_rank_zero(store.steps()[:50] if seat.rank == 0 else None)
    unread = ""
    for step in steps:
        with store.opened(step) as (folder, damage):
            bad = _summed(torch.tensor(float(damage is not None), device=device), seat.world)
            if not bad:
                return checkpoint.load_state(network, optimizer, folder, average)
        if seat.rank == 0 and damage is not None:
            store.remove(step)  # else it would count among the latest, which are kept
            teller.tell({"kind": "damaged", "checkpoint": name_of(step), "why": damage})
        elif seat.rank == 0:
            unread = unread or name_of(step)
            teller.tell({"kind": "damaged", "checkpoint": name_of(step), "why": "another worker could not read it"})
    unread = seat.from_rank_zero(unread)
    if unread:  # rather than begin anew: nothing is wrong with it, and the next try may find it
        raise RuntimeError(
            f"{unread} can be read by one worker and not by another: is {store.place} on storage that all nodes see?"
        )
    return {"step": 0, "seconds": 0.0, "stalled": 0.0, "running": [0.0, 0], "history": [], "loss_curve": []}


def _refuse(loss: float, step: int) -> None:
    """Stop a training that has run away.

    Raises:
        WorkFailed: the loss is not a finite number.
    """
    if not math.isfinite(loss):
        raise WorkFailed(not_finite(f"the training loss ({loss}) is", step))


def sampled(tokens: Tokens, max_rows: int | None, seed: int) -> Tokens:
    """The rows, or the configured sample of them, copied so that they lie together."""
    rows = batches.sample(tokens.labels, max_rows, seed)
    if len(rows) == len(tokens):
        return tokens
    return tokens.take(rows)


def _summed(value: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(value)
    return value


class _Clock:
    """Ticks every so many seconds, if it is looked at."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class _Teller:
    """Sends progress to the driver; a lost driver does not stop training."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def tell(self, event: dict[str, Any]) -> None:
        if self._queue is not None:
            self._queue.actor.put_nowait.remote(event)  # not waited for
