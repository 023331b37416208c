"""The default job from raw files to a served answer, and the same command again: seconds, accuracy, memory.

    python benchmarks/end_to_end.py [--quick] [--out FILE] [-- flags of 'broadsheet run']

It runs ``broadsheet run`` twice in a fresh folder, as a user would, and samples the memory of everything the
command starts. ``--quick`` trains on 1,000 rows. There is no peer here: nothing else does the whole loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import RESULTS, Run, machine, run, write


def figures_of(done: Run) -> dict[str, Any]:
    """Seconds and gigabytes, rounded."""
    return {"seconds": round(done.seconds, 1), "peak_memory_gb": round(done.peak_all / 1e9, 2)}


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="train on 1,000 rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "end_to_end.json")
    parser.add_argument("flags", nargs="*", help="flags of 'broadsheet run', after --")
    arguments = parser.parse_args()
    flags = [*arguments.flags, *(["--set", "train.max_rows=1000"] if arguments.quick else [])]
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as temporary:
        folder = Path(temporary)
        binary = Path(sys.executable).with_name("broadsheet")
        command = [str(binary), "run", "--storage", str(folder / "runs"), *flags]
        first = figures_of(run(command, folder / "first.log", every=1.0))
        second = figures_of(run(command, folder / "second.log", every=1.0))
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
    write(result, arguments.out)


if __name__ == "__main__":
    main()
