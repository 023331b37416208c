"""``broadsheet tune``: an ASHA search on Ray Tune whose trials are Ray Train runs that report every evaluation.

Tune counts only what a trial's driver holds, not the workers that its Ray Train run asks for; so the number of
trials at once is computed here from what one trial needs, and given to Tune.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import cluster, console, stages
from pipeline import config as configuration
from pipeline.config import Config
from pipeline.data import gates
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError, WorkFailed
from pipeline.model.source import ModelSource
from pipeline.storage import Place, put_folder
from pipeline.train import trainer
from pipeline.train.store import Store
from tune import space
from tune.record import Recorder, best_of, table

METRIC = "validation_macro_f1"


def at_once(config: Config, layout: cluster.Layout, have: cluster.Resources) -> tuple[int, str]:
    """How many trials run at once, and the arithmetic.

    Args:
        config: ``tune.concurrent`` lowers the number.
        layout: of one trial.
        have: the cluster.

    Raises:
        UserError: not even one trial fits.
    """
    cluster.check_fits("one trial", layout, have, "tune.workers or train.cpus_per_worker")
    room = have.room(layout.cpus, layout.gpus)
    fit = room // layout.workers
    size = f"{layout.cpus} CPU" + (f" + {layout.gpus:g} GPU" if layout.gpus else "")
    words = f"room for {room} workers of {size} / {layout.workers} a trial = {fit}"
    wanted = min(config.tune.trials, config.tune.concurrent or fit)
    return max(1, min(fit, wanted)), words


def run(config: Config, address: str | None) -> None:
    """Search, write ``trials.jsonl`` and ``best/``, and say what the search bought.

    Raises:
        UserError: the configuration does not fit the data or the cluster.
        WorkFailed: every trial failed; the message carries the first reason.
    """
    if "name" not in config.model_fields_set or config.name == "default":
        config = config.updated({"name": "search"})
    if config.model.name == "linear":
        raise UserError(
            "tune: the linear model has nothing to search for; train it with 'broadsheet train --model linear'"
        )
    job = stages.begin(config, False)
    have = cluster.connect(address, dashboard=True)
    stages.make_prepared(job, address)
    assert job.prepared is not None
    gates.refuse(job.config.data, job.prepared.ledger, job.prepared.profile["classes"])
    points = space.points(job.config, trainer.learning_rate(job.config, job.model))
    configs = [space.trial_config(job.config, p) for p in points]
    layout = cluster.train_layout(configs[0], have)
    concurrent, words = at_once(job.config, layout, have)
    console.say("tune", f"{len(points)} trials, {concurrent} at once ({words}), ASHA over {METRIC}; "
                "trial 1 is the default recipe")  # fmt: skip
    folder = job.run
    (folder / "trials").delete()
    initial = folder / "trials" / "initial"
    trainer.write_initial(job.config, job.prepared, job.model, initial)
    began = time.monotonic()
    recorder = Recorder(points, folder, config.tune.evaluations)
    _search(configs, job.prepared, job.model, layout, concurrent, folder, initial, recorder)
    rows = recorder.finish()
    console.table("trials", *table(rows))
    best = best_of(rows)
    if best is None:
        raise WorkFailed(f"every trial failed; the first said: {rows[0].get('error') or 'nothing'}")
    _keep(best, folder)
    (folder / "trials").delete()
    (folder / "config.yaml").write_text(configuration.dump(job.config))
    _conclude(rows, best, folder, time.monotonic() - began, stages.flags(config.updated({"name": "winner"})))


def _conclude(rows: list[dict[str, Any]], best: dict[str, Any], folder: Place, seconds: float, flags: str) -> None:
    default = rows[0]
    if best["trial"] == default["trial"]:
        gain = "no trial beat the default recipe"
    elif default["best"] is None:
        gain = "the default recipe failed"
    else:
        gain = f"{100 * (best['best'] - default['best']):+.2f} points over the default recipe on validation rows"
    console.say(
        "tune",
        f"best: trial {best['trial']}, macro F1 {best['best']:.4f} ({gain}); {console.seconds(seconds)}",
    )
    console.say("tune", f"-> {folder}/best and {folder}/trials.jsonl")
    sets = " ".join(f"--set {k}={v:g}" for k, v in best["point"].items())
    console.say("next", f"broadsheet serve {folder}")
    console.say("next", f"train the winner on all rows: broadsheet train --full{flags} {sets}")


def _search(
    configs: list[Config],
    prepared: Prepared,
    model: ModelSource,
    layout: cluster.Layout,
    concurrent: int,
    folder: Place,
    initial: Place,
    recorder: Recorder,
) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    import logging

    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    jobs = [trainer.job(c, prepared, model, layout, initial, None) for c in configs]
    settings = configs[0].tune

    def trial(point: dict[str, Any]) -> None:
        from ray.tune.integration.ray_train import TuneReportCallback

        n = int(point["trial"])
        # Worker groups of stopped trials die with this process: Ray ends what an actor owns with the actor.
        one = trainer.torch_trainer(
            configs[n], layout, folder / "trials", f"trial-{n + 1:04d}", jobs[n], [TuneReportCallback()]
        )
        with cluster.pinned():
            one.fit()

    tuner = tune.Tuner(
        # The driver of a trial only waits (its Ray Train workers hold the CPUs), but Tune refuses an empty
        # request: one byte of memory is one that every cluster can give.
        tune.with_resources(trial, {"CPU": 0, "memory": 1}),
        param_space={"trial": tune.grid_search(list(range(len(configs))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            scheduler=ASHAScheduler(
                metric=METRIC, mode="max", max_t=settings.evaluations, grace_period=settings.grace,
                reduction_factor=settings.reduction_factor,
            ),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder / "trials"), verbose=0, callbacks=[recorder.callback()],
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    except (UserError, WorkFailed):
        raise
    except Exception as e:
        ours = cluster.our_error(e, "tune.concurrent", "The same command begins the search anew")
        if ours is not None:
            raise ours from None
        last = (str(e).strip().splitlines() or [type(e).__name__])[-1]
        raise WorkFailed(f"the search stopped: {last}") from e


def _keep(best: dict[str, Any], folder: Place) -> None:
    """Export the winner's best checkpoint, without the state that only resuming needs."""
    # Not the very one that was reported: a better one may have come after, and taken its place.
    store = Store(Place.of(best["checkpoint"]).parent, 1)
    with trainer.best_checkpoint(store) as source, tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        out = Path(temporary) / "best"
        trainer.export(source, out, {"point": best["point"], "trial": best["trial"], "history": best["history"]})
        put_folder(out, folder / "best")


def show(where: str) -> None:
    """Print the table of a finished search.

    Raises:
        UserError: there is none.
    """
    file = Place.of(where) / "trials.jsonl"
    if not file.exists():
        raise UserError(f"no search in {where} (it has no trials.jsonl): make one with 'broadsheet tune'")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    console.table("trials", *table(rows))
    best = best_of(rows)
    if best is not None:
        console.say("next", f"broadsheet serve {where}")
