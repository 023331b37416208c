"""Few labelled rows with and without changed copies of them: test accuracy of a fine-tuned MiniLM on AG News.

    BROADSHEET_DATA=... python benchmarks/augment.py [--quick] [--out FILE]

For 25, 50 and 100 rows per class and each of three seeds (another draw of rows, another fresh head), three arms
are trained by the project's own step, in one process: ``none``, ``eda`` (delete, swap, typo) and ``neighbours``, the
last two with four copies of each row. Every arm takes equally many optimiser steps over batches of
equally many tokens at the same rates, so that copies do not win by training for longer. All are tested on the same
rows of the test set. Texts are cut at 64 tokens and the test rows are a sample, to end within half an hour on two cores
without bf16. There is no peer: the arm without copies is what to beat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from measure import RESULTS, machine, write

from pipeline.config import Config
from pipeline.data.augment import augmented
from pipeline.data.clean import clean_column
from pipeline.data.neighbours import Neighbours
from pipeline.data.prepared import Tokens
from pipeline.data.tokenize import TextTokenizer, pad_id
from pipeline.model import build, source
from pipeline.train import batches
from pipeline.train.loop import Loop, precision
from pipeline.train.recipe import optimizer_for

ARMS = {"none": (), "eda": ("delete", "swap", "typo"), "neighbours": ("neighbours",)}
LABELS = ("World", "Sports", "Business", "Sci/Tech")
COPIES, SHARE = 4, 0.1
MAX_TOKENS = 64
BATCH_TOKENS = 1024


def rows_of(file: Path) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """Cleaned texts and labels of a split."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["text", "label"]).combine_chunks()
    return table["text"].chunk(0), table["label"].to_numpy().astype(np.int64)


def tokens_of(texts: list[str], labels: npt.NDArray[np.int64], tokenizer: TextTokenizer) -> Tokens:
    """The rows as the training reads them."""
    ids, _ = tokenizer.encode_arrow(pa.array(texts, pa.string()))
    return Tokens(ids.values.to_numpy(), ids.offsets.to_numpy().astype(np.int64), labels)


def few(labels: npt.NDArray[np.int64], per_class: int, seed: int) -> npt.NDArray[np.int64]:
    """So many rows of each class; a larger draw of the same seed holds the smaller ones."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][:per_class] for k in range(len(LABELS))]))


def accuracy(train: Tokens, test: Tokens, steps: int, seed: int, model: source.ModelSource) -> float:
    """Fine-tune for ``steps`` steps by the default recipe; the share of test rows that are right."""
    assert model.folder is not None
    config = Config(seed=seed)
    recipe = config.train
    pad = pad_id(model.folder)
    network = build.initial(config, model, LABELS, 0, pad)
    device = torch.device("cpu")
    peak = recipe.learning_rate or 1e-4
    kind, _ = precision(recipe.precision, device, network.config.model_type)
    optimizer = optimizer_for(network, peak, recipe.weight_decay)
    loop = Loop(network, optimizer, train, pad, device, kind, recipe.clip_norm, seed)
    plan = batches.Plan(train.lengths, BATCH_TOKENS, steps, seed)  # an epoch has one batch or more: never too short
    for step in range(steps):
        _, rows = plan.batch(step)
        loop.step(step, rows, batches.learning_rate_at(step, steps, peak, recipe.warmup))
    confusion, _ = loop.evaluate(test, 4 * BATCH_TOKENS, len(LABELS))
    return float(confusion.diagonal().sum() / confusion.sum())


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="25 rows per class, one seed, 2 steps, 32 test rows")
    parser.add_argument("--steps", type=int, default=80, help="optimiser steps of every arm")
    parser.add_argument("--test-rows", type=int, default=1000, help="rows of the test set, a fixed sample")
    parser.add_argument("--out", type=Path, default=RESULTS / "augment.json")
    arguments = parser.parse_args()
    sizes: tuple[int, ...] = (25, 50, 100)
    seeds: tuple[int, ...] = (1, 2, 3)
    steps, test_rows = arguments.steps, arguments.test_rows
    if arguments.quick:
        sizes, seeds, steps, test_rows = (25,), (1,), 2, 32
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    torch.set_num_threads(2)
    model = source.resolve("minilm")
    assert model.folder is not None
    tokenizer = TextTokenizer(model.folder, MAX_TOKENS)
    began = time.monotonic()
    neighbours = Neighbours.of_model(model.folder)
    neighbours_seconds = time.monotonic() - began
    texts, labels = rows_of(data / "ag_news/train.parquet")
    test_texts, test_labels = rows_of(data / "ag_news/test.parquet")
    sample = batches.sample(test_labels, test_rows, 0)
    test = tokens_of(clean_column(test_texts.take(pa.array(sample))).to_pylist(), test_labels[sample], tokenizer)
    settings = {
        "copies": COPIES, "share": SHARE, "max_tokens": MAX_TOKENS, "batch_tokens": BATCH_TOKENS, "steps": steps,
        "test_rows": len(test),
    }  # fmt: skip
    raw: list[dict[str, Any]] = []
    if arguments.out.exists():  # a run takes a minute or more: what an earlier attempt has done is not done again
        before = json.loads(arguments.out.read_text())
        raw = before["runs"] if before["settings"] == settings else []

    def finished(arm: str, per_class: int) -> list[float]:
        return [r["accuracy"] for r in raw if (r["arm"], r["per_class"]) == (arm, per_class)]

    def mean(arm: str, per_class: int) -> float:
        return 100 * statistics.mean(finished(arm, per_class))

    def save() -> None:
        whole = [(a, n) for n in sizes for a in ARMS if len(finished(a, n)) == len(seeds)]
        ratios = {f"{arm}_{size}": round(mean(arm, size), 2) for arm, size in whole}
        ratios |= {
            f"gain_{arm}_{size}": round(mean(arm, size) - mean("none", size), 2)
            for arm, size in whole
            if arm != "none" and ("none", size) in whole
        }
        near = {"words": len(neighbours.words), "seconds": round(neighbours_seconds, 1)}
        facts = {"quick": arguments.quick, "settings": settings, "neighbours": near}
        write({**machine(), **facts, "runs": raw, "ratios": ratios}, arguments.out)

    for per_class in sizes:
        for seed in seeds:
            at = few(labels, per_class, seed)
            originals = clean_column(texts.take(pa.array(at))).to_pylist()
            ids = [f"train:{row}" for row in at]
            for arm, operations in ARMS.items():
                if any((r["arm"], r["per_class"], r["seed"]) == (arm, per_class, seed) for r in raw):
                    continue
                contents, classes = originals, labels[at]
                if operations:
                    rates = [float(COPIES)] * len(LABELS)
                    made = augmented(ids, originals, classes.tolist(), rates, operations, SHARE, seed, neighbours)
                    contents = originals + made.texts
                    classes = np.concatenate([classes, classes[made.sources]])
                train = tokens_of(contents, classes, tokenizer)
                began = time.monotonic()
                right = accuracy(train, test, steps, seed, model)
                seconds = round(time.monotonic() - began, 1)
                raw.append(
                    {
                        "arm": arm, "per_class": per_class, "seed": seed, "rows": len(contents),
                        "accuracy": round(right, 4), "seconds": seconds,
                    }
                )  # fmt: skip
                print(raw[-1], flush=True)
                save()


if __name__ == "__main__":
    main()
