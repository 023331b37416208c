"""The default job from raw files to a served answer, and the same command again: seconds, accuracy, memory.

    python benchmarks/end_to_end.py [--quick] [--out FILE] [-- flags of 'broadsheet run']

It runs ``broadsheet run`` twice in a fresh folder, as a user would, and samples the memory of everything the
command starts. ``--quick`` trains on 1,000 rows. There is no peer here: nothing else does the whole loop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def tree_bytes(root: int) -> int:
    """Proportional memory (PSS, so that shared pages count once) of a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        pid, parent = int(text.split(" ", 1)[0]), int(text.rsplit(")", 1)[1].split()[1])
        parents.setdefault(parent, []).append(pid)
    total, queue = 0, [root]
    while queue:
        pid = queue.pop()
        queue += parents.get(pid, [])
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def timed(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command; its seconds and the peak memory of its process tree, sampled every second."""
    peak = 0
    over = threading.Event()
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

        def watch() -> None:
            nonlocal peak
            while not over.wait(1.0):
                peak = max(peak, tree_bytes(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        code = process.wait()
    seconds = time.monotonic() - began
    over.set()
    watcher.join()
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return {"seconds": round(seconds, 1), "peak_memory_gb": round(peak / 1e9, 2)}


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


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="train on 1,000 rows")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "end_to_end.json")
    parser.add_argument("flags", nargs="*", help="flags of 'broadsheet run', after --")
    arguments = parser.parse_args()
    flags = [*arguments.flags, *(["--set", "train.max_rows=1000"] if arguments.quick else [])]
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as temporary:
        folder = Path(temporary)
        binary = Path(sys.executable).with_name("broadsheet")
        command = [str(binary), "run", "--storage", str(folder / "runs"), *flags]
        first = timed(command, folder / "first.log")
        second = timed(command, folder / "second.log")
        figures = json.loads((folder / "runs" / "default" / "metrics.json").read_text())
        ledger = json.loads((folder / "runs" / "default" / "data.json").read_text())["ledger"]
    result = {
        **machine(),
        "flags": flags,
        "dataset": figures["dataset"],
        "rows": {**figures["rows"], "read": ledger["read"]},
        "first_run": first,
        "second_run": second,
        "stages": figures["seconds"],
        "ratios": {
            "seconds_total": first["seconds"],
            "seconds_second_run": second["seconds"],
            "accuracy": round(figures["test"]["accuracy"], 4),
            "macro_f1": round(figures["test"]["macro_f1"], 4),
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
