"""Three hosts on one machine, and the real ``ray up cluster/on-prem.yaml`` on them: ``make cluster-test``, as root.

Each host is a network namespace with an address of its own on a bridge, and has its own processes, host name, /tmp,
/dev/shm, home and SSH server. This machine plays the laptop: it reaches the hosts over the bridge alone. What is tried:
``ray up``, ``doctor``, ``submit`` of prepare and of a training across two hosts, an endpoint asked over the wire,
``ray down``.

Whatever it makes is removed again, on failure and Ctrl-C too; ``--clean`` removes what a killed run has left.
Not part of the suite: it takes minutes, and a machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from host_spaces import HOSTS, SHARED, STAGE, CannotRun, LeftOvers, check, clean, hosts, say, sh

ROOT = Path(__file__).resolve().parents[1]
HEAD = HOSTS["broadsheet-1"]
CANNOT = 77  # as test programs say "skipped"
STORE = 200_000_000  # bytes of each object store
COUNT = (
    """python -c 'import ray; ray.init("auto", log_to_driver=False); """
    """print("nodes:", sum(n["Alive"] for n in ray.nodes()))'"""
)


def configuration() -> Path:
    """``cluster/on-prem.yaml`` with its "Edit first" done. Two changes more, since the hosts have no package index and
    little memory: the project is installed without its dependencies, which each host's venv has already; and object
    stores and CPU counts are small."""
    config = yaml.safe_load((ROOT / "cluster/on-prem.yaml").read_text(encoding="utf-8"))
    head, *workers = HOSTS.values()
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(STAGE / "key")}
    install = "-c constraints.txt -e ."
    lines = config["setup_commands"]
    assert sum(install in line for line in lines) == 1
    config["setup_commands"] = [x.replace(install, "--no-deps --no-build-isolation -e .") for x in lines]
    for which_node, more in (("head", ""), ("worker", "--num-cpus=2 ")):
        key = f"{which_node}_start_ray_commands"
        start = f"export GLOO_SOCKET_IFNAME=eth0; ray start --object-store-memory={STORE} {more}"
        config[key] = [line.replace("ray start ", start) for line in config[key]]
    file = STAGE / "on-prem.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


