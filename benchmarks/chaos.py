"""A command killed at random moments, again and again: does it end with the bytes of an undisturbed run?

    BROADSHEET_DATA=... python benchmarks/chaos.py [--stage prepare|train] [--quick] [--out FILE]

``prepare``: each round starts the command on AG News, on Ray, and sends SIGKILL, after a random time, to the command
itself or to one of the worker processes of its Ray (in turn). A killed command is started again, killed again while
kills are left, and so on; then it may finish. The prepared folder is compared byte by byte.

``train``: one training of the LSTM on AG News; training workers, the command and the raylet (the whole Ray node) get
SIGKILL in turn, each a random time after steps are being taken. A command that ended is typed again. The final weights
are compared; every step is counted, so that what was repeated is known.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import RESULTS, descendants, machine, write

BINARY = str(Path(sys.executable).with_name("broadsheet"))
BETWEEN_SECONDS = (1.0, 5.0)  # from the first step of an attempt to the next kill
PATIENCE = 300.0  # seconds in which a killed training must have come back


def digest(storage: Path) -> str:
    """One hash over names and bytes of the finished prepared folder."""
    (manifest,) = (storage / "prepared").glob("*/manifest.json")
    total = hashlib.blake2b()
    for file in sorted(p for p in manifest.parent.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(manifest.parent)}\0".encode() + file.read_bytes())
    return total.hexdigest()


def processes(root: int, wanted: Callable[[bytes], bool]) -> list[int]:
    """The descendants of a process whose command line is wanted."""
    found = []
    for pid in descendants(root):
        try:
            if wanted(Path(f"/proc/{pid}/cmdline").read_bytes()):
                found.append(pid)
        except OSError:
            continue
    return found


def worker(name: bytes) -> bool:
    """Whether this is the command line of a Ray worker; with an agent the raylet dies, and so the node."""
    return name.startswith(b"ray::") and b"Agent" not in name


def prepare(data: Path, left: int, generator: random.Random, temporary: Path, log: Any) -> dict[str, Any]:
    """Kill ``broadsheet prepare``; returns the figures."""
    train, test = data / "ag_news/train.parquet", data / "ag_news/test.parquet"
    rows: list[dict[str, Any]] = []

    def command(name: str) -> list[str]:
        return [BINARY, "prepare", "--data", str(train), "--test", str(test), "--set", "data.shard_mb=2",
                "--set", "data.in_process_mb=0", "--storage", f"{temporary}/{name}"]  # fmt: skip

    began = time.monotonic()
    subprocess.run(command("calm"), stdout=log, stderr=log, check=True)
    whole = time.monotonic() - began
    rough = temporary / "rough"
    finished = 0
    while left:
        process = subprocess.Popen(command("rough"), stdout=log, stderr=log)
        target, after = ("driver", "worker")[left % 2], generator.uniform(2.0, whole)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            victims = [process.pid]
            if target == "worker":  # Ray may still be starting
                while not (victims := processes(process.pid, worker)) and process.poll() is None:
                    time.sleep(0.1)
            if victims:
                os.kill(generator.choice(victims), signal.SIGKILL)
                left -= 1
                rows.append({"target": target, "after_s": round(after, 2)})
                print(rows[-1], flush=True)
        code = process.wait()
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"it ended with {code}:\n{(temporary / 'log').read_text()[-3000:]}")
        if code == 0:
            finished += 1
            rows.append({"finished": finished, "equal": digest(rough) == digest(temporary / "calm")})
            if left:  # begin from nothing again
                subprocess.run(["rm", "-rf", str(rough)], check=True)
    if not rough.exists() or not list(rough.glob("prepared/*/manifest.json")):
        subprocess.run(command("rough"), stdout=log, stderr=log, check=True)
        rows.append({"finished": finished + 1, "equal": digest(rough) == digest(temporary / "calm")})
    ends = [r["equal"] for r in rows if "equal" in r]
    return {
        "undisturbed_s": round(whole, 1),
        "kills": sum("target" in r for r in rows),
        "events": rows,
        "ratios": {"outputs_equal_prepare": sum(ends) / len(ends)},
    }


def counted(trace: str, arguments: Sequence[str]) -> None:
    """Be the command, with every step of rank 0 noted in a file."""
    import broadsheet
    from pipeline.train import seat

    def train_worker(job: dict[str, Any]) -> None:  # sent to the workers by value
        from pipeline.train.loop import Loop
        from pipeline.train.seat import train_worker as original

        step = Loop.step

        def noted(self: Any, number: int, *rest: Any, **more: Any) -> Any:
            result = step(self, number, *rest, **more)
            if self.rank == 0:
                with open(trace, "a") as f:
                    f.write(f"{number + 1}\n")
            return result

        Loop.step = noted  # type: ignore[method-assign]
        original(job)

    seat.train_worker = train_worker
    sys.argv = ["broadsheet", *arguments]
    broadsheet.main()


def train(data: Path, left: int, generator: random.Random, temporary: Path, log: Any) -> dict[str, Any]:
    """Kill workers, driver and raylet of one ``broadsheet train``; returns the figures."""
    kinds: dict[str, Callable[[bytes], bool]] = {
        "worker": lambda name: name.startswith(b"ray::RayTrainWorker"),
        "driver": lambda name: False,
        "raylet": lambda name: name.split(b"\0", 1)[0].endswith(b"/raylet"),
    }

    def steps(name: str) -> list[int]:
        trace = temporary / f"{name}.steps"
        return [int(line) for line in trace.read_text().split()] if trace.exists() else []

    def command(name: str) -> list[str]:
        sets = ["train.max_rows=3000", "train.epochs=12", "train.batch_tokens=1024", "train.workers=2",
                "train.evaluations=4", "train.checkpoint_seconds=2", "model.hidden=[32]",
                f"storage={temporary}/runs"]  # fmt: skip
        own = [sys.executable, __file__, "--counted", str(temporary / f"{name}.steps")]
        return [*own, "train", "--data", str(data / "ag_news/train.parquet"), "--model", "lstm", "--name", name,
                *(word for item in sets for word in ("--set", item))]  # fmt: skip

    def weights(name: str) -> bytes:
        return (temporary / f"runs/{name}/checkpoint/model.safetensors").read_bytes()

    began = time.monotonic()
    subprocess.run(command("calm"), stdout=log, stderr=log, check=True)
    whole = time.monotonic() - began
    total = len(steps("calm"))
    events: list[dict[str, Any]] = []
    kills, orphans = left, set[int]()
    process = subprocess.Popen(command("rough"), stdout=log, stderr=log)
    while left:
        done, until = len(steps("rough")), time.monotonic() + PATIENCE
        while len(steps("rough")) == done and process.poll() is None:
            if time.monotonic() > until:
                sys.exit(f"no step within {PATIENCE:.0f} s:\n{(temporary / 'log').read_text()[-3000:]}")
            time.sleep(0.05)
        after = generator.uniform(*BETWEEN_SECONDS)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            target = list(kinds)[left % len(kinds)]
            victims = [process.pid] if target == "driver" else processes(process.pid, kinds[target])
            orphans |= set(descendants(process.pid))
            if victims:
                os.kill(generator.choice(victims), signal.SIGKILL)
                left -= 1
                events.append({"target": target, "after_s": round(after, 2), "step": max(steps("rough"))})
            if target == "worker":
                continue
        if process.wait(PATIENCE) == 0:
            break
        process = subprocess.Popen(command("rough"), stdout=log, stderr=log)
    code = process.wait()
    while code != 0 and events and time.monotonic() - began < 20 * whole:
        code = subprocess.run(command("rough"), stdout=log, stderr=log).returncode
    for pid in orphans:  # of Rays whose driver was killed, if they are still there
        if processes(pid, lambda name: b"ray" in name):
            os.kill(pid, signal.SIGKILL)
    taken = steps("rough")
    again = [a - b + 1 for a, b in pairwise(taken) if b <= a]
    return {
        "undisturbed_s": round(whole, 1),
        "steps": total,
        "kills": kills - left,
        "events": events,
        "steps_taken": len(taken),
        "steps_repeated": again,
        "ratios": {
            "outputs_equal_train": float(code == 0 and weights("rough") == weights("calm")),
            "steps_repeated": len(taken) / total - 1,
        },
    }


def main() -> None:
    """Run, print the ratios, write the JSON."""
    if sys.argv[1:2] == ["--counted"]:
        counted(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--stage", choices=("prepare", "train"), default="prepare")
    parser.add_argument("--quick", action="store_true", help="4 kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    stage, kills = {"prepare": (prepare, 20), "train": (train, 10)}[arguments.stage]
    out = arguments.out or RESULTS / {"prepare": "chaos.json", "train": "chaos_train.json"}[arguments.stage]
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary, (Path(temporary) / "log").open("w") as log:
        generator = random.Random(arguments.seed)
        result = stage(data, 4 if arguments.quick else kills, generator, Path(temporary), log)
        write({**machine(), **result}, out)


if __name__ == "__main__":
    main()
