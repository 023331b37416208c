"""Test accuracy by data set and model: several seeds, chosen on validation rows, the test rows looked at once.

    BROADSHEET_DATA=... python benchmarks/quality.py [--only ag_news_linear,...] [--seeds N] [--quick] [--out FILE]
                                                     [--storage FOLDER] [--mpnet FOLDER]

Each job is what a user would type, ``broadsheet train`` and ``broadsheet evaluate``, on all training rows at hand. A
run that is in the JSON already is not done again, so that long ones can be made one by one: ``--list`` names them.
``mpnet`` is all-mpnet-base-v2, whose folder ``--mpnet`` names; ``taught`` is MiniLM with the mpnet run of the same seed
in ``--storage`` as its teacher.
Beside the mean stand the 95% interval of the mean over seeds (Student's t) and McNemar's exact test of the first seed
against the linear model on the same test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from measure import RESULTS, machine, write
from scipy import stats

THUCNEWS = "finance,realty,stocks,education,science,society,politics,sports,game,entertainment"
DATA = ("ag_news", "thucnews", "reuters8", "reuters52", "newsgroups20")
# The settings of each model beside its defaults; what a data set needs on top.
MODELS: dict[str, list[str]] = {
    "linear": [],
    "lstm": ["train.epochs=3"],
    "minilm": ["train.epochs=2"],
    "mpnet": ["train.epochs=1", "train.learning_rate=5e-5", "train.layer_decay=0.9"],
    "taught": ["train.epochs=3", "train.teacher_weight=0.8", "train.validation_rows=null", "train.evaluations=6"],
}
ENCODERS = ("minilm", "mpnet", "taught")  # English ones
EXTRA: dict[str, list[str]] = {
    "thucnews_lstm": ["train.epochs=6", "model.token_dropout=0"],
    "reuters8_minilm": ["train.epochs=3"],
    "reuters52_minilm": ["train.epochs=12", "train.learning_rate=2e-4"],
    "newsgroups20_minilm": ["train.epochs=4", "model.max_tokens=256"],
}
JOBS = [f"{data}_{model}" for data in DATA for model in MODELS if data != "thucnews" or model not in ENCODERS]
BY_DEFAULT = [job for job in JOBS if not job.endswith(("_mpnet", "_taught"))]


def flags(data: str, where: Path) -> list[str]:
    """What names a data set on the command line."""
    if data != "thucnews":
        return ["--dataset", data]
    files = [f"--{flag}={where / 'thucnews' / name}.txt" for flag, name in
             (("data", "train"), ("validation", "dev"), ("test", "test"))]  # fmt: skip
    sets = ["data.format=tsv", "data.columns=text,label", f"data.labels={THUCNEWS}", "data.extra_rules=width"]
    return [*files, *(word for item in sets for word in ("--set", item))]


def once(
    job: str, seed: int, where: Path, storage: Path, log: Path, rows: int | None, mpnet: Path | None
) -> dict[str, Any]:
    """Train and evaluate one job with one seed."""
    data, model = job.rsplit("_", 1)
    sets = [*MODELS[model], *EXTRA.get(job, []), f"seed={seed}", *([f"train.max_rows={rows}"] if rows else [])]
    name = f"{job}-{seed}"
    if model == "taught":
        sets.append(f"train.teacher={storage / f'{data}_mpnet-{seed}'}")
    model = {"taught": "minilm", "mpnet": str(mpnet)}.get(model, model)
    binary = str(Path(sys.executable).with_name("broadsheet"))
    command = [binary, "train", "--full", "--name", name, "--storage", str(storage), "--model", model]
    command += [*flags(data, where), *(word for item in sets for word in ("--set", item))]
    began = time.monotonic()
    with log.open("a") as out:
        for words in (command, [binary, "evaluate", str(storage / name), "--name", name, "--storage", str(storage)]):
            if subprocess.run(words, stdout=out, stderr=out, check=False).returncode:
                sys.exit(f"{' '.join(words)} failed:\n{log.read_text()[-2000:]}")
    found = json.loads((storage / name / "metrics.json").read_text())
    return {
        "job": job, "seed": seed, "settings": [s for s in sets if not s.startswith("train.teacher=")],
        "accuracy": found["test"]["accuracy"],
        "macro_f1": found["test"]["macro_f1"], "validation_accuracy": found["validation"]["accuracy"],
        "trained_on": found["rows"]["trained_on"], "test_rows": found["test"]["rows"],
        "train_s": round(found["training"]["seconds"], 1), "all_s": round(time.monotonic() - began, 1),
        "right": right(storage / name),
    }  # fmt: skip


def right(run: Path) -> str:
    """Which test rows came out right, one character a row in the order of their ids."""
    table = pq.read_table(run / "predictions.parquet", columns=["id", "label", "predicted"]).sort_by("id")
    return "".join(
        "01"[a == b] for a, b in zip(table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True)
    )


def summary(runs: list[dict[str, Any]], job: str) -> dict[str, Any]:
    """Mean and interval in points, and the comparison with the linear model of the same data."""
    mine = sorted((r for r in runs if r["job"] == job), key=lambda r: r["seed"])
    points = [100 * r["accuracy"] for r in mine]
    found: dict[str, Any] = {
        "mean": round(statistics.mean(points), 2), "seeds": len(points), "trained_on": mine[0]["trained_on"],
        "macro_f1": round(100 * statistics.mean(r["macro_f1"] for r in mine), 2),
    }  # fmt: skip
    if len(points) > 1 and statistics.stdev(points):
        half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
        found["interval"] = [round(found["mean"] - half, 2), round(found["mean"] + half, 2)]
    linear = next((r for r in runs if r["job"] == f"{job.rsplit('_', 1)[0]}_linear"), None)
    if linear is not None and linear["job"] != job and len(linear["right"]) == len(mine[0]["right"]):
        pairs = list(zip(mine[0]["right"], linear["right"], strict=True))
        ours, theirs = pairs.count(("1", "0")), pairs.count(("0", "1"))
        p = stats.binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
        found["against_linear"] = {"only_this_right": ours, "only_linear_right": theirs, "mcnemar_p": float(f"{p:.3g}")}
    return found


def main() -> None:
    """Run, print the means, write the JSON after every run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(BY_DEFAULT), help="jobs, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="500 training rows, one seed")
    parser.add_argument("--list", action="store_true", help="name the jobs")
    parser.add_argument("--storage", type=Path, help="a folder that keeps the runs; else they are thrown away")
    parser.add_argument("--mpnet", type=Path, help="the folder of all-mpnet-base-v2")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(JOBS))
        return
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(JOBS)):
        sys.exit(f"--only: no job is called {unknown[0]}; --list names them")
    if arguments.mpnet is None and any(job.endswith("_mpnet") for job in wanted):
        sys.exit("--mpnet: name the folder of all-mpnet-base-v2")
    where = Path(
        os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news, thucnews")
    )
    runs: list[dict[str, Any]] = []
    if arguments.out.exists() and not arguments.quick:
        runs = json.loads(arguments.out.read_text())["runs"]
    with tempfile.TemporaryDirectory(prefix="quality-") as temporary:
        storage = arguments.storage or Path(temporary) / "runs"
        for job in wanted:
            for seed in range(1, 2 if arguments.quick else arguments.seeds + 1):
                if any((r["job"], r["seed"]) == (job, seed) for r in runs):
                    continue
                rows = 500 if arguments.quick else None
                runs.append(
                    once(job, seed, where, storage, Path(temporary) / f"{job}-{seed}.log", rows, arguments.mpnet)
                )
                print({k: v for k, v in runs[-1].items() if k != "right"}, flush=True)
                found = {name: summary(runs, name) for name in JOBS if any(r["job"] == name for r in runs)}
                means = {name: one["mean"] for name, one in found.items()}
                write({**machine(), "quick": arguments.quick, "summary": found, "runs": runs, "ratios": means},
                      arguments.out)  # fmt: skip


if __name__ == "__main__":
    main()
