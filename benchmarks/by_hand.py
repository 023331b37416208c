"""Ray on hosts out of network namespaces, started by hand as docs/cluster.md says: what head_loss and scaling share."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys

import yaml
from measure import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from host_spaces import HOSTS, SHARED, STAGE, sh, ssh
from real_hosts import COUNT, HEAD, STORE

HEAD_NAME, *WORKERS = HOSTS
ON_PREM = yaml.safe_load((ROOT / "cluster/on-prem.yaml").read_text(encoding="utf-8"))
MOUNTED = [part for place, part in ON_PREM["file_mounts"].items() if place.startswith("~/app/")]
# What docs/cluster.md names for every node. Hosts have no package index: models come from what they share.
EVERYWHERE = (
    'unset OMP_NUM_THREADS; export PATH="$HOME/venv/bin:$PATH" RAY_AUTH_MODE=token '
    f"GLOO_SOCKET_IFNAME=eth0 RAY_gcs_rpc_server_reconnect_timeout_s=600 BROADSHEET_CACHE={SHARED}/cache; "
    'eval "$(broadsheet-haproxy --environment)"; '
)


class Cluster:
    """A head that takes no work, and workers; the project and a token are put on every host.

    Args:
        cpus: logical CPUs of a worker.
        redis: ``HOST:PORT`` of where the head keeps the cluster's state; None: in its memory.
    """

    def __init__(self, cpus: int, redis: str | None = None) -> None:
        self.cpus, self.redis, self.password = cpus, redis, secrets.token_hex(16)
        token = secrets.token_hex(32)
        for name in HOSTS:
            home = STAGE / name / "home"
            (home / ".ray").mkdir(mode=0o700)
            (home / ".ray/auth_token").write_text(token)
            (home / ".ray/auth_token").chmod(0o600)
            (home / "app").mkdir()
            for part in MOUNTED:
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, home / "app" / part)
            self.on(name, "cd ~/app && ~/venv/bin/pip install -q --no-deps --no-build-isolation -e .")

    def on(self, name: str, command: str, timeout: float = 600) -> str:
        """Run a command on a host; what it printed."""
        return sh(*ssh(HOSTS[name]), EVERYWHERE + command, timeout=timeout)

    def start(self, name: str) -> None:
        """Start Ray on a host, as its supervisor does at boot."""
        state, how = "", f"--address={HEAD}:6379 --num-cpus={self.cpus}"
        if name == HEAD_NAME:
            how = "--head --num-cpus=0 --port=6379 --dashboard-host=127.0.0.1"
            if self.redis is not None:
                state = f"RAY_REDIS_ADDRESS={self.redis} RAY_external_storage_namespace=broadsheet "
                how += f" --redis-password={self.password}"
        self.on(name, f"{state}ray start {how} --node-ip-address={HOSTS[name]} --object-store-memory={STORE}")

    def nodes(self) -> int:
        """On how many hosts Ray runs; 0 where the head does not answer."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return int(self.on(HEAD_NAME, COUNT, 60).rpartition("nodes:")[2])
        return 0


def words(*sets: str) -> str:
    """``--set`` for each."""
    return " ".join(f"--set {item}" for item in sets)
