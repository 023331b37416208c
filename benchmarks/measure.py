"""What every benchmark shares: run a command, watch its processes, say what machine it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Run:
    """One finished command.

    Attributes:
        seconds: wall clock, start-up included.
        peak_all: peak memory of all its processes together (PSS: shared pages count once), bytes.
        peak_one: peak memory of the largest process alone (PSS), bytes.
    """

    seconds: float
    peak_all: int
    peak_one: int


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, every: float = 0.5) -> Run:
    """Run a command to its end, sampling the memory of its process tree; leave when it fails.

    Args:
        command: program and arguments.
        log: where its output goes.
        environment: added to this process's own.
        every: seconds between samples.
    """
    peaks = [0, 0]
    over = threading.Event()
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            list(command), stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )

        def watch() -> None:
            while not over.wait(every):
                sizes = _tree(process.pid)
                peaks[0], peaks[1] = max(peaks[0], sum(sizes)), max(peaks[1], *sizes, 0)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        code = process.wait()
    seconds = time.monotonic() - began
    over.set()
    watcher.join()
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return Run(seconds, *peaks)


def descendants(root: int) -> list[int]:
    """A process and everything it started, by id."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        children.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(int(text.split(" ", 1)[0]))
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def _tree(root: int) -> list[int]:
    """The PSS of a process and of all its descendants, bytes each."""
    sizes = []
    for pid in descendants(root):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    sizes.append(int(line.split()[1]) * 1024)
        except OSError:
            continue
    return sizes


def trained(folder: Path, model: str = "minilm") -> str:
    """The short AG News job with this model, trained and evaluated."""
    binary = str(Path(sys.executable).with_name("broadsheet"))
    name = ["--name", "bench", "--storage", str(folder)]
    data = ["--dataset", "ag_news", "--model", model]
    for words in ([binary, "train", *name, *data], [binary, "evaluate", str(folder / "bench"), *name]):
        subprocess.run(words, check=True)
    return str(folder / "bench")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    from pipeline.train.checkpoint import versions

    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions(),
    }


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write the JSON and print the ratios last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"-> {out}")
    print(json.dumps(result["ratios"], indent=1))
