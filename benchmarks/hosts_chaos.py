"""Hosts that die while a cluster works: does every job come to its end by itself, and with the same result?

    sudo env BROADSHEET_DATA=... python benchmarks/hosts_chaos.py [--stages a,b] [--kills 5] [--quick] [--out FILE]

Three hosts out of network namespaces (``tests/host_spaces.py``), brought up by the real
``ray up cluster/on-prem.yaml``: a head that takes no work, and two workers of two CPUs. Each job is sent by
``broadsheet submit``, once undisturbed, and then again for every kill: at a random moment a worker host loses its cable
and all its processes at once, and 20 seconds later it is switched on again. Nobody starts Ray on it: the cluster's own
autoscaler does.

- ``prepare``: AG News; every byte of the prepared folder is compared.
- ``train``: the LSTM on three DDP workers, so on both hosts; the weights are compared.
- ``tune``: a random search of four trials; their scores and the weights of the best are compared.
- ``predict``: all texts of AG News; rows are compared, each must be there once.
- ``serve``: two replicas, on both hosts, and a steady load at the head's address: requests that fail are counted.
- ``cut``: ``train`` again, and the host only loses its cable, for 20 seconds.
- ``notice``: ``train`` again, with ten minutes between checkpoints; as a spot instance the host hears of its end 40
  seconds before (from a metadata service on this machine that answers as AWS's does).

Not part of any suite: it needs root, sshd and most of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import digest
from load import Load, steady
from measure import RESULTS, ROOT, machine, write

sys.path.insert(0, str(ROOT / "tests"))

from cloud_metadata import served
from host_spaces import HOSTS, LAPTOP, SHARED, STAGE, CannotRun, check, cut, hosts, power_off, power_on, say, sh, ssh
from real_hosts import COUNT, HEAD, Laptop, until

from pipeline.errors import first_line

WORKERS = ("broadsheet-2", "broadsheet-3")
OFF_S = 20.0
PATIENCE_S = 600.0
WITHIN = (0.25, 0.9)  # of an undisturbed job's time: when the host dies
STAGES = ("prepare", "train", "tune", "predict", "serve", "cut", "notice")
TRAINED = ("train", "cut", "notice")
NOTICE_S = 40
LSTM = ("model.hidden=[32]", "train.batch_tokens=1024", "train.evaluations=4")
RATE = 20.0  # requests per second


def words(*sets: str) -> list[str]:
    """``--set`` for each."""
    return [word for item in sets for word in ("--set", item)]


class Jobs:
    """The stages as commands; each writes below a storage of its own, and says what came of it."""

    def __init__(self, shared: Path, quick: bool) -> None:
        self.shared = shared  # the storage of the cluster, as this machine sees it
        self.quick = quick
        self.data = ["--data", f"{SHARED}/train.parquet", "--test", f"{SHARED}/test.parquet"]

    def command(self, stage: str, name: str) -> list[str]:
        """What is submitted."""
        where = ["--storage", f"{SHARED}/{name}"]
        lstm = ["--model", "lstm", "--set", "data.in_process_mb=0"]
        rows = 2_000 if self.quick else 6_000
        if stage == "prepare":
            return ["prepare", *where, *self.data, *lstm, *words("data.shard_mb=2")]
        if stage in TRAINED:
            seconds = 600 if stage == "notice" else 5
            more = (f"train.max_rows={rows}", "train.epochs=12", f"train.checkpoint_seconds={seconds}", *LSTM)
            return ["train", *where, *self.data, *lstm, "--workers", "3", *words(*more)]
        if stage == "tune":
            more = ("tune.algorithm=random", "tune.trials=4", "tune.epochs=3", f"tune.max_rows={rows}", "tune.seeds=0",
                    "model.hidden=[32]", "train.workers=1")  # fmt: skip
            return ["tune", *where, *self.data, *lstm, *words(*more)]
        assert stage == "predict"
        model = ["--storage", f"{SHARED}/train-calm", "--checkpoint", f"{SHARED}/train-calm/default"]
        return ["predict", f"{SHARED}/train.parquet", f"{SHARED}/test.parquet", *model, "--out", f"{SHARED}/{name}"]

    def result(self, stage: str, name: str) -> str:
        """One hash over what must be the same."""
        folder = self.shared / name
        if stage == "prepare":
            return digest(folder)
        if stage in TRAINED:
            # The weights are the best, which may be older than the kill; the losses go on to the last step.
            checkpoint = folder / "default/checkpoint"
            history = json.loads((checkpoint / "broadsheet.json").read_text())["training"]["history"]
            losses = json.dumps([[e["step"], e["loss"], e["validation_loss"]] for e in history])
            return _hash(losses.encode(), (checkpoint / "model.safetensors").read_bytes())
        if stage == "tune":
            trials = [json.loads(line) for line in (folder / "search/trials.jsonl").read_text().splitlines()]
            scores = json.dumps([[t["trial"], t["point"], t["best"], t["steps"]] for t in trials])
            return _hash(scores.encode(), (folder / "search/best/model.safetensors").read_bytes())
        table = pq.read_table(folder).sort_by("id")
        ids = table["id"].to_pylist()
        assert len(ids) == len(set(ids)), f"{name}: a row is there twice"
        return _hash("\n".join(ids).encode(), "\n".join(map(str, table["label"].to_pylist())).encode())


def _hash(*parts: bytes) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()


class Cluster:
    """The hosts, and whoever is switched off."""

    def __init__(self, laptop: Laptop, generator: random.Random) -> None:
        self.laptop, self.random = laptop, generator
        self.processes: list[subprocess.Popen[bytes]] = []

    def whole(self) -> bool:
        """Whether Ray runs on all hosts."""
        try:
            return f"nodes: {len(HOSTS)}" in self.laptop.on_head(COUNT)
        except RuntimeError:
            return False

    def strike(self, stage: str) -> str:
        """Take a worker host away, and bring it back 20 seconds later; its name."""
        name = self.random.choice(WORKERS)
        if stage == "notice":
            self.give_notice(name)
        (cut if stage == "cut" else power_off)(name)
        time.sleep(OFF_S)
        if stage == "cut":
            cut(name, off=False)
        else:
            self.processes.append(power_on(name))
        return name

    def give_notice(self, name: str) -> None:
        """Tell a host that it will be taken away, and wait until it is time."""
        end = time.monotonic() + NOTICE_S
        with served("aws", LAPTOP) as aws:
            aws.seconds = NOTICE_S
            watch = f"RAY_AUTH_MODE=token ~/venv/bin/python -m pipeline.spot --metadata {aws.url}"
            said = sh(*ssh(HOSTS[name]), watch, timeout=NOTICE_S)
        say(said.strip().splitlines()[-1])
        time.sleep(max(0.0, end - time.monotonic()))


def submitted(laptop: Laptop, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Send a job and follow it."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "broadsheet", "submit", "--", *command], cwd=STAGE / "laptop",
            env=laptop.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def stage_of(stage: str, cluster: Cluster, jobs: Jobs, kills: int) -> dict[str, Any]:
    """One stage undisturbed, and once for every kill."""
    logs = STAGE / "logs"

    def run(name: str, strike: Callable[[], str] | None, after: float = 0.0) -> tuple[float, str | None]:
        began = time.monotonic()
        process = submitted(cluster.laptop, jobs.command(stage, name), logs / name)
        host = None
        if strike is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            if process.poll() is None:
                host = strike()
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            job = (logs / name).read_text().partition("job ")[2].split()[0]
            cluster.laptop.broadsheet("stop", job)  # or it would be in the way of all that follow
            raise
        if code != 0:
            raise RuntimeError(f"{name} ended with {code}:\n{(logs / name).read_text()[-3000:]}")
        return time.monotonic() - began, host

    calm, _ = run(f"{stage}-calm", None)
    expected = jobs.result(stage, f"{stage}-calm")
    events: list[dict[str, Any]] = []
    say(f"{stage}: {calm:.0f} s undisturbed")
    for k in range(kills):
        name = f"{stage}-{k}"
        after = calm * cluster.random.uniform(*WITHIN)
        try:
            took, host = run(name, lambda: cluster.strike(stage), after)
            event = {"host": host, "after_s": round(after, 1), "took_s": round(took, 1), "completed": True,
                     "equal": jobs.result(stage, name) == expected, **steps((logs / name).read_text())}  # fmt: skip
        except (RuntimeError, AssertionError, OSError, subprocess.TimeoutExpired) as e:
            event = {"after_s": round(after, 1), "completed": False, "equal": False, "why": first_line(e)}
            print(e, flush=True)
        events.append(event)
        say(f"{stage} {k + 1}: {event}")
        shutil.rmtree(jobs.shared / name, ignore_errors=True)
        until("all nodes", cluster.whole, PATIENCE_S)
    struck = [e for e in events if e.get("host") or not e["completed"]]
    return {
        "stage": stage, "undisturbed_s": round(calm, 1), "kills": len(struck), "events": events,
        "completed": sum(e["completed"] for e in struck), "equal": sum(e["equal"] for e in struck),
        "mean_s": round(sum(e.get("took_s", 0.0) for e in struck) / max(1, len(struck)), 1),
    }  # fmt: skip


def steps(log: str) -> dict[str, int]:
    """The step of a checkpoint that a notice asked for, and that from which training went on."""
    found = {"kept": r"will be taken away: step ([\d,]+)", "resumed": r"resuming (?:with .* )?from step ([\d,]+)"}
    at = {key: re.search(pattern, log) for key, pattern in found.items()}
    return {f"{key}_step": int(match[1].replace(",", "")) for key, match in at.items() if match}


def serving(cluster: Cluster, texts: list[str], kills: int) -> dict[str, Any]:
    """Hosts die under an endpoint that is asked steadily."""
    laptop = cluster.laptop
    sets = words("serve.min_replicas=2", "serve.max_replicas=2", "serve.engine=torch", "serve.cpus_per_replica=1.5")
    where = ["--storage", f"{SHARED}/train-calm"]
    endpoint = ["serve", f"{SHARED}/train-calm/default", *where, "--host", "0.0.0.0", "--insecure", *sets]
    if submitted(laptop, endpoint, STAGE / "logs/serve").wait(PATIENCE_S):
        raise RuntimeError(f"serve: {(STAGE / 'logs/serve').read_text()[-2000:]}")
    url = f"http://{HEAD}:8000/v1/classify"
    load, struck = Load(), list[float]()

    async def play() -> None:
        asking = asyncio.create_task(steady(url, texts, RATE, 10_000_000, load))
        await asyncio.sleep(15)
        for _ in range(kills):
            struck.append(time.monotonic())
            await asyncio.to_thread(cluster.strike, "serve")
            await asyncio.to_thread(until, "all nodes", cluster.whole, PATIENCE_S)
            await asyncio.to_thread(until, "both replicas", lambda: _replicas(laptop) == 2, PATIENCE_S)
            await asyncio.sleep(5)
        over = len(load.answers)  # what is under way now is not counted
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        del load.answers[over:]

    asyncio.run(play())
    laptop.on_head("broadsheet serve --address auto --stop")
    return {
        "stage": "serve", "kills": kills, "rate": RATE, "requests": len(load.answers), "failed": load.failed,
        "outcomes": load.outcomes, "recovery_s": load.recovery_s(struck), "p50_ms": load.latency_ms(0.5),
        "p99_ms": load.latency_ms(0.99),
    }  # fmt: skip


REPLICAS = (
    'python -c \'import ray; ray.init("auto", log_to_driver=False); from ray import serve; '
    's = serve.status().applications["broadsheet"].deployments["broadsheet"].replica_states; '
    'print("running:", s.get("RUNNING", 0), "all:", sum(s.values()))\''
)


def _replicas(laptop: Laptop) -> int:
    with contextlib.suppress(RuntimeError, ValueError):
        said = laptop.on_head(REPLICAS)
        return int(said.rpartition("running:")[2].split()[0])
    return 0


def main() -> None:
    """Let hosts die in every stage and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, with commas")
    parser.add_argument("--kills", type=int, help="per stage; by default 5, quick 1")
    parser.add_argument("--quick", action="store_true", help="small jobs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "hosts_chaos.json")
    arguments = parser.parse_args()
    where = Path(os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news"))
    wanted = arguments.stages.split(",")
    if unknown := sorted(set(wanted) - set(STAGES)):
        sys.exit(f"--stages: {unknown[0]} is none of {', '.join(STAGES)}")
    try:
        check()
    except CannotRun as e:
        sys.exit(f"hosts_chaos cannot run here: {e}")
    kills = arguments.kills or (1 if arguments.quick else 5)
    made = machine()
    runs: list[dict[str, Any]] = []
    if arguments.out.exists():  # a sitting with some of the stages keeps what others found, each with its commit
        before = json.loads(arguments.out.read_text())
        runs = [run for run in before["runs"] if run["stage"] not in wanted and before["quick"] == arguments.quick]
    texts = pq.read_table(where / "ag_news/test.parquet", columns=["text"])["text"].to_pylist()
    with hosts():
        laptop = Laptop()
        cluster = Cluster(laptop, random.Random(arguments.seed))
        for part in ("train", "test"):
            shutil.copy(where / f"ag_news/{part}.parquet", STAGE / "shared" / f"{part}.parquet")
        laptop.ray("up", "-y", "--no-config-cache", laptop.config, timeout=400)
        until("three nodes", cluster.whole)
        jobs = Jobs(STAGE / "shared", arguments.quick)
        with laptop.dashboard():
            until("the dashboard", lambda: _answers(laptop))
            if "train" not in wanted and set(wanted) & {"predict", "serve"}:  # they need a model
                stage_of("train", cluster, jobs, 0)
            for stage in wanted:
                found = serving(cluster, texts, kills) if stage == "serve" else stage_of(stage, cluster, jobs, kills)
                runs.append({**found, "date": made["date"], "commit": made["commit"]})
                ratios: dict[str, float] = {}
                for run in runs:
                    if run["stage"] == "serve":
                        ratios |= {"failed_serve": run["failed"], "recovery_s_serve": run["recovery_s"]}
                    elif run["kills"]:
                        ratios |= {f"{key}_{run['stage']}": run[key] / run["kills"] for key in ("completed", "equal")}
                write({**made, "quick": arguments.quick, "runs": runs, "ratios": ratios}, arguments.out)
        laptop.ray("down", "-y", laptop.config)


def _answers(laptop: Laptop) -> bool:
    with contextlib.suppress(RuntimeError):
        laptop.broadsheet("status")
        return True
    return False


if __name__ == "__main__":
    main()
