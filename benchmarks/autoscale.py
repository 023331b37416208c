"""One latency goal, a load that rises and falls: when do replicas come and go, and what do clients see?

    BROADSHEET_DATA=... python benchmarks/autoscale.py [--checkpoint RUN] [--goal MS] [--quick] [--out FILE]

``broadsheet serve`` with ``serve.latency_goal_ms``, one replica of one core to as many as there are cores. The load (an
open loop, see ``load.py``, on the same cores) is a quarter of what one replica does, then three quarters of what all
do, then a quarter again. Every second the replicas are counted; latencies are of ten seconds each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from endpoint import REPLICA, URL, Endpoint, serving
from load import Load, closed, steady
from measure import RESULTS, machine, trained, write

WINDOW_S = 10.0


async def trace(endpoint: Endpoint, texts: list[str], phases: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Run the phases, (requests per second, seconds) each; returns a row per ten seconds."""
    load = Load()
    began = time.monotonic()
    counted: list[tuple[float, int]] = []
    over = False

    async def count() -> None:
        while not over:
            counted.append((time.monotonic(), len(await asyncio.to_thread(endpoint.pids, REPLICA))))
            await asyncio.sleep(1)

    counting = asyncio.create_task(count())
    for rate, seconds in phases:
        await steady(f"{URL}/v1/classify", texts, rate, int(rate * seconds), load)
    over = True
    await counting
    rows = []
    end = max(a.ended for a in load.answers)
    at = began
    while at < end:
        part = Load([a for a in load.answers if at <= a.due < at + WINDOW_S])
        seen = [n for when, n in counted if at <= when < at + WINDOW_S]
        if part.answers and seen:
            rows.append({
                "second": round(at - began), "requests_per_s": round(len(part.answers) / WINDOW_S, 1),
                "replicas": max(seen), "p50_ms": part.latency_ms(0.5), "p95_ms": part.latency_ms(0.95),
                "refused": sum(a.outcome == 429 for a in part.answers), "failed": part.failed,
            })  # fmt: skip
        at += WINDOW_S
    return rows


def main() -> None:
    """Run the trace and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", help="a run or checkpoint folder of an AG News model")
    parser.add_argument("--goal", type=float, default=300.0, help="milliseconds")
    parser.add_argument("--quick", action="store_true", help="phases of 20 s")
    parser.add_argument("--out", type=Path, default=RESULTS / "autoscale.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    texts = pq.read_table(where / "ag_news" / "test.parquet", columns=["text"])["text"].to_pylist()
    cores = os.cpu_count() or 1
    lengths = (20.0, 20.0, 20.0) if arguments.quick else (30.0, 90.0, 110.0)
    with tempfile.TemporaryDirectory(prefix="autoscale-") as temporary:
        folder = Path(temporary)
        found = arguments.checkpoint or trained(folder / "runs")
        sets = [f"serve.latency_goal_ms={arguments.goal:g}", "serve.min_replicas=1", f"serve.max_replicas={cores}"]
        peaks = []
        for count in (1, cores):  # beside the load, on the same cores
            kept = [f"serve.min_replicas={count}", f"serve.max_replicas={count}"]
            with serving(Endpoint(found, folder / f"{count}.log", kept)):
                asyncio.run(closed(f"{URL}/v1/classify", texts, 8 * count, 5))
                peaks.append(asyncio.run(closed(f"{URL}/v1/classify", texts, 16 * count, 10)))
        one, together = peaks
        endpoint = Endpoint(found, folder / "serve.log", sets)
        with serving(endpoint):
            said = [
                ln.removeprefix("serve     ")
                for ln in endpoint.log.read_text().splitlines()
                if "goal" in ln or "so serve." in ln
            ]
            phases = list(zip((one / 4, 0.75 * together, one / 4), lengths, strict=True))
            rows = asyncio.run(trace(endpoint, texts, phases))
    for row in rows:
        print(row)
    most = max(r["replicas"] for r in rows)
    high = [r for r in rows if r["requests_per_s"] > together / 2]
    ratios = {
        "failed": sum(r["failed"] for r in rows),
        "most_replicas": most,
        "last_replicas": rows[-1]["replicas"],
        "seconds_to_most": next(r["second"] for r in rows if r["replicas"] == most) - lengths[0],
        "p95_ms_at_most": high[-1]["p95_ms"],
    }
    facts = {
        "quick": arguments.quick,
        "goal_ms": arguments.goal,
        "one_replica_per_s": one,
        "all_replicas_per_s": together,
        "said": said,
    }
    write({**machine(), **facts, "trace": rows, "ratios": ratios}, arguments.out)


if __name__ == "__main__":
    main()
