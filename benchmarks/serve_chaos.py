"""The endpoint under fire: a steady load, and something goes wrong again and again. Which requests fail?

    BROADSHEET_DATA=... python benchmarks/serve_chaos.py [--checkpoint RUN] [--faults a,b] [--quick] [--out FILE]

``broadsheet serve`` runs in a process of its own, with HAProxy in front; texts are those of the AG News test set. Each
fault gets 20,000 requests at a steady rate (an open loop, see ``load.py``), a quarter of what the endpoint can do:

- ``replica``, ``replica_30s``: one replica gets SIGKILL every 5 seconds, every 30.
- ``update``: ``broadsheet serve --update``, five times.
- ``disconnect``: beside the load, clients send a request and hang up before the answer.
- ``slow``: beside the load, 100 clients drip a byte of their request each second.
- ``haproxy``, ``controller``: that process gets SIGKILL, three times.
- ``overload``: ten times what the endpoint can do, by ``wrk``, since the load shares its cores; a few requests of the
  open loop beside it say how long those wait that are let in.

A request has failed if it was answered neither 2xx nor 429 with Retry-After. Then 100,000 requests follow, and the
memory of replicas is compared before and after (``--no-memory`` leaves that out). Without ``--checkpoint`` the LSTM of
the article is trained on AG News first: the model matters little here, and a fast one meets more requests per second.
There is no peer: what others lose is in the issue threads of theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from endpoint import PORT, REPLICA, URL, Endpoint, serving, twin
from load import Load, closed, steady
from measure import RESULTS, machine, trained, write
from wrk import Wrk

from pipeline.config import ServeConfig
from pipeline.train import checkpoint as checkpoints

PAUSE_MS = 1_000  # of a client that was refused, as Retry-After asks
BESIDE_PER_S = 20
CONTROLLER = b"ray::ServeController"
FAULTS = ("replica", "replica_30s", "update", "disconnect", "slow", "haproxy", "controller", "overload")


class Fire:
    """What goes wrong during a load. Each method is a fault; ``at`` collects the moments it struck."""

    def __init__(
        self, endpoint: Endpoint, other: str, texts: list[str], load: Load, count: int, seconds: float
    ) -> None:
        self.endpoint, self.other, self.texts, self.load = endpoint, other, texts, load
        self.count, self.seconds = count, seconds
        self.at: list[float] = []
        self.seen: dict[str, int] = {}
        self.random = random.Random(17)

    @property
    def over(self) -> bool:
        """Whether the load has come to its end."""
        return len(self.load.answers) >= self.count

    async def _kill(self, name: bytes, every: float, times: int = 1_000_000) -> None:
        while not self.over and len(self.at) < times:
            await asyncio.sleep(every)
            pids = await asyncio.to_thread(self.endpoint.pids, name)
            if pids and not self.over:
                os.kill(self.random.choice(pids), signal.SIGKILL)
                self.at.append(time.monotonic())

    async def replica(self) -> None:
        await self._kill(REPLICA, 5.0)

    async def replica_30s(self) -> None:
        await self._kill(REPLICA, 30.0)

    async def haproxy(self) -> None:
        await self._kill(b"haproxy", self.seconds / 5, 3)

    async def controller(self) -> None:
        await self._kill(CONTROLLER, self.seconds / 5, 3)

    async def update(self) -> None:
        models = itertools.cycle((self.other, self.endpoint.found))
        for _ in range(5):
            await asyncio.sleep(self.seconds / 8)
            self.at.append(time.monotonic())
            await asyncio.to_thread(self.endpoint.update, next(models))

    async def disconnect(self) -> None:
        while not self.over:
            text = json.dumps({"inputs": self.random.choice(self.texts)}).encode()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
                writer.write(_head(len(text)) + text)
                await writer.drain()
                await asyncio.sleep(self.random.uniform(0, 0.03))
                writer.transport.abort()
                self.at.append(time.monotonic())
            await asyncio.sleep(0.02)

    async def slow(self) -> None:
        async def client() -> None:
            while not self.over:
                text = json.dumps({"inputs": self.random.choice(self.texts)}).encode()
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
                    self.at.append(time.monotonic())
                    writer.write(_head(len(text)))
                    for byte in text:
                        if self.over or reader.at_eof():
                            break
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(1)
                    status = (await asyncio.wait_for(reader.read(12), 5))[9:].decode() or "closed"
                    self.seen[status] = self.seen.get(status, 0) + 1
                    writer.transport.abort()

        async def suppressed() -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                await client()

        await asyncio.gather(*(suppressed() for _ in range(100)))


def _head(length: int) -> bytes:
    lines = ("POST /v1/classify HTTP/1.1", f"host: 127.0.0.1:{PORT}", "content-type: application/json",
             f"content-length: {length}")  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def under(
    fault: str, endpoint: Endpoint, other: str, texts: list[str], rate: float, count: int
) -> dict[str, Any]:
    """A load with a fault; returns the figures."""
    load = Load()
    fire = Fire(endpoint, other, texts, load, count, count / rate)
    strike: Callable[[], Awaitable[None]] = getattr(fire, fault)
    await asyncio.gather(steady(f"{URL}/v1/classify", texts, rate, count, load), strike())
    return {
        "fault": fault, "rate": round(rate, 1), "offered": load.offered,
        "requests": len(load.answers), "failed": load.failed,
        "outcomes": load.outcomes, "faults": len(fire.at), "recovery_s": load.recovery_s(fire.at), "others": fire.seen,
        "p50_ms": load.latency_ms(0.5), "p99_ms": load.latency_ms(0.99), "goodput": load.goodput,
    }  # fmt: skip


async def overloaded(wrk: Wrk, texts: list[str], peak: float, held: int, seconds: float) -> dict[str, Any]:
    """Ten times the peak for a while; returns the figures.

    Args:
        wrk: for the endpoint.
        texts: of the requests beside it.
        peak: requests a second that the endpoint can answer.
        held: requests that it lets wait; their clients ask nothing meanwhile.
        seconds: how long.
    """
    load = Load()
    clients = held + round(10 * peak * PAUSE_MS / 1e3)
    crowd, _ = await asyncio.gather(
        wrk.running(clients, seconds, PAUSE_MS),
        steady(f"{URL}/v1/classify", texts, BESIDE_PER_S, round(BESIDE_PER_S * seconds), load),
    )
    failed = crowd["other_status"] + crowd["refused_without_retry_after"]
    failed += crowd["connect"] + crowd["read"] + crowd["write"] + crowd["timeout"]
    return {
        "fault": "overload", "rate": round(10 * peak, 1), "offered": crowd["per_s"], "clients": clients,
        "requests": crowd["requests"] + len(load.answers), "failed": failed + load.failed, "crowd": crowd,
        "outcomes": load.outcomes, "p50_ms": load.latency_ms(0.5), "p99_ms": load.latency_ms(0.99),
        "goodput": round(crowd["ok"] / crowd["seconds"] + sum(a.ok for a in load.answers) / seconds, 1),
    }  # fmt: skip


def memory(endpoint: Endpoint) -> list[int]:
    """Private memory of each replica, MB, largest last."""
    sizes = []
    for pid in endpoint.pids(REPLICA):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            private = sum(int(ln.split()[1]) for ln in lines if ln.startswith(("Private_Dirty", "Private_Clean")))
            sizes.append(private // 1024)
    return sorted(sizes)


def ratios(runs: list[dict[str, Any]], grown: dict[str, list[int]]) -> dict[str, float]:
    """What came of each fault, in a number or two."""
    found: dict[str, float] = {}
    for run in runs:
        found |= {f"failed_{run['fault']}": run["failed"]}
        if run["fault"] in ("haproxy", "controller", "replica", "replica_30s"):
            found[f"recovery_s_{run['fault']}"] = run["recovery_s"]
        if run["fault"] == "overload":
            found |= {
                "goodput_overload": round(run["goodput"] / run["peak_per_s"], 3),
                "p99_s_overload": (run["p99_ms"] or 0) / 1e3,
            }
    if grown:
        found["memory_growth"] = round(sum(grown["after_mb"]) / sum(grown["before_mb"]), 3)
    return found


def main() -> None:
    """Set the endpoint on fire in every way and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", help="a run or checkpoint folder of an AG News model")
    parser.add_argument("--faults", default=",".join(FAULTS), help="some of them, with commas")
    parser.add_argument("--requests", type=int, default=20_000, help="per fault")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--no-memory", action="store_true", help="without the 100,000 requests at the end")
    parser.add_argument("--set", action="append", default=[], help="of broadsheet serve")
    parser.add_argument("--quick", action="store_true", help="1,000 requests per fault, without the memory's")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_chaos.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    texts = pq.read_table(where / "ag_news" / "test.parquet", columns=["text"])["text"].to_pylist()
    count = 1_000 if arguments.quick else arguments.requests
    share = (os.cpu_count() or 1) / arguments.replicas
    replicas = [f"serve.min_replicas={arguments.replicas}", f"serve.max_replicas={arguments.replicas}"]
    replicas.append(f"serve.cpus_per_replica={share:g}")
    wanted = arguments.faults.split(",")
    facts = {"quick": arguments.quick, "checkpoint": arguments.checkpoint or "lstm", "replicas": arguments.replicas}
    runs: list[dict[str, Any]] = []
    if arguments.out.exists():  # a sitting with some of the faults keeps what others found, each with its commit
        before = json.loads(arguments.out.read_text())
        runs = [run for run in before["runs"] if run["fault"] not in wanted and before["quick"] == arguments.quick]
    made = machine()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        found = arguments.checkpoint or trained(folder / "runs", "lstm")
        other = twin(Path(str(checkpoints.find(found))), folder / "twin")
        peak = 0.0
        for fault in wanted:
            endpoint = Endpoint(found, folder / f"{fault}.log", [*replicas, *arguments.set])
            with serving(endpoint):
                classify = f"{URL}/v1/classify"
                asyncio.run(closed(classify, texts, 8, 3))  # warm
                if not peak:
                    peak = asyncio.run(closed(classify, texts, 32, 5 if arguments.quick else 15))
                    print(f"peak {peak} requests/s", flush=True)
                most = peak
                if fault == "overload":
                    wrk, seconds = Wrk(classify, texts), 5.0 if arguments.quick else 30.0
                    most = wrk.run(32, seconds / 2)["per_s"]
                    held = arguments.replicas * ServeConfig().max_queue
                    found_out = asyncio.run(overloaded(wrk, texts, most, held, seconds))
                else:
                    found_out = asyncio.run(under(fault, endpoint, other, texts, peak / 4, count))
                runs.append({**found_out, "peak_per_s": most, "date": made["date"], "commit": made["commit"]})
                print(runs[-1], flush=True)
                write({**made, **facts, "runs": runs, "memory": {}, "ratios": ratios(runs, {})}, arguments.out)
        grown = {}
        if not (arguments.quick or arguments.no_memory):
            endpoint = Endpoint(found, folder / "memory.log", [*replicas, *arguments.set])
            with serving(endpoint):
                asyncio.run(steady(f"{URL}/v1/classify", texts, peak / 4, 10_000, Load()))
                before = memory(endpoint)
                asyncio.run(steady(f"{URL}/v1/classify", texts, peak / 4, 100_000, Load()))
                grown = {"before_mb": before, "after_mb": memory(endpoint)}
                print(grown, flush=True)
    write({**made, **facts, "runs": runs, "memory": grown, "ratios": ratios(runs, grown)}, arguments.out)


if __name__ == "__main__":
    main()
