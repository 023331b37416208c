"""What a search costs: against random full trials, against calling Ray Train directly, two at once against one.

    BROADSHEET_DATA=... python benchmarks/tune.py [--quick] [--out FILE]

A small LSTM on a sample of AG News, all searches in one process on one Ray.

- ``steps_vs_random16``: 16 random trials trained to their end; then our search (ASHA, the same space and seed) with at
  most 30% of their steps. For each seed: the steps until ours had a validation macro F1 within 0.1 points of theirs, as
  a share of theirs; null where it did not come that far.
- ``overhead``: two trials of about a minute one after the other, under Tune and by calling the trainer.
- ``parallel2_vs_1``: a search of four trials on one core each, two at once against one at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import RESULTS, machine, write

sys.path.pop(0)  # this folder, here and in Ray's workers: ``tune`` is the package, not this file

from pipeline import cluster, stages
from pipeline.config import Config, load
from pipeline.storage import Place
from pipeline.train import trainer
from pipeline.train.store import SCORE
from tune import search, space
from tune.journal import Journal, Trial

NEAR = 0.001  # macro F1
SHARE = 0.30  # of the steps of random search


def configured(folder: Path, data: Path, rows: int, **more: Any) -> Config:
    """A search on AG News."""
    flags: dict[str, Any] = {
        "storage": str(folder), "data.dataset": "ag_news", "model.name": "lstm", "train.max_rows": rows,
        "train.validation_rows": 2_000, "tune.max_rows": rows, "tune.epochs": 3.0, "tune.seeds": 0,
        "train.workers": 1, "model.hidden": (64,), "model.embedding_dim": 64, "data.profile_rows": 0,
    }  # fmt: skip
    assert data.is_dir()
    return load(None, [], {**flags, **more})


def searched(config: Config) -> tuple[list[Trial], float]:
    """Run a search without its words; its trials, and the seconds it took."""
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        search.run(config, None)
    seconds = time.monotonic() - began
    journal = Journal.load(search.folder_of(config))
    assert journal is not None
    return journal.of("search"), seconds


def against_random(folder: Path, data: Path, rows: int, count: int, seed: int) -> dict[str, Any]:
    """One seed: the steps of random search, and those of ours until it was as good."""
    common = {"seed": seed, "tune.trials": count}
    full, full_s = searched(
        configured(folder, data, rows, **common, **{"name": f"random-{seed}", "tune.algorithm": "random"})
    )
    steps = sum(t.steps for t in full)
    best = max(t.best or 0.0 for t in full)
    limit = {"tune.max_steps": int(SHARE * steps)}
    ours, ours_s = searched(configured(folder, data, rows, **common, **limit, name=f"asha-{seed}"))
    found = max(t.best or 0.0 for t in ours)
    used = sum(t.steps for t in ours)
    reached = None
    if found >= best - NEAR:
        reached = round(used / steps, 3)  # an upper bound: all that the search took
    return {
        "seed": seed, "random_steps": steps, "random_best": best, "random_s": round(full_s, 1),
        "asha_steps": used, "asha_best": found, "asha_s": round(ours_s, 1), "asha_trials": len(ours),
        "share_of_steps": round(used / steps, 3), "reached_with": reached, "default": full[0].best,
        "scores": [[e[SCORE] for e in t.history] for t in ours],
    }  # fmt: skip


def overhead(folder: Path, data: Path, rows: int, epochs: float) -> dict[str, Any]:
    """Two trials one after the other under Tune, and the same two trainings without it."""
    grid = {"train.learning_rate": {"choice": (2e-3, 3e-3)}}
    more = {"tune.algorithm": "grid", "tune.space": grid, "tune.concurrent": 1, "tune.epochs": epochs, "name": "tuned"}
    config = configured(folder, data, rows, **more)
    trials, tuned_s = searched(config)
    with contextlib.redirect_stdout(io.StringIO()):
        job = stages.begin(config, False)
        stages.make_prepared(job, None)
    assert job.prepared is not None
    direct_s = []
    for number, trial in enumerate(trials):
        one = space.trial_config(job.config, trial.point).updated({"name": f"direct-{number}"})
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(one, job.prepared, job.model, None, Place.of(folder) / one.name)
        direct_s.append(time.monotonic() - began)
    return {"trials": len(trials), "tune_s": round(tuned_s, 1), "direct_s": [round(s, 1) for s in direct_s]}


def at_once(folder: Path, data: Path, rows: int) -> dict[str, float]:
    """Seconds of a search of four trials, one and two at once."""
    seconds = {}
    for count in (1, 2):
        grid = {"train.learning_rate": {"choice": (1e-3, 2e-3, 3e-3, 4e-3)}}
        more = {"tune.algorithm": "grid", "tune.space": grid, "tune.concurrent": count, "name": f"at-once-{count}"}
        seconds[str(count)] = round(searched(configured(folder, data, rows, **more))[1], 1)
    return seconds


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small trials, one seed")
    parser.add_argument("--rows", type=int, default=1_500, help="training rows of a trial")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "tune.json")
    arguments = parser.parse_args()
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    rows, seeds, count, long_rows, epochs = arguments.rows, arguments.seeds, 16, 5_600, 4.0
    if arguments.quick:
        rows, seeds, count, long_rows, epochs = 600, 1, 4, 1_000, 1.0
    cluster.connect(None, dashboard=True)
    with tempfile.TemporaryDirectory(prefix="tune-") as temporary:
        folder = Path(temporary)
        warm = {"name": "warm", "tune.trials": 1, "tune.epochs": 1.0}
        searched(configured(folder, data, rows, **warm))  # prepares the data, and starts what Ray keeps
        lanes = at_once(folder, data, 2 * rows)
        print(lanes, flush=True)
        cost = overhead(folder, data, long_rows, epochs)
        print(cost, flush=True)
        runs = []
        for seed in range(1, seeds + 1):
            runs.append(against_random(folder, data, rows, count, seed))
            print({k: v for k, v in runs[-1].items() if k != "scores"}, flush=True)
    reached = [r["reached_with"] for r in runs]
    result = {
        **machine(),
        "quick": arguments.quick,
        "rows": rows,
        "against_random": runs,
        "overhead": cost,
        "at_once": lanes,
        "ratios": {
            "steps_vs_random16": None if None in reached else round(statistics.mean(reached), 3),
            "seeds_reached": f"{sum(r is not None for r in reached)} of {len(reached)}",
            "overhead": round(cost["tune_s"] / sum(cost["direct_s"]) - 1, 3),
            "parallel2_vs_1": round(lanes["2"] / lanes["1"], 3),
        },
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