class Laptop:
    """This machine, in a home of its own, with the project as it lies here."""

    def __init__(self) -> None:
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "BROADSHEET_", "OMP_"))}
        scripts = Path(sys.executable).parent
        self.environment = known | {
            "HOME": str(STAGE / "laptop"), "PATH": f"{scripts}:{known['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(STAGE / "laptop"),
            "TMPDIR": str(STAGE / "laptop"),
            "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "160", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        sh("ray", "get-auth-token", "--generate", env=self.environment)
        (STAGE / "laptop/.ray/auth_token").chmod(0o600)
        self.config = str(configuration())

    def ray(self, *arguments: str, timeout: float = 300) -> str:
        """``ray`` up, exec, down, as a person types it in the project's folder."""
        return sh("ray", *arguments, timeout=timeout, cwd=ROOT, env=self.environment)

    def on_head(self, command: str) -> str:
        """Run a command on the head, through ``ray exec``."""
        return self.ray("exec", self.config, command)

    def broadsheet(self, *arguments: str) -> str:
        """``broadsheet`` on this machine."""
        command = [sys.executable, "-m", "broadsheet", *arguments]
        return sh(*command, timeout=400, cwd=STAGE / "laptop", env=self.environment)

    @contextlib.contextmanager
    def dashboard(self) -> Iterator[None]:
        """``ray dashboard`` in a second terminal."""
        with (STAGE / "logs/dashboard").open("wb") as log:
            way = subprocess.Popen(["ray", "dashboard", self.config], cwd=ROOT, env=self.environment, stdout=log,
                                   stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
            try:
                yield
            finally:
                os.killpg(way.pid, signal.SIGTERM)
                way.wait(10)


def carried() -> float:
    """Megabytes that the two workers' cables have carried so far."""
    folder = Path("/sys/class/net")
    return (
        sum(
            int((folder / f"broadsheet-v{i}/statistics/{way}_bytes").read_text())
            for i in (2, 3)
            for way in ("rx", "tx")
        )
        / 1e6
    )


def until(what: str, ask: Any, seconds: float = 180) -> Any:
    """Ask until the answer is not empty."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(2)
    return answer


def classify(address: str, text: str) -> str:
    """The label that an endpoint gives to a text."""
    request = urllib.request.Request(
        f"http://{address}:8000/v1/classify", json.dumps({"inputs": text, "top_k": 1}).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return answer.read().decode()


def play() -> None:
    """From ``ray up`` to ``ray down``."""
    laptop = Laptop()
    words = {"colour": "red green blue", "number": "one two three", "way": "north south east"}
    rows = [f"{words[k]} {i},{k}" for i in range(120) for k in words]
    (STAGE / "shared/rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    began = time.monotonic()
    laptop.ray("up", "-y", "--no-config-cache", laptop.config, timeout=400)
    until("three nodes", lambda: f"nodes: {len(HOSTS)}" in (_quietly(lambda: laptop.on_head(COUNT)) or ""))
    say(f"ray up: three nodes after {time.monotonic() - began:.0f} s")

    where = f"--storage {SHARED}/runs --data {SHARED}/rows.csv --model lstm --workers 3"
    said = laptop.on_head(f"broadsheet doctor --address auto --host 0.0.0.0 --insecure {where}")
    print(said)
    for expected in ("3 nodes, 4 CPUs", "6 of 6 connections", "written, and read by the others, on all 3 nodes",
                     "3 workers x 1 CPU = 3 CPUs of 4 CPUs", "all is well"):  # fmt: skip
        assert expected in said, f"doctor did not say: {expected}"

    run = ["--storage", f"{SHARED}/runs", "--data", f"{SHARED}/rows.csv", "--model", "lstm"]
    small = ["model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=6",
             "train.batch_tokens=512", "train.evaluations=2"]  # fmt: skip
    run += [word for item in small for word in ("--set", item)]
    with laptop.dashboard():
        until("the dashboard", lambda: _quietly(lambda: laptop.broadsheet("status")))
        say("prepare")
        print(laptop.broadsheet("submit", "--", "prepare", *run))
        before = carried()
        say("train: 3 DDP workers of one CPU on two hosts of two")
        said = laptop.broadsheet("submit", "--", "train", *run, "--workers", "3")
        print(said)
        assert "3 workers x 1 CPU" in said
        say(f"training carried {carried() - before:.1f} MB over the workers' cables")
        assert (STAGE / "shared/runs/default/checkpoint/broadsheet.json").is_file()
        say("serve")
        endpoint = ["--host", "0.0.0.0", "--insecure", "--set", "serve.engine=torch"]
        print(laptop.broadsheet("submit", "--", "serve", f"{SHARED}/runs/default", *endpoint))
        answers = {text: classify(HEAD, text) for text in words.values()}
        print(*answers.items(), sep="\n")
        for text, answer in answers.items():
            assert any(f'"{label}"' in answer for label in words), f"{text}: {answer}"
        print(laptop.on_head("broadsheet serve --address auto --status"))
        print(laptop.on_head("broadsheet serve --address auto --stop"))
        print(laptop.broadsheet("status"))
    began = time.monotonic()
    laptop.ray("down", "-y", laptop.config)
    until("the end of every Ray", lambda: not any("raylet/raylet" in p or "gcs_server" in p for p in _processes()))
    say(f"ray down: no Ray is left after {time.monotonic() - began:.0f} s")


def _quietly(ask: Any) -> Any:
    with contextlib.suppress(RuntimeError):
        return ask() or " "
    return None


def _processes() -> list[str]:
    """The command lines of all hosts."""
    found = []
    for pid in (pid for name in HOSTS for pid in sh("ip", "netns", "pids", name).split()):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return found


def main() -> int:
    """The whole test; returns the exit code: ``CANNOT`` where it could not be tried."""
    if "--clean" in sys.argv:
        clean()
        return 0
    try:
        check()
    except LeftOvers as e:
        print(f"cluster-test failed: {e}", file=sys.stderr)
        return 1
    except CannotRun as e:
        print(f"cluster-test cannot run here: {e}", file=sys.stderr)
        return CANNOT
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        with hosts():
            say(f"three hosts after {time.monotonic() - began:.0f} s")
            play()
    except (RuntimeError, AssertionError, OSError, subprocess.TimeoutExpired) as e:
        print(f"cluster-test failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"passed in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
