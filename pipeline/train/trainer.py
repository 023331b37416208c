"""``broadsheet train``: lay the training function out on Ray Train, follow it, keep the best checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Prepared, digest
from pipeline.errors import WorkFailed
from pipeline.folders import put_folder
from pipeline.model.source import ModelSource
from pipeline.storage import Place
from pipeline.train import allocator, checkpoint, teacher
from pipeline.train.layout import Layout, beside_others, train_layout
from pipeline.train.store import Store, name_of

VERSION = 5  # raise it whenever the same configuration would train differently
RESIZE_SECONDS = 5.0  # at the least, between looks for nodes that came back
DEFAULT_EMA = {"lstm": 0.999}
DEFAULT_ADVERSARIAL = {"lstm": 0.05}
TEACHER = ("teacher", "teacher_weight", "teacher_temperature")
DEFAULT_RATE = {"transformer": 1e-4, "adapters": 5e-4, "lstm": 3e-3, "linear": 1.0}  # linear has no rate


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
    kind = "adapters" if model.kind == "transformer" and config.model.lora_rank else model.kind
    return config.train.learning_rate or DEFAULT_RATE[kind]


def ema_decay(config: Config, model: ModelSource) -> float:
    """The configured decay of the average of weights, or the recipe's for this kind of model; 0 is none."""
    decay = config.train.ema_decay
    return DEFAULT_EMA.get(model.kind, 0.0) if decay is None else decay


def adversarial(config: Config, model: ModelSource) -> float:
    """The configured size of adversarial changes, or the recipe's for this kind of model; 0 is none."""
    size = config.train.adversarial
    return DEFAULT_ADVERSARIAL.get(model.kind, 0.0) if size is None else size


