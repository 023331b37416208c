"""``broadsheet train``: lay the training function out on Ray Train, follow it, keep the best checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Prepared, digest
from pipeline.errors import WorkFailed
from pipeline.model.source import ModelSource
from pipeline.storage import Place, put_folder
from pipeline.train import checkpoint

VERSION = 2  # raise it whenever the same configuration would train differently
DEFAULT_RATE = {"transformer": 1e-4, "lstm": 3e-3}


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        checkpoint: the best checkpoint's place.
        history: one entry per evaluation.
        reused: whether it was found finished.
        summary: rows, steps, seconds, workers, precision.
    """

    checkpoint: Place
    history: list[dict[str, Any]]
    reused: bool
    summary: dict[str, Any]


def learning_rate(config: Config, model: ModelSource) -> float:
    """The configured peak rate, or the recipe's for this kind of model."""
    return config.train.learning_rate or DEFAULT_RATE[model.kind]


def fingerprint(config: Config, prepared: Prepared, model: ModelSource) -> str:
    """What the trained weights depend on, the number of workers left out: the global batches are the same."""
    train = config.train.model_dump(
        mode="json",
        exclude={"workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "keep_checkpoints", "track"},
    )
    parts = (
        train,
        config.model.model_dump(mode="json", exclude={"name"}),
        config.seed,
        learning_rate(config, model),
    )
    return digest(str(VERSION), prepared.fingerprint, model.identity, *(json.dumps(p, sort_keys=True) for p in parts))


def train(
    config: Config,
    prepared: Prepared,
    model: ModelSource,
    address: str | None = None,
    run: Place | None = None,
) -> Trained:
    """Train, resume a training that was cut off, or find it finished.

    Args:
        config: the resolved configuration.
        prepared: the data.
        model: what to start from.
        address: the Ray cluster.
        run: the run's folder; ``<storage>/<name>`` if None.

    Raises:
        UserError: the layout does not fit the cluster.
        WorkFailed: training stopped; the message says why and what is kept.
    """
    run = run or Place.of(config.storage) / config.name
    mark = fingerprint(config, prepared, model)
    final = run / "checkpoint"
    done = _finished(final, mark)
    if done:
        return done
    from pipeline.train import track

    layout = cluster.train_layout(config, cluster.connect(address))
    work = run / "train"
    tracking = track.begin(config, run, mark, resumed=(work / mark).exists())
    write_initial(config, prepared, model, work / f"initial-{mark}")
    result = _fit(config, prepared, model, layout, work, mark, tracking)
    tracking.end()
    best = max(result.best_checkpoints, key=lambda pair: (pair[1]["validation_macro_f1"], -pair[1]["step"]))[0]
    with result.checkpoint.as_directory() as last:
        progress = json.loads((Path(last) / checkpoint.STATE[1]).read_text(encoding="utf-8"))
    with best.as_directory() as folder, tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        out = Path(temporary) / "checkpoint"
        facts = {"fingerprint": mark, "layout": layout.arithmetic(), "steps": progress["step"]}
        export(Path(folder), out, {**facts, "seconds": progress["seconds"], "history": progress["history"]})
        put_folder(out, final)
    work.delete()
    trained = _finished(final, mark)
    assert trained is not None
    return Trained(trained.checkpoint, trained.history, False, trained.summary)


def _finished(final: Place, mark: str) -> Trained | None:
    if not (final / checkpoint.CARD).exists():
        return None
    card = checkpoint.read_card(final)
    if card.get("training", {}).get("fingerprint") != mark:
        return None
    training = dict(card["training"])
    return Trained(final, training.pop("history"), True, training)


def export(source: Path, out: Path, training: dict[str, Any]) -> None:
    """Copy a checkpoint without the state that only resuming needs, and note how it was trained."""
    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in checkpoint.STATE and not file.name.startswith("."):
            shutil.copyfile(file, out / file.name)
    card = json.loads((out / checkpoint.CARD).read_text(encoding="utf-8"))
    card["training"] = training
    (out / checkpoint.CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_initial(config: Config, prepared: Prepared, model: ModelSource, place: Place) -> None:
    """Write the untrained model once, so that all workers on all nodes start from the same weights."""
    if (place / "config.json").exists():
        return
    from pipeline.model import build

    tokenizer = prepared.manifest["tokenizer"]
    network: Any = build.initial(config, model, prepared.labels, tokenizer.get("vocab_size", 0), tokenizer["pad_id"])
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        network.save_pretrained(temporary, safe_serialization=True)
        put_folder(Path(temporary), place)


def card(config: Config, prepared: Prepared, model: ModelSource) -> dict[str, Any]:
    """What ``broadsheet.json`` says of every checkpoint of this training, metrics aside."""
    return {
        "labels": prepared.labels,
        "kind": model.kind,
        "text": list(config.data.text),
        "cleaning": {**prepared.manifest["cleaning"], "max_chars": config.data.max_chars},
        "max_tokens": config.model.max_tokens,
        "pad_id": prepared.manifest["tokenizer"]["pad_id"],
        "temperature": 1.0,
        "data_fingerprint": prepared.fingerprint,
        "prepared": str(prepared.place),
        "config": config.model_dump(mode="json"),
    }


def job(
    config: Config, prepared: Prepared, model: ModelSource, layout: cluster.Layout, initial: Place, tell: Any
) -> dict[str, Any]:
    """The configuration of ``worker.train_worker``."""
    return {
        "config": config.model_dump(mode="json"),
        "prepared": str(prepared.place),
        "initial": str(initial),
        "learning_rate": learning_rate(config, model),
        "card": card(config, prepared, model),
        "threads": layout.cpus,
        "tell": tell,
    }


def torch_trainer(
    config: Config,
    layout: cluster.Layout,
    work: Place,
    name: str,
    loop_config: dict[str, Any],
    callbacks: list[Any],
) -> Any:
    """A Ray Train TorchTrainer over ``layout``; the same name under the same folder resumes."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.train.worker import train_worker

    resources: dict[str, float] = {"CPU": layout.cpus}
    if layout.use_gpu:
        resources["GPU"] = layout.gpus
    return TorchTrainer(
        train_worker,
        train_loop_config=loop_config,
        torch_config=TorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=layout.workers, use_gpu=layout.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(work),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.train.keep_checkpoints,
                checkpoint_score_attribute="validation_macro_f1",
                checkpoint_score_order="max",
            ),
            callbacks=callbacks,
        ),
    )


def _fit(
    config: Config,
    prepared: Prepared,
    model: ModelSource,
    layout: cluster.Layout,
    work: Place,
    mark: str,
    tracking: Any,
) -> Any:
    from ray.util.queue import Queue

    queue: Any = Queue(actor_options={"num_cpus": 0})
    follower = threading.Thread(target=_follow, args=(queue, layout), daemon=True)
    follower.start()
    settings = job(config, prepared, model, layout, work / f"initial-{mark}", queue)
    try:
        with cluster.pinned():
            return torch_trainer(config, layout, work, mark, settings, [tracking]).fit()
    except BaseException as e:
        ours = cluster.our_error(e, "train.batch_tokens (it then begins anew)")
        if ours is not None:
            raise ours from None
        if not isinstance(e, Exception):
            raise
        last = (str(e).strip().splitlines() or [type(e).__name__])[-1]
        raise WorkFailed(f"training stopped: {last}. Checkpoints so far are in {work}; the same command resumes") from e
    finally:
        queue.actor.put_nowait.remote({"kind": "end"})
        follower.join(timeout=5)
        queue.shutdown(force=True)


def _follow(queue: Any, layout: cluster.Layout) -> None:
    """Show what rank 0 tells, until the end."""
    progress: console.Bar | None = None
    first = 0.0
    while True:
        try:
            event = queue.get()
        except Exception:  # the queue went away with its cluster: nothing left to show
            break
        if event["kind"] == "start":
            if progress is not None:
                progress.close()
                console.warn("train", f"a worker was lost: resuming from step {event['step']:,}")
            elif event["step"]:
                console.say("train", f"resuming an unfinished training from step {event['step']:,}")
            console.say("train", f"{layout.arithmetic()}, {event['device']}, {event['precision']}, "
                        f"{event['rows']:,} rows, {event['steps']:,} steps")  # fmt: skip
            progress = console.Bar("train", "steps", event["steps"])
            first = time.monotonic()
        elif event["kind"] == "step" and progress is not None:
            rate = event["samples"] / max(1e-9, time.monotonic() - first)
            progress.update(event["step"], f"{rate:.0f} rows/s")
        elif event["kind"] == "evaluation":
            console.say("train", f"step {event['step']:,} (epoch {event['epoch']:.2f}): loss {event['loss']:.4f}, "
                        f"validation accuracy {event['validation_accuracy']:.4f}, "
                        f"macro F1 {event['validation_macro_f1']:.4f}")  # fmt: skip
        elif event["kind"] == "end":
            break
    if progress is not None:
        progress.close()
