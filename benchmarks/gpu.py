"""How fast the training loop is on the device at hand, and how much of the device it uses.

    BROADSHEET_DATA=... python benchmarks/gpu.py [--quick] [--out FILE]

Takes our optimiser steps on token batches of AG News' own lengths, for MiniLM and for an encoder of BERT-base's size
(random weights: speed does not depend on them), and reports real tokens per second (padding does not count) and
model-FLOP utilisation: the FLOPs that the real tokens need, over what a plain matrix product reaches on the same device
in the same precision. Runs anywhere; without a GPU it says what the processor does, and names the device in the JSON.

A step's FLOPs per token: 6 for each weight of the encoder's matrices (2 forward, 4 backward), and 12 x width x length
of the row for the attention's two products (Kaplan et al., 2020, section 2.1). The embedding table is looked up, not
multiplied. What the loop leaves out of the last layer (see pipeline/model/first_token.py) counts as done.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from measure import RESULTS, machine, write
from transformers import AutoConfig, AutoModelForSequenceClassification

from pipeline.data.clean import clean_column
from pipeline.data.prepared import Tokens
from pipeline.data.tokenize import TextTokenizer
from pipeline.model.build import attention
from pipeline.model.first_token import last_layer_of_one_token
from pipeline.model.source import resolve
from pipeline.train import batches, recipe
from pipeline.train.loop import Loop, autocast, precision

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
EPOCH_ROWS = 120_000  # the official training set


def rows_of(data: Path, count: int) -> Tokens:
    """AG News as training sees it."""
    table = pq.read_table(data / "ag_news/train.parquet", columns=["text", "label"]).slice(0, count)
    folder = resolve("minilm").folder
    assert folder is not None
    ids, _ = TextTokenizer(folder, 128).encode(clean_column(table["text"].combine_chunks()).to_pylist())
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    return Tokens(np.concatenate(ids), offsets, table["label"].to_numpy().astype(np.int64))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: torch.device, kind: str) -> float:
    """What a square matrix product reaches, FLOP/s, the best of several."""
    n = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def flops(network: Any, lengths: np.ndarray) -> float:
    """What one step needs for rows of these lengths."""
    config = network.config
    matrices = sum(p.numel() for n, p in network.named_parameters() if ".layer." in n and p.ndim == 2)
    each = 12 * config.num_hidden_layers * config.hidden_size * (lengths.astype(np.float64) ** 2).sum()
    return float(6 * matrices * lengths.sum() + each)


def measure(size: str, tokens: Tokens, device: torch.device, steps: int, batch_tokens: int, compiled: bool) -> Any:
    """Steps on one network."""
    folder = resolve("minilm").folder
    assert folder is not None
    more = {**({} if size == "minilm" else BASE), "num_labels": 4, "hidden_dropout_prob": 0.0}
    config = AutoConfig.from_pretrained(folder, **more, attention_probs_dropout_prob=0.0)
    network: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention()).to(device)
    last_layer_of_one_token(network)
    kind, why = precision("auto", device, "bert")
    model = torch.compile(network, dynamic=True) if compiled else network
    optimizer = recipe.optimizer_for(network, 1e-4, 0.01)
    loop = Loop(model, optimizer, tokens, 0, device, kind, 1.0, 1)
    plan = batches.Plan(tokens.lengths, batch_tokens, 1000, 1)
    warm = 3
    done, needed = 0, 0.0
    for step in range(steps + warm):
        if step == warm:
            wait(device)
            began = time.perf_counter()
        rows = plan.batch(step)[1]
        loop.step(step, rows, 1e-4)
        if step >= warm:
            done += int(tokens.lengths[rows].sum())
            needed += flops(network, tokens.lengths[rows])
    wait(device)
    seconds = time.perf_counter() - began
    with autocast(kind, device):
        reached = peak_flops(device, kind)
    epoch = EPOCH_ROWS * float(tokens.lengths.mean()) / (done / seconds)
    return {
        "model": size, "compiled": compiled, "precision": f"{kind} ({why})", "batch_tokens": batch_tokens,
        "steps": steps,        "tokens_per_s": round(done / seconds), "mfu": round(needed / seconds / reached, 3),
        "matmul_tflops": round(reached / 1e12, 3), "epoch_120k_rows_s": round(epoch, 1),
    }  # fmt: skip


def main() -> None:
    """Run, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="2 steps of MiniLM")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"no GPU: {torch.get_num_threads()} threads of the processor"
    print(name, flush=True)
    tokens = rows_of(data, 60_000 if on_gpu else 4_000)
    sizes = ("minilm",) if arguments.quick else ("minilm", "base")
    steps = 2 if arguments.quick else 60 if on_gpu else 5
    runs = []
    for size in sizes:
        for compiled in (False, True) if on_gpu else (False,):
            runs.append(measure(size, tokens, device, steps, 65_536 if on_gpu else 2_048, compiled))
            print(runs[-1], flush=True)
    best = {size: max((r for r in runs if r["model"] == size), key=lambda r: r["tokens_per_s"]) for size in sizes}
    ratios = {f"mfu_{size}": one["mfu"] for size, one in best.items()}
    ratios |= {f"epoch_s_{size}": one["epoch_120k_rows_s"] for size, one in best.items()}
    write({**machine(), "device": name, "quick": arguments.quick, "runs": runs, "ratios": ratios}, arguments.out)


if __name__ == "__main__":
    main()
