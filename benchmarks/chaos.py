"""``broadsheet prepare`` killed at random moments, again and again: does it end with the bytes of an undisturbed run?

    BROADSHEET_DATA=... python benchmarks/chaos.py [--quick] [--out FILE]

Each round starts the command on AG News, on Ray, and sends SIGKILL, after a random time, to the command itself or to
one of the worker processes of its Ray (in turn). A killed command is started again, killed again while kills are left,
and so on; then it may finish. The prepared folder is compared byte by byte.
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
from pathlib import Path
from typing import Any

from measure import RESULTS, descendants, machine, write


def digest(storage: Path) -> str:
    """One hash over names and bytes of the finished prepared folder."""
    (manifest,) = (storage / "prepared").glob("*/manifest.json")
    total = hashlib.blake2b()
    for file in sorted(p for p in manifest.parent.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(manifest.parent)}\0".encode() + file.read_bytes())
    return total.hexdigest()


def workers(root: int) -> list[int]:
    """The Ray worker processes among the descendants of a process."""
    found = []
    for pid in descendants(root):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if name.startswith(b"ray::") and b"Agent" not in name:  # with an agent the raylet dies, and so the node
                found.append(pid)
        except OSError:
            continue
    return found


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="4 kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    arguments = parser.parse_args()
    data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    generator = random.Random(arguments.seed)
    binary = str(Path(sys.executable).with_name("broadsheet"))
    train, test = data / "ag_news/train.parquet", data / "ag_news/test.parquet"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:

        def command(name: str) -> list[str]:
            return [binary, "prepare", "--data", str(train), "--test", str(test), "--set", "data.shard_mb=2",
                    "--set", "data.in_process_mb=0", "--storage", f"{temporary}/{name}"]  # fmt: skip

        with (Path(temporary) / "log").open("w") as log:
            began = time.monotonic()
            subprocess.run(command("calm"), stdout=log, stderr=log, check=True)
            whole = time.monotonic() - began
            left = 4 if arguments.quick else 20
            rough = Path(temporary) / "rough"
            finished = 0
            while left:
                process = subprocess.Popen(command("rough"), stdout=log, stderr=log)
                target, after = ("driver", "worker")[left % 2], generator.uniform(2.0, whole)
                try:
                    process.wait(after)
                except subprocess.TimeoutExpired:
                    victims = [process.pid] if target == "driver" else workers(process.pid)
                    if victims:
                        os.kill(generator.choice(victims), signal.SIGKILL)
                        left -= 1
                        rows.append({"target": target, "after_s": round(after, 2)})
                code = process.wait()
                if code not in (0, -signal.SIGKILL):
                    sys.exit(f"it ended with {code}:\n{(Path(temporary) / 'log').read_text()[-3000:]}")
                if code == 0:
                    finished += 1
                    rows.append({"finished": finished, "equal": digest(rough) == digest(Path(temporary) / "calm")})
                    if left:  # begin from nothing again
                        subprocess.run(["rm", "-rf", str(rough)], check=True)
            if not rough.exists() or not list(rough.glob("prepared/*/manifest.json")):
                subprocess.run(command("rough"), stdout=log, stderr=log, check=True)
                rows.append({"finished": finished + 1, "equal": digest(rough) == digest(Path(temporary) / "calm")})
    ends = [r["equal"] for r in rows if "equal" in r]
    result = {
        **machine(),
        "undisturbed_s": round(whole, 1),
        "kills": sum("target" in r for r in rows),
        "events": rows,
        "ratios": {"outputs_equal_prepare": sum(ends) / len(ends)},
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
