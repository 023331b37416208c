"""How the four stages grow with hosts, and what a plan of many shards or nodes costs the machine that makes it.

    sudo env BROADSHEET_DATA=... python benchmarks/scaling.py [--parts a,b] [--quick] [--out FILE]

- ``prepare``, ``train``, ``serve``: one, two and three worker hosts out of network namespaces
  (``tests/host_spaces.py``), each held to the same share of the processors by a control group, beside a head that takes
  no work. Rows per second that ``prepare`` takes in, samples per second of MiniLM's training by one DDP worker a host
  (the same global batch), requests per second that one replica a host answers to ``wrk``. Needs root, sshd, wrk and
  control groups (version 1).
- ``plans``: tasks that do nothing, laid out by ``prepare``'s own layout for up to 10,000 shards on a local Ray: tasks
  per second and the driver's memory. And the exchange between its passes, without Ray: seconds to read one bucket out
  of so many parts by so many buckets.
- ``nodes``: the same plan on simulated nodes (``ray.cluster_utils.Cluster``), as many as the memory of this machine
  holds; memory a node, seconds a task.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import RESULTS, descendants, machine, write

STAGES = {"prepare": "rows_per_s", "train": "samples_per_s", "serve": "requests_per_s"}
PARTS = (*STAGES, "plans", "nodes")
WORKERS = 3
COPIES = 6  # of AG News' training rows
PERIOD_US = 10_000  # in which a host gets its share: a tenth of the usual, since ranks of DDP wait for each other
SHARE = 0.5  # of a processor, for each worker host
CGROUPS = Path("/sys/fs/cgroup/cpu")
CLIENTS = 32


def of_hosts(data: Path, quick: bool, stages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """One, two and three worker hosts; what each stage did."""
    os.environ["HOSTS_TO_PLAY"] = str(1 + WORKERS)  # before the module that reads it
    from by_hand import HEAD_NAME, Cluster
    from by_hand import WORKERS as NAMES
    from host_spaces import STAGE, CannotRun, check, hosts, say
    from real_hosts import until

    from pipeline.fetch import cache_dir
    from pipeline.model import source

    try:
        check()
        if not CGROUPS.is_dir():
            raise CannotRun(f"no control groups at {CGROUPS}")
    except CannotRun as e:
        sys.exit(f"scaling cannot run here: {e}")
    measures = {"prepare": _prepared, "train": _trained, "serve": _served}
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in stages}
    with contextlib.ExitStack() as stack:
        stack.enter_context(hosts())
        stack.callback(_ungroup)
        for k in range(2 if quick else COPIES):
            _copy(data / "ag_news/train.parquet", STAGE / f"shared/rows-{k}.parquet", k)
        shutil.copy(data / "ag_news/train.parquet", STAGE / "shared/train.parquet")
        shutil.copy(data / "ag_news/test.parquet", STAGE / "shared/test.parquet")
        source.resolve("minilm")
        shutil.copytree(cache_dir(), STAGE / "shared/cache")
        cluster = Cluster(1)
        cluster.start(HEAD_NAME)
        for count, name in enumerate(NAMES, 1):
            _hold(name)
            cluster.start(name)
            until(f"{count} workers", lambda count=count: cluster.nodes() == 1 + count)
            for stage in stages:
                found[stage].append({"hosts": count, **measures[stage](cluster, count, quick)})
                say(f"{stage}: {found[stage][-1]}")
    return found


def _prepared(cluster: Any, count: int, quick: bool) -> dict[str, Any]:
    """Rows per second, of the rows that many files have more than one: starting up is left out."""
    from by_hand import HEAD_NAME
    from host_spaces import SHARED

    took, read = [], []
    for which_files in ("0", "*"):
        where = f"--storage {SHARED}/prepare-{count} --data '{SHARED}/rows-{which_files}.parquet'"
        # Copies are near each other: what they cost there is nobody's data.
        flags = "--address auto --model lstm --set data.near_duplicates=keep"
        said = cluster.on(HEAD_NAME, f"broadsheet prepare {where} {flags}")
        minutes, seconds = re.findall(r"prepare\s+(?:(\d+) min )?([\d.]+) s ->", said)[-1]
        took.append(60 * int(minutes or 0) + float(seconds))
        read.append(int(re.findall(r"([\d,]+) rows read =", said)[-1].replace(",", "")))
    rate = (read[1] - read[0]) / (took[1] - took[0])
    return {"rows_per_s": round(rate, 1), "rows": read, "seconds": took}


def _trained(cluster: Any, count: int, quick: bool) -> dict[str, Any]:
    """Samples per second of the steps."""
    from by_hand import HEAD_NAME, words
    from host_spaces import SHARED, STAGE

    rows = 300 if quick else 1_000
    small = words(f"train.max_rows={rows}", "train.epochs=1", "train.evaluations=1", "train.validation_rows=8")
    where = f"--address auto --storage {SHARED}/runs --data {SHARED}/train.parquet --workers {count}"
    cluster.on(HEAD_NAME, f"broadsheet train {where} --name of-{count} {small}")
    card = STAGE / f"shared/runs/of-{count}/checkpoint/broadsheet.json"
    seconds = json.loads(card.read_text())["training"]["history"][-1]["seconds"]
    return {"samples_per_s": round(rows / seconds, 2), "rows": rows, "seconds": round(seconds, 2)}


def _served(cluster: Any, count: int, quick: bool) -> dict[str, Any]:
    """Requests per second of one text each, asked of the head's address."""
    from by_hand import HEAD_NAME, words
    from host_spaces import SHARED, STAGE
    from real_hosts import HEAD
    from wrk import Wrk

    if not (STAGE / "shared/runs/of-1").exists():
        _trained(cluster, 1, True)
    sets = words(f"serve.min_replicas={count}", f"serve.max_replicas={count}", "serve.cpus_per_replica=1")
    ours = f"--address auto --host 0.0.0.0 --insecure --storage {SHARED}/runs"
    cluster.on(HEAD_NAME, f"broadsheet serve {SHARED}/runs/of-1 {ours} {sets}")
    texts = pq.read_table(STAGE / "shared/test.parquet", columns=["text"])["text"].to_pylist()
    load = Wrk(f"http://{HEAD}:8000/v1/classify", texts)
    load.run(CLIENTS, 5)
    measured = load.run(CLIENTS, 5 if quick else 20)
    assert not measured["failed"], measured
    cluster.on(HEAD_NAME, "broadsheet serve --address auto --stop")
    return {"requests_per_s": measured["per_s"], "p99_ms": measured["p99_ms"]}


