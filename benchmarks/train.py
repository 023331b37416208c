"""Fine-tuning against the Hugging Face Trainer: the same model, rows, epochs, threads and rate, in one run.

    BROADSHEET_DATA=... python benchmarks/train.py [--sides a,b] [--quick] [--rows N] [--out FILE]

Five sides, each in a process of its own, in turn: the Trainer as it comes (fp32, every row padded to 128 tokens), the
Trainer tuned (bf16 where the processor computes in it, padded to the longest row of the batch, rows of like length
together), our loop without Ray on two threads, the same under Ray Train as one worker of two cores, and as two DDP
workers of one. Samples per second are those of the steps: start-up, loading and scoring are left out on every side.
The speed of a shared machine changes meanwhile: the sides of a round are compared with each other, every second round
goes backwards, and the median of the rounds' ratios counts.
Needs ``accelerate``, which the Trainer asks for, beside the project's own requirements.
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

import numpy as np
import torch
from measure import RESULTS, machine, write

from pipeline.config import Config, load
from pipeline.data import named, prepare
from pipeline.data.prepared import Prepared, Tokens
from pipeline.model import build, source
from pipeline.train import batches, recipe, trainer
from pipeline.train.loop import Loop, precision
from pipeline.train.worker import sampled

SIDES = ("stock", "tuned", "bare", "ray", "ddp2")
THREADS, MAX_TOKENS, BATCH_ROWS = 2, 128, 32
CPU = torch.device("cpu")


def config_of(folder: Path, data: Path, rows: int, side: str) -> Config:
    """The default recipe on a sample of AG News, one epoch; one evaluation, of a few rows, at the end."""
    flags = {
        "storage": str(folder), "name": side, "data.train": (str(data / "ag_news/train.parquet"),),
        "data.test": (str(data / "ag_news/test.parquet"),), "train.max_rows": rows, "train.epochs": 1.0,
        "train.evaluations": 1, "train.validation_rows": 8, "data.profile_rows": 0,
    }  # fmt: skip
    layout = {"ray": (1, 2), "ddp2": (2, 1)}.get(side, (1, 1))
    return load(None, [], {**flags, "train.workers": layout[0], "train.cpus_per_worker": layout[1]})


def of_the_trainer(tokens: Tokens, labels: list[str], config: Config, tuned: bool, folder: Path) -> tuple[Any, float]:
    """Fine-tune with the Trainer; the model, and the seconds its steps took."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    where = source.resolve("minilm").folder
    assert where is not None
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=len(labels))
    rows = [
        {"input_ids": tokens.ids[a:b].tolist(), "label": int(y)}
        for a, b, y in zip(tokens.offsets[:-1], tokens.offsets[1:], tokens.labels, strict=True)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        how: dict[str, Any] = {"padding": True} if tuned else {"padding": "max_length", "max_length": MAX_TOKENS}
        padded = tokenizer.pad({"input_ids": [r["input_ids"] for r in batch]}, return_tensors="pt", **how)
        return {**padded, "labels": torch.tensor([r["label"] for r in batch])}

    settings = TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH_ROWS, report_to="none",
        learning_rate=trainer.DEFAULT_RATE["transformer"], warmup_steps=config.train.warmup, seed=config.seed,
        weight_decay=config.train.weight_decay, save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_steps=10**6, bf16=tuned and precision("auto", CPU, "bert")[0] == "bf16", dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length" if tuned else "random", remove_unused_columns=False,
    )  # fmt: skip
    done = Trainer(model=model, args=settings, train_dataset=rows, data_collator=collate).train()  # type: ignore[arg-type]
    return model, float(done.metrics["train_runtime"])


def bare(tokens: Tokens, labels: list[str], config: Config, pad_id: int) -> tuple[Any, float]:
    """Our loop in this process, without Ray; the model, and the seconds its steps took."""
    network = build.initial(config, source.resolve("minilm"), labels, 0, pad_id)
    settings, peak = config.train, trainer.DEFAULT_RATE["transformer"]
    optimizer = recipe.optimizer_for(network, peak, settings.weight_decay, settings.layer_decay)
    kind, _ = precision(settings.precision, CPU, "bert")
    loop = Loop(network, optimizer, tokens, pad_id, CPU, kind, settings.clip_norm, config.seed)
    plan = batches.Plan(tokens.lengths, settings.batch_tokens, settings.epochs, config.seed)
    began = time.monotonic()
    for step in range(plan.steps):
        loop.step(step, plan.batch(step)[1], batches.learning_rate_at(step, plan.steps, peak, settings.warmup))
    return network, time.monotonic() - began


