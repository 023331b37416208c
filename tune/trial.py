"""What Ray Tune runs for one trial, on whatever node.

A trial of one worker trains in Tune's own process, which the next trial finds warm: a Ray Train run would start eight
more for it, half a minute of processor time on a slow machine. A trial of several workers is a Ray Train run, and
Tune's process only waits for it.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline import cluster
from pipeline.config import Config
from pipeline.storage import Place
from pipeline.train.layout import Layout

ERROR = "error"


def training(config: dict[str, Any]) -> None:
    """Train; a failure is told, not raised: it would only come again.

    Args:
        config: ``trial``, ``work`` and ``folder`` (of the checkpoints), ``layout``, ``known`` (evaluations that the
            search knows of) and ``job`` (of ``worker.fit``, as JSON).
    """
    from ray import tune

    from pipeline.train import failures

    work, job = Place(config["work"]), json.loads(config["job"])
    folder, layout = work / config["folder"], Layout(*config["layout"])
    try:
        for entry in _missed(folder, config["known"]):
            tune.report(entry)
        if layout.workers == 1:
            from pipeline.train.seat import LoneSeat
            from pipeline.train.worker import fit

            fit({**job, "folder": str(folder)}, LoneSeat(tune.report, layout.use_gpu))
        else:
            _on_ray_train(work, config["folder"], layout, job)
    except Exception as e:
        tune.report({ERROR: str(failures.stopped(e, work))})


def _missed(folder: Place, known: int) -> list[dict[str, Any]]:
    """Evaluations that lie in the last checkpoint, but never reached the search: it was killed in between."""
    from pipeline.train import checkpoint
    from pipeline.train.store import Store

    store = Store(folder, 1)
    for step in store.steps():
        with store.opened(step) as (files, damage):
            if damage is None:
                history = json.loads((files / checkpoint.STATE[1]).read_text(encoding="utf-8"))["history"]
                return list(history[known:])
    return []


def _on_ray_train(work: Place, name: str, layout: Layout, job: dict[str, Any]) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipeline.train import trainer
    from pipeline.train.failed_start import freed

    reporter: Any = TuneReportCallback
    config = Config.model_validate(job["config"])
    (work / name / "checkpoint_manager_snapshot.json").delete()  # see trainer.torch_trainer
    # Worker groups of stopped trials die with this process: Ray ends what an actor owns with the actor.
    with cluster.pinned(), freed():
        trainer.torch_trainer(config, layout, work, name, job, [reporter()]).fit()
