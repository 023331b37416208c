"""Texts a second against accuracy: the engine alone, and with the linear model in front of it at several thresholds.

    BROADSHEET_DATA=... python benchmarks/cascade.py [--checkpoint RUN] [--quick] [--out FILE]

All in this process, without a server, on all cores: cleaning, tokenizing, the linear model, and for what is left the
engine that serves. The sides take turns over the same texts of the AG News test set; accuracy is of all its rows, by
the answers of the same two models. ``broadsheet evaluate`` chose the threshold in use on validation rows; the others
stand on its curve. Without ``--checkpoint`` the short AG News job is trained first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure import RESULTS, machine, trained, write

sys.path.pop(0)  # this folder: ``serve`` is the package, not the benchmark

import torch

from pipeline.config import ServeConfig
from pipeline.evaluate import cascade_folder
from pipeline.evaluate.cascade import settled
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place
from pipeline.train import checkpoint as checkpoints
from serve.cascade import Cascade
from serve.cascade import load as load_cascade
from serve.engine.load import load

NAMES = ["World", "Sports", "Business", "Sci/Tech"]  # of the labels 0 to 3
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)  # of validation rows, on the curve
SINGLES = 300
TOGETHER = 100  # texts that a side answers before it is the next one's turn


def answers(engine: Any, cascade: Cascade | None, texts: list[str], batch_tokens: int) -> np.ndarray:
    """Best labels of the texts."""
    encoded = engine.encode(texts)
    if cascade is None:
        return engine.all_logits(encoded.ids, batch_tokens).argmax(1)
    done = cascade.settle(texts, encoded)
    left = done.left(encoded.ids)
    network = engine.probabilities(engine.all_logits(left, batch_tokens)) if left else None
    return done.completed(network).argmax(1)


def single_ms(engine: Any, cascade: Cascade, texts: list[str]) -> dict[str, float]:
    """Milliseconds of one text alone: reading it, the linear model, the engine."""
    spent: dict[str, list[float]] = {"read": [], "linear": [], "engine": []}
    for text in texts:
        marks = [time.perf_counter()]
        encoded = engine.encode([text])
        marks.append(time.perf_counter())
        cascade.settle([text], encoded)
        marks.append(time.perf_counter())
        engine.logits(encoded.ids)
        marks.append(time.perf_counter())
        for name, took in zip(spent, np.diff(marks), strict=True):
            spent[name].append(1_000 * float(took))
    return {
        **{f"{name}_p50": round(statistics.median(took), 3) for name, took in spent.items()},
        "linear_p99": round(float(np.quantile(spent["linear"], 0.99)), 3),
    }


def main() -> None:
    """Run the sides in turn and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", help="a run or checkpoint folder of an AG News model, evaluated")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--texts", type=int, default=1_000, help="of a side in a round")
    parser.add_argument("--quick", action="store_true", help="300 texts, once, accuracy of those only")
    parser.add_argument("--out", type=Path, default=RESULTS / "cascade.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    count, repeats = (300, 1) if arguments.quick else (arguments.texts, arguments.repeats)
    rows = pq.read_table(where / "ag_news" / "test.parquet", columns=["text", "label"])
    with tempfile.TemporaryDirectory(prefix="cascade-") as temporary:
        found = checkpoints.find(arguments.checkpoint or trained(Path(temporary, "runs")))
        cores = os.cpu_count() or 1
        _, engines = load(str(found), ServeConfig(), print)  # as a replica of one core does: the engine that serves
        config = ServeConfig(cpus_per_replica=cores, engine=engines.choice.batch)
        engine, _ = load(str(found), config, print)
        cascade, record = load_cascade(found, engine, Golden.load(found)), cascade_folder.read(Place.of(found))
    if cascade is None or record is None or record.threshold is None:
        sys.exit(f"{found} has no cascade: {record.reason if record else 'evaluate it first'}")
    torch.set_num_threads(cores)
    texts = rows["text"].to_pylist()[: count if arguments.quick else None]
    truth = np.array([engine.labels.index(NAMES[label]) for label in rows["label"].to_pylist()[: len(texts)]])

    encoded = engine.encode(texts)
    network = engine.probabilities(engine.all_logits(encoded.ids, config.batch_tokens))
    linear = cascade.linear.probabilities(cascade.logits(texts, encoded))
    thresholds = {
        f"share {share:g}": min(record.curve, key=lambda p: abs(p.share - share)).threshold for share in SHARES
    }
    thresholds["in use"] = record.threshold
    sides: dict[str, Cascade | None] = {"engine alone": None}
    sides |= {name: Cascade(cascade.linear, t, cascade.shares_tokens) for name, t in thresholds.items()}

    def of_all(side: Cascade | None) -> tuple[float, float]:
        """Share that the linear model answers, and accuracy."""
        sure = np.zeros(len(texts), bool) if side is None else settled(linear, side.threshold)
        best = np.where(sure[:, None], linear, network).argmax(1)
        return float(sure.mean()), float((best == truth).mean())

    few, runs = texts[:count], []
    expected = {name: answers(engine, side, few, config.batch_tokens) for name, side in sides.items()}  # and warm up
    for turn in range(repeats):
        spent, best = dict.fromkeys(sides, 0.0), {name: np.zeros(count, np.int64) for name in sides}
        for at in range(0, count, TOGETHER):  # by turns, so that whatever else the machine does hits them alike
            for name, side in sides.items():
                began = time.perf_counter()
                part = answers(engine, side, few[at : at + TOGETHER], config.batch_tokens)
                spent[name] += time.perf_counter() - began
                best[name][at : at + TOGETHER] = part
        for name, seconds in spent.items():
            same = float((best[name] == expected[name]).mean())
            runs.append({"side": name, "turn": turn, "seconds": round(seconds, 3), "per_s": round(count / seconds, 1),
                         "same_labels": same})  # fmt: skip
            print(runs[-1], flush=True)
    alone, exact = statistics.median(r["per_s"] for r in runs if r["side"] == "engine alone"), of_all(None)[1]
    curve = []
    for name, side in sides.items():
        share, accuracy = of_all(side)
        per_s = statistics.median(r["per_s"] for r in runs if r["side"] == name)
        threshold = None if side is None else round(side.threshold, 6)
        curve.append({"side": name, "threshold": threshold, "share": round(share, 4), "per_s": per_s,
                      "accuracy": round(accuracy, 4), "points": round(100 * (accuracy - exact), 2),
                      "speedup": round(per_s / alone, 3)})  # fmt: skip
        print(curve[-1], flush=True)
    single = single_ms(engine, cascade, texts[:SINGLES])
    ratios: dict[str, float] = {}
    for point in curve[1:]:
        key = point["side"].replace(" ", "_").replace(".", "")
        ratios |= {f"speedup_{key}": point["speedup"], f"points_{key}": point["points"], f"share_{key}": point["share"]}
    ratios |= {f"ms_{name}": value for name, value in single.items()}
    write(
        {
            **machine(), "quick": arguments.quick, "engine": engine.runs, "rows": len(texts), "texts_a_round": count,
            "threshold": record.threshold, "validation": record.figures()["validation"], "runs": runs, "curve": curve,
            "ratios": ratios,
        },
        arguments.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