def on_ray(prepared: Prepared, config: Config) -> tuple[Any, float]:
    """``broadsheet train``; the model, and the seconds its steps took."""
    done = trainer.train(config, prepared, source.resolve("minilm"), None, None)
    return build.load(str(done.checkpoint)), float(done.history[-1]["seconds"])


def side(name: str, folder: Path, data: Path, rows: int, test_rows: int) -> dict[str, Any]:
    """Train one side and score it on test rows, all sides by the same code."""
    torch.set_num_threads(THREADS)
    config = named.resolve(config_of(folder, data, rows, name))[0]
    prepared, _ = prepare.prepare(config, source.resolve("minilm"))
    pad_id = prepared.manifest["tokenizer"]["pad_id"]
    train = sampled(prepared.tokens("train"), rows, config.seed)
    if name in ("stock", "tuned"):
        model, seconds = of_the_trainer(train, prepared.labels, config, name == "tuned", folder / name)
    elif name == "bare":
        model, seconds = bare(train, prepared.labels, config, pad_id)
    else:
        model, seconds = on_ray(prepared, config)
    test = sampled(prepared.tokens("test"), test_rows, 0)
    kind, _ = precision("auto", CPU, "bert")
    scorer = Loop(model, torch.optim.SGD(model.parameters()), test, pad_id, CPU, kind, 1.0, 0)
    confusion, _ = scorer.evaluate(test, 8192, len(prepared.labels))
    right = float(confusion.diagonal().sum() / confusion.sum())
    rate = round(len(train) / seconds, 2)
    return {"side": name, "rows": len(train), "seconds": round(seconds, 2), "samples_per_s": rate, "accuracy": right}


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="128 rows, once")
    parser.add_argument("--sides", default=",".join(SIDES), help="some of them, with commas")
    parser.add_argument("--rows", type=int, default=2_000, help="training rows")
    parser.add_argument("--repeats", type=int, default=2, help="times each side runs, in turn")
    parser.add_argument("--test-rows", type=int, default=4_000, help="that the trained models are scored on")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one side, in its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    rows, test_rows, repeats = arguments.rows, arguments.test_rows, arguments.repeats
    if arguments.quick:
        rows, test_rows, repeats = 128, 200, 1
    if arguments.side:
        (arguments.folder / f"{arguments.side}.json").write_text(
            json.dumps(side(arguments.side, arguments.folder, data, rows, test_rows))
        )
        return
    raw: list[dict[str, Any]] = []
    sides = arguments.sides.split(",")
    if unknown := sorted(set(sides) - set(SIDES)):
        sys.exit(f"--sides: {unknown[0]} is none of {', '.join(SIDES)}")
    for turn in range(repeats):
        for name in sides[:: -1 if turn % 2 else 1]:
            with tempfile.TemporaryDirectory(prefix="train-") as temporary:
                command = [sys.executable, __file__, "--side", name, "--folder", temporary, "--rows", str(rows)]
                command += ["--test-rows", str(test_rows)]
                done = subprocess.run(
                    [*command, *(["--quick"] if arguments.quick else [])], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
                raw.append({"round": turn, **json.loads((Path(temporary) / f"{name}.json").read_text())})
            print(raw[-1], flush=True)

    def ratio(ours: str, theirs: str) -> float:
        rates = {(r["round"], r["side"]): r["samples_per_s"] for r in raw}
        return round(statistics.median(rates[k, ours] / rates[k, theirs] for k in range(repeats)), 3)

    accuracy = {s: round(100 * float(np.mean([r["accuracy"] for r in raw if r["side"] == s])), 2) for s in sides}
    pairs = {"vs_trainer_stock": ("bare", "stock"), "vs_trainer_tuned": ("bare", "tuned"),
             "ray_vs_bare": ("ray", "bare"), "ddp2_vs_single": ("ddp2", "ray")}  # fmt: skip
    import accelerate
    import transformers

    result = {
        **machine(),
        "peer": f"transformers {transformers.__version__} Trainer, accelerate {accelerate.__version__}",
        "precision": precision("auto", CPU, "bert"),
        "quick": arguments.quick,
        "test_rows": test_rows,
        "runs": raw,
        "accuracy": accuracy,
        "ratios": {name: ratio(*pair) for name, pair in pairs.items() if set(pair) <= set(sides)},
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
