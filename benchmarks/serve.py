"""Requests a second and latencies of the endpoint, against two servers an engineer would write, in turn, in one run.

    BROADSHEET_DATA=... python benchmarks/serve.py [--checkpoint RUN] [--quick] [--out FILE]

The load comes from ``wrk`` (a package of every Linux), on the same cores: texts of the AG News test set, one a request
from 32 clients and from 1, and lists of 64. The sides: FastAPI with a transformers pipeline; FastAPI with ONNX Runtime
in 8 bits and fixed-size batches (both in ``rivals.py``); ``broadsheet serve`` with one replica per core. Beside
them stands what our engine does with no server in one process per core, cleaning and tokenizing included. Needs
``pip install 'broadsheet[onnx]'``. Without ``--checkpoint`` the short AG News job is trained first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from measure import RESULTS, machine, trained, write
from wrk import Wrk

sys.path.pop(0)  # this folder: ``serve`` is the package, not this file

from pipeline.config import ServeConfig
from pipeline.errors import WorkFailed
from pipeline.train import checkpoint as checkpoints
from serve.client import request
from serve.engine.load import load

HERE = Path(__file__).parent
CLIENTS, LIST = 32, 64


class Server:
    """One side, running while the context is open."""

    def __init__(self, command: list[str], url: str, log: Path) -> None:
        self.command, self.url, self.log = command, url, log

    def __enter__(self) -> Server:
        with self.log.open("w") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, start_new_session=True)
        until = time.monotonic() + 600
        while time.monotonic() < until:
            try:
                request(self.url, json.dumps({"inputs": "warm up"}).encode(), timeout=60)
                return self
            except WorkFailed:
                if self.process.poll() is not None:
                    break
                time.sleep(0.5)
        self.__exit__()
        sys.exit(f"{' '.join(self.command)} did not come up:\n{self.log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def in_process(found: str, cores: int) -> dict[str, float]:
    """Our engine with no server, in as many processes of one core as there are replicas: all texts at once in each
    (their sum), then in one of them lists of 64 and one by one."""
    command = [sys.executable, str(Path(__file__)), "--in-process", found]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(cores)
    ]
    told = [_ask(p, "") for p in processes]  # loaded and warm
    for p in processes:
        _send(p, "all")
    told = [_hear(p) for p in processes]
    few = _ask(processes[0], "few")
    for p in processes:
        _send(p, "end")
        p.wait()
    return {"per_s": round(sum(t["per_s"] for t in told), 1), **few}


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def _ask(process: subprocess.Popen[str], line: str) -> dict[str, float]:
    if line:
        _send(process, line)
    return _hear(process)


def alone(found: str, texts: list[str]) -> None:
    """What one of these processes does: what it is told to, line by line."""
    config = ServeConfig()
    engine, _ = load(found, config, lambda _: None)
    engine.logits(engine.encode(texts[:1]).ids)
    print("{}", flush=True)
    for line in sys.stdin:
        result: dict[str, float] = {}
        if line.strip() == "all":
            began = time.perf_counter()
            engine.all_logits(engine.encode(texts).ids, config.batch_tokens)
            result["per_s"] = len(texts) / (time.perf_counter() - began)
        elif line.strip() == "few":
            began = time.perf_counter()
            count = len(texts) // LIST * LIST
            for i in range(0, count, LIST):
                engine.all_logits(engine.encode(texts[i : i + LIST]).ids, config.batch_tokens)
            result["lists_per_s"] = round(count / (time.perf_counter() - began), 1)
            singles = []
            for text in texts[:100]:
                began = time.perf_counter()
                engine.logits(engine.encode([text]).ids)
                singles.append(1_000 * (time.perf_counter() - began))
            result["p50_ms"] = round(statistics.median(singles), 2)
        else:
            return
        print(json.dumps(result), flush=True)


def labels_of(url: str, texts: list[str]) -> list[str]:
    """The best label of each text, by HTTP."""
    return [request(url, json.dumps({"inputs": [t]}).encode())[0][0]["label"] for t in texts]


def main() -> None:
    """Run the sides in turn and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", help="a run or checkpoint folder of an AG News model")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--quick", action="store_true", help="3 s of each load, once")
    parser.add_argument("--in-process", metavar="CHECKPOINT", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    seconds, repeats = (3.0, 1) if arguments.quick else (arguments.seconds, arguments.repeats)
    texts = pq.read_table(where / "ag_news" / "test.parquet", columns=["text"])["text"].to_pylist()
    if arguments.in_process:
        alone(arguments.in_process, texts[:1_500])
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="serve-") as temporary:
        folder = Path(temporary)
        found = str(checkpoints.find(arguments.checkpoint or trained(folder / "runs")))
        cores = os.cpu_count() or 1
        engine, record = load(found, ServeConfig(), print)  # as a replica of one core does
        rival = [sys.executable, str(HERE / "rivals.py")]
        ours = [str(Path(sys.executable).with_name("broadsheet")), "serve", found, "--port", "8127"]
        ours += ["--set", f"serve.min_replicas={cores}", "--set", f"serve.max_replicas={cores}"]
        sides = {
            "pipeline": ([*rival, "pipeline", found, "8125"], "http://127.0.0.1:8125/classify"),
            "onnx": ([*rival, "onnx", found, "8126"], "http://127.0.0.1:8126/classify"),
            "ours": (ours, "http://127.0.0.1:8127/v1/classify"),
        }
        known = [engine.labels[int(i)] for i in engine.all_logits(engine.encode(texts[:200]).ids, 2048).argmax(1)]
        for turn in range(repeats):
            runs.append({"side": "in process", "turn": turn, **in_process(found, cores)})
            print(runs[-1], flush=True)
            for side, (command, url) in sides.items():
                with Server(command, url, folder / f"{side}.log"):
                    same = sum(a == b for a, b in zip(known, labels_of(url, texts[:200]), strict=True)) / 200
                    one = Wrk(url, texts)
                    lists = Wrk(url, [texts[i : i + LIST] for i in range(0, 3_200, LIST)])
                    one.run(CLIENTS, min(3.0, seconds))
                    run: dict[str, Any] = {"side": side, "turn": turn, "same_labels": same}
                    run["clients_32"] = one.run(CLIENTS, seconds)
                    run["client_1"] = one.run(1, seconds / 2)
                    run["lists_of_64"] = lists.run(1, seconds)
                    runs.append(run)
                    print(run, flush=True)

    def of(side: str, load_name: str, what: str) -> float:
        return statistics.median(r[load_name][what] for r in runs if r["side"] == side)

    bare = [r for r in runs if r["side"] == "in process"]
    per_s = of("ours", "clients_32", "per_s")
    ratios = {
        "vs_fastapi_pipeline_32": per_s / of("pipeline", "clients_32", "per_s"),
        "vs_tuned_rival_32": per_s / of("onnx", "clients_32", "per_s"),
        "of_in_process_32": per_s / statistics.median(r["per_s"] for r in bare),
        "p99_32_of_pipeline": of("ours", "clients_32", "p99_ms") / of("pipeline", "clients_32", "p99_ms"),
        "p99_32_of_tuned_rival": of("ours", "clients_32", "p99_ms") / of("onnx", "clients_32", "p99_ms"),
        "added_ms_p50_1": of("ours", "client_1", "p50_ms") - statistics.median(r["p50_ms"] for r in bare),
        "list64_of_in_process": LIST * of("ours", "lists_of_64", "per_s")
        / statistics.median(r["lists_per_s"] for r in bare),
        "failed": sum(r[name]["failed"] for r in runs if r["side"] == "ours"
                      for name in ("clients_32", "client_1", "lists_of_64")),
    }  # fmt: skip
    result = {
        **machine(), "quick": arguments.quick, "load": "wrk, one thread", "engine": engine.runs,
        "measured": [vars(m) for m in record.measured], "runs": runs,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }  # fmt: skip
    write(result, arguments.out)


if __name__ == "__main__":
    main()