def _copy(source: Path, out: Path, k: int) -> None:
    """The rows of a file, with texts of their own, so that none is a duplicate."""
    table = pq.read_table(source)
    at = table.column_names.index("text")
    pq.write_table(table.set_column(at, "text", pa.array([f"{t} copy{k}" for t in table["text"].to_pylist()])), out)


def _hold(name: str) -> None:
    """Hold a host, and all that it will start, to its share."""
    folder = CGROUPS / name
    folder.mkdir(exist_ok=True)
    (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (folder / "cpu.cfs_quota_us").write_text(str(round(PERIOD_US * SHARE)))
    for pid in subprocess.check_output(["ip", "netns", "pids", name], text=True).split():
        (folder / "cgroup.procs").write_text(pid)


def _ungroup() -> None:
    for folder in CGROUPS.glob("broadsheet-*"):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (CGROUPS / "cgroup.procs").write_text(pid)
        folder.rmdir()


def of_plans(quick: bool) -> dict[str, Any]:
    """Tasks without work for many shards, and the exchange without Ray."""
    from pipeline.data.layout import OnRay

    layout = OnRay()
    layout.cpus()
    tasks = []
    for count in (100, 1_000) if quick else (100, 1_000, 10_000):
        began = time.monotonic()
        done = sum(1 for _ in layout.each(range(count), _nothing))
        assert done == count
        tasks.append({"shards": count, "seconds": round(time.monotonic() - began, 2), "driver_mb": _memory_mb()})
        print(tasks[-1], flush=True)
    import ray

    ray.shutdown()
    return {"tasks": tasks, "exchange": _exchange(quick)}


def _nothing(bucket: int) -> None:
    """A task's work."""


def _memory_mb() -> float:
    """The most that this process held at once, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _exchange(quick: bool) -> list[dict[str, Any]]:
    """Parts of 2,000 rows each: to write one, and to read one bucket of all of them."""
    from pipeline.data import exchange
    from pipeline.storage import Place

    generator = np.random.default_rng(0)
    rows = 2_000
    text = pa.array(["a headline of some sixty letters, and what the paper says of it"] * rows)
    table = pa.table(
        {
            "source": pa.array(np.zeros(rows, np.int32)), "row": pa.array(np.arange(rows)), "text": text,
            "label": pa.array(["Business"] * rows), "key": pa.array([b"0" * 16] * rows, pa.binary(16)),
            "reason": pa.nulls(rows, pa.string()), "detail": pa.nulls(rows, pa.string()),
        },
        schema=exchange.ROWS,
    )  # fmt: skip
    found = []
    for parts, buckets in ((100, 100), (100, 1_000)) if quick else ((100, 100), (100, 1_000), (100, 10_000)):
        with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
            folder = Place.of(temporary)
            began = time.monotonic()
            for i in range(parts):
                bucket = exchange.bucket_of(generator.integers(0, 1 << 62, rows, np.uint64), buckets)
                exchange.write_part(table, bucket, buckets, folder / f"part-{i}.arrow")
            written = time.monotonic() - began
            began = time.monotonic()
            for bucket_ in range(5):
                exchange.read_bucket(folder, bucket_)
            read = (time.monotonic() - began) / 5
            size = sum(f.stat().st_size for f in Path(temporary).iterdir()) / parts
        found.append({"parts": parts, "buckets": buckets, "write_part_ms": round(1e3 * written / parts, 2),
                      "part_kb": round(size / 1e3, 1), "read_ms_per_part": round(1e3 * read / parts, 3)})  # fmt: skip
        print(found[-1], flush=True)
    return found


def of_nodes(quick: bool) -> list[dict[str, Any]]:
    """The plan on simulated nodes."""
    import ray
    from ray.cluster_utils import Cluster

    from pipeline.data.layout import OnRay

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    found = []
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        for count in (2,) if quick else (5, 10, 20):
            while len(cluster.list_all_nodes()) < 1 + count:
                cluster.add_node(num_cpus=1, object_store_memory=80_000_000, wait=False)
            cluster.wait_for_nodes(300)
            memory = sum(_pss(pid) for pid in descendants(os.getpid())[1:]) / 1e6
            layout = OnRay(cluster.address)
            seconds = []
            for _ in range(2):  # the first starts workers
                began = time.monotonic()
                assert sum(1 for _ in layout.each(range(10 * count), _nothing)) == 10 * count
                seconds.append(round(time.monotonic() - began, 2))
            found.append({"nodes": count, "mb": round(memory), "cold_s": seconds[0], "warm_s": seconds[1],
                          "shards": 10 * count, "driver_mb": _memory_mb()})  # fmt: skip
            print(found[-1], flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return found


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Measure, and write the JSON; parts that are not asked for keep what an earlier sitting found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    wanted = arguments.parts.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        sys.exit(f"--parts: {unknown[0]} is none of {', '.join(PARTS)}")
    stages = [part for part in wanted if part in STAGES]
    if len(wanted) > max(1, len(stages)):  # the most that a process ever held is what is measured: one for each
        for group in (stages, *([part] for part in wanted if part not in STAGES)):
            more = ["--quick"] if arguments.quick else []
            if group:
                subprocess.run(
                    [sys.executable, __file__, "--parts", ",".join(group), "--out", arguments.out, *more], check=True
                )
        return
    made = machine()
    result: dict[str, Any] = {**made, "quick": arguments.quick, "parts": {}}
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        if before["quick"] == arguments.quick:
            result["parts"] = before["parts"]
    if stages:
        data = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
        by_stage = of_hosts(data, arguments.quick, stages)
    for part in wanted:
        if part in STAGES:
            found: Any = {"share": SHARE, "period_us": PERIOD_US, "hosts": by_stage[part]}
        else:
            found = of_plans(arguments.quick) if part == "plans" else of_nodes(arguments.quick)
        result["parts"][part] = {"found": found, "date": made["date"], "commit": made["commit"]}
        ratios: dict[str, float] = {}
        for stage, key in STAGES.items():
            if stage in result["parts"]:
                first, *_, last = result["parts"][stage]["found"]["hosts"]
                ratios[f"{stage}_{last['hosts']}_hosts"] = round(last[key] / first[key], 3)
        if "plans" in result["parts"]:
            most = result["parts"]["plans"]["found"]["tasks"][-1]
            ratios[f"tasks_per_s_{most['shards']}"] = round(most["shards"] / most["seconds"], 1)
        write({**result, "ratios": ratios}, arguments.out)


if __name__ == "__main__":
    main()
