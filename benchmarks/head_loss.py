"""The head dies under an endpoint, and the cluster's state lies in Redis: are requests answered all the while?

    sudo env BROADSHEET_DATA=... python benchmarks/head_loss.py [--kills 5] [--quick] [--out FILE]

Three hosts out of network namespaces (``tests/host_spaces.py``), and Ray started on them as docs/cluster.md says under
"When the head dies": a head that takes no work, two workers of two CPUs, a Redis on a fourth machine (this one). An
LSTM is trained there and served by two replicas, one on each worker. While requests come at a steady rate to the
address of a worker, the head's host loses its cable and all its processes at once, and is switched on again 20 seconds
later; its supervisor starts the head as at first. Counted are requests that failed. In the end the endpoint has to be
the same as before (the processes of its replicas), and to take another model.

Needs root, sshd and redis-server; not part of any suite.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from by_hand import HEAD_NAME, WORKERS, Cluster, words
from host_spaces import HOSTS, LAPTOP, SHARED, STAGE, CannotRun, check, hosts, power_off, power_on, say
from load import PATIENCE_S, Load, steady
from measure import RESULTS, machine, write
from real_hosts import until

OFF_S = 20.0
BACK_S = 25.0  # watched after the head is back, before the next kill
RATE = 20.0  # requests per second
BACK_WITHIN_S = 300.0
REDIS_PORT = 6390
STATE = (
    'python -c \'import json, ray; ray.init("auto", log_to_driver=False); from ray.util.state import list_actors; '
    'print("actors:", json.dumps(sorted(a.pid for a in list_actors(filters=[("state", "=", "ALIVE")], limit=1000) '
    'if a.class_name.startswith("ServeReplica:broadsheet:"))))\''
)


def replicas(cluster: Cluster) -> str:
    """The processes of the endpoint's replicas."""
    with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
        return cluster.on(HEAD_NAME, STATE, 60).rpartition("actors:")[2].strip()
    return ""


@contextlib.contextmanager
def redis(password: str) -> Iterator[None]:
    """A Redis on this machine, at its address on the hosts' bridge."""
    folder = STAGE / "redis"
    folder.mkdir()
    binary = shutil.which("redis-server")
    assert binary is not None
    with (STAGE / "logs/redis").open("wb") as log:
        process = subprocess.Popen(
            [binary, "--bind", LAPTOP, "--port", str(REDIS_PORT), "--dir", str(folder), "--appendonly", "yes",
             "--requirepass", password],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def play(cluster: Cluster, texts: list[str], kills: int) -> dict[str, Any]:
    """The whole story; what the load saw."""
    for name in HOSTS:
        cluster.start(name)
    until("three nodes", lambda: cluster.nodes() == len(HOSTS))
    where = f"--storage {SHARED}/runs --data {SHARED}/train.parquet --test {SHARED}/test.parquet"
    small = words("model.hidden=[32]", "train.max_rows=4000", "train.epochs=1", "data.in_process_mb=0")
    for seed, name in enumerate(("one", "two"), 1):
        cluster.on(
            HEAD_NAME, f"broadsheet train --address auto --name {name} {where} --model lstm {small} --set seed={seed}"
        )
    cluster.on(HEAD_NAME, f"broadsheet evaluate {SHARED}/runs/two --address auto --name two --storage {SHARED}/runs")
    sets = words("serve.min_replicas=2", "serve.max_replicas=2", "serve.engine=torch", "serve.cpus_per_replica=1.5")
    ours = "--address auto --host 0.0.0.0 --insecure"
    cluster.on(HEAD_NAME, f"broadsheet serve {SHARED}/runs/one --storage {SHARED}/runs {ours} {sets}")
    first = replicas(cluster)
    say(f"the endpoint is up, replicas {first}")
    load, struck, back = Load(), list[float](), list[float]()

    async def watched() -> None:
        url = f"http://{HOSTS[WORKERS[0]]}:8000/v1/classify"
        asking = asyncio.create_task(steady(url, texts, RATE, 10_000_000, load))
        await asyncio.sleep(10)
        for k in range(kills):
            struck.append(time.monotonic())
            await asyncio.to_thread(power_off, HEAD_NAME)
            await asyncio.sleep(OFF_S)
            running.append(await asyncio.to_thread(power_on, HEAD_NAME))
            await asyncio.to_thread(cluster.start, HEAD_NAME)
            await asyncio.to_thread(until, "all nodes", lambda: cluster.nodes() == len(HOSTS), BACK_WITHIN_S)
            back.append(round(time.monotonic() - struck[-1], 1))
            say(f"head {k + 1}: back after {back[-1]} s; {load.failed} of {len(load.answers)} failed: {load.outcomes}")
            # A request that hangs fails after ``PATIENCE_S``: the last ones are waited for.
            await asyncio.sleep(BACK_S if k + 1 < kills else PATIENCE_S + 5)
        over = len(load.answers)  # what is under way now is not counted
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        del load.answers[over:]

    running: list[subprocess.Popen[bytes]] = []
    asyncio.run(watched())
    last = replicas(cluster)
    said = cluster.on(HEAD_NAME, f"broadsheet serve --address auto --update {SHARED}/runs/two")
    say(said.strip().splitlines()[-1])
    status = cluster.on(HEAD_NAME, "broadsheet serve --address auto --status")
    cluster.on(HEAD_NAME, "broadsheet serve --address auto --stop")
    return {
        "kills": kills, "rate": RATE, "off_s": OFF_S, "requests": len(load.answers), "failed": load.failed,
        "outcomes": load.outcomes, "recovery_s": load.recovery_s(struck), "p50_ms": load.latency_ms(0.5),
        "p99_ms": load.latency_ms(0.99), "head_back_s": back, "same_replicas": first == last and bool(first),
        "updated_afterwards": "runs/two" in status,
    }  # fmt: skip


def main() -> None:
    """Let the head die and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one kill")
    parser.add_argument("--out", type=Path, default=RESULTS / "head_loss.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    try:
        check()
        if shutil.which("redis-server") is None:
            raise CannotRun("missing: redis-server (package redis-server)")
    except CannotRun as e:
        sys.exit(f"head_loss cannot run here: {e}")
    made = machine()
    texts = pq.read_table(where / "ag_news/test.parquet", columns=["text"])["text"].to_pylist()
    with hosts():
        for part in ("train", "test"):
            shutil.copy(where / f"ag_news/{part}.parquet", STAGE / "shared" / f"{part}.parquet")
        cluster = Cluster(2, f"{LAPTOP}:{REDIS_PORT}")
        with redis(cluster.password):
            found = play(cluster, texts, 1 if arguments.quick else arguments.kills)
    ratios = {key: float(found[key]) for key in ("failed", "recovery_s", "same_replicas", "updated_afterwards")}
    write({**made, "quick": arguments.quick, **found, "ratios": ratios}, arguments.out)


if __name__ == "__main__":
    main()