def fingerprint(config: Config, prepared: Prepared, model: ModelSource) -> str:
    """What the trained weights depend on, the number of workers left out: the global batches are the same."""
    train = config.train.model_dump(
        mode="json",
        exclude={"workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "keep_checkpoints",
                 "checkpoint_seconds", "track", *TEACHER},
    )  # fmt: skip
    taught = teacher.identity_of(config)
    parts = (
        train,
        config.model.model_dump(mode="json", exclude={"name"}),
        config.seed,
        learning_rate(config, model),
        ema_decay(config, model),
        adversarial(config, model),
        *((taught, config.train.teacher_weight, config.train.teacher_temperature) if taught else ()),
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
    if model.kind == "linear":
        from pipeline.train import linear

        linear.train(config, prepared, card(config, prepared, model), mark, final, address)
        return _fresh(final, mark)
    from pipeline.train import track

    have = cluster.connect(address)
    train_layout(config, have)  # refused before a teacher is asked
    work = run / "train"
    tracking = track.begin(config, run, mark, resumed=(work / mark).exists())
    teacher.ask(config, prepared, address)
    layout = beside_others(config, have)
    write_initial(config, prepared, model, work / f"initial-{mark}")
    _fit(config, prepared, model, layout, work, mark, tracking)
    store = Store(work / mark, config.train.keep_checkpoints)
    with _last(store) as folder:
        progress = json.loads((folder / checkpoint.STATE[1]).read_text(encoding="utf-8"))
    tracking.end(progress["history"])
    stall_share = round(progress["stalled"] / max(progress["seconds"], 1e-9), 4)
    with best_checkpoint(store) as folder, tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        out = Path(temporary) / "checkpoint"
        facts = {"fingerprint": mark, "layout": layout.arithmetic(), "steps": progress["step"]}
        facts |= {"cluster": {"cpus": have.cpus, "gpus": have.gpus}}
        if taught := teacher.identity_of(config):
            facts["teacher"] = taught
        facts |= {"seconds": progress["seconds"], "stall_share": stall_share, "history": progress["history"]}
        export(folder, out, facts)
        put_folder(out, final, checkpoint.CARD)
    work.delete()
    return _fresh(final, mark)


def _fresh(final: Place, mark: str) -> Trained:
    trained = _finished(final, mark)
    assert trained is not None
    return Trained(trained.checkpoint, trained.history, False, trained.summary)


@contextmanager
def _last(store: Store) -> Iterator[Path]:
    """The last checkpoint of a finished training."""
    steps = store.steps()
    if not steps:
        raise WorkFailed(
            f"training ended, but {store.place} holds no checkpoint: on a cluster every node must see the same storage "
            "(--storage on a shared mount, or s3://)"
        )
    with store.opened(steps[0]) as (folder, damage):
        if damage is not None:
            raise WorkFailed(
                f"{store.place}/{name_of(steps[0])} is damaged ({damage}): the same command goes on from the one before"
            )
        yield folder


@contextmanager
def best_checkpoint(store: Store) -> Iterator[Path]:
    """The best checkpoint of a finished training that is not damaged, as a local folder."""
    with store.opened(best_step(store)) as (folder, _):
        yield folder


def best_step(store: Store) -> int:
    """The step of the best checkpoint that is not damaged; the first of equals."""
    scores = {step: score for step, score in store.scores().items() if score is not None}
    for step in sorted(scores, key=lambda step: (-scores[step], step)):
        with store.opened(step) as (_, damage):
            if damage is None:
                return step
        console.warn("train", f"{name_of(step)}, the best so far, is damaged ({damage}): taking the next best")
    raise WorkFailed(f"no evaluated checkpoint in {store.place} can be read: the same command trains again")


def _finished(final: Place, mark: str) -> Trained | None:
    if not (final / checkpoint.CARD).exists():
        return None
    card = checkpoint.read_card(final)
    if card.get("training", {}).get("fingerprint") != mark:
        return None
    training = dict(card["training"])
    return Trained(final, training.pop("history"), True, training)


def export(source: Path, out: Path, training: dict[str, Any]) -> None:
    """Copy a checkpoint without the state that only resuming needs, note how it was trained, and write its card."""
    from pipeline.train import model_card

    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in (*checkpoint.STATE, checkpoint.SEAL) and not file.name.startswith("."):
            shutil.copyfile(file, out / file.name)
    card = json.loads((out / checkpoint.CARD).read_text(encoding="utf-8"))
    card["training"] = training
    (out / checkpoint.CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    text = model_card.of_training(card, Prepared.open(card["prepared"]))
    (out / model_card.FILE).write_text(text, encoding="utf-8")


def write_initial(config: Config, prepared: Prepared, model: ModelSource, place: Place) -> None:
    """Write the untrained model once, so that all workers on all nodes start from the same weights."""
    if (place / "config.json").exists():
        return
    from pipeline.model import build

    tokenizer = prepared.manifest["tokenizer"]
    network: Any = build.initial(config, model, prepared.labels, tokenizer.get("vocab_size", 0), tokenizer["pad_id"])
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        network.save_pretrained(temporary)
        put_folder(Path(temporary), place, "config.json")


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
    config: Config,
    prepared: Prepared,
    model: ModelSource,
    layout: Layout,
    initial: Place,
    tell: Any = None,
    until: int | None = None,
) -> dict[str, Any]:
    """The configuration of ``worker.fit``."""
    return {
        "config": config.model_dump(mode="json"),
        "prepared": str(prepared.place),
        "initial": str(initial),
        "learning_rate": learning_rate(config, model),
        "ema_decay": ema_decay(config, model),
        "adversarial": adversarial(config, model),
        "teacher": str(taught) if (taught := teacher.place_of(config, prepared)) else None,
        "card": card(config, prepared, model),
        "threads": layout.cpus,
        "until": until,
        "tell": tell,
    }


def torch_trainer(
    config: Config,
    layout: Layout,
    work: Place,
    name: str,
    loop_config: dict[str, Any],
    callbacks: list[Any],
) -> Any:
    """A Ray Train TorchTrainer over ``layout``; the same name under the same folder resumes.

    Which checkpoints there are, and which to keep, is known by the folder itself (``store``), not by Ray Train: its
    list is one file, neither written at once nor checked, and it would drop all but the best.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.train.failures import FailurePolicy
    from pipeline.train.seat import train_worker

    folder = work / name
    policy: Any = FailurePolicy(folder, config.train.max_failures, config.train.batch_tokens)
    resources: dict[str, float] = {"CPU": layout.cpus}
    environment: dict[str, Any] = {}  # the class that type checkers see has not got this yet
    if layout.use_gpu:
        resources["GPU"] = layout.gpus
    else:
        # The threads of training are set where it begins. Any other pool of threads in the process, and libgomp takes
        # the cores for overbooked: threads then sleep between operations, and the LSTM takes three times as long.
        wanted = {**allocator.settings(), "OMP_NUM_THREADS": "1"}
        environment["worker_runtime_env"] = {"env_vars": {k: v for k, v in wanted.items() if k not in os.environ}}
    scaling: dict[str, Any] = {"use_gpu": layout.use_gpu, "resources_per_worker": resources}
    if config.train.min_workers is None:
        scaling["num_workers"] = layout.workers
    else:
        scaling["num_workers"] = (config.train.min_workers, layout.workers)
        cluster.expect_lost_nodes()
        # Taking a node in means starting again from the last checkpoint.
        scaling["elastic_resize_monitor_interval_s"] = max(RESIZE_SECONDS, config.train.checkpoint_seconds)
    return TorchTrainer(
        train_worker,
        train_loop_config={**loop_config, "folder": str(folder)},
        torch_config=TorchConfig(),
        scaling_config=ray.train.ScalingConfig(**scaling),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(work),
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[*callbacks, policy],
            **environment,
        ),
    )


def _fit(
    config: Config,
    prepared: Prepared,
    model: ModelSource,
    layout: Layout,
    work: Place,
    mark: str,
    tracking: Any,
) -> None:
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.train.failed_start import freed
    from pipeline.train.failures import stopped
    from pipeline.train.follow import follow

    (work / mark / "checkpoint_manager_snapshot.json").delete()  # see torch_trainer
    # On the driver's own node: another one may be lost.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    follower = threading.Thread(target=follow, args=(queue, layout, config.name), daemon=True)
    follower.start()
    settings = job(config, prepared, model, layout, work / f"initial-{mark}", queue)
    try:
        with cluster.pinned(), freed():
            torch_trainer(config, layout, work, mark, settings, [tracking]).fit()
    except Exception as e:
        raise stopped(e, work) from None
    finally:
        queue.actor.put_nowait.remote({"kind": "end"})
        follower.join(timeout=5)
        queue.shutdown(force=True)
