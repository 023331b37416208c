"""``broadsheet doctor``: what the machine or cluster has, and whether the configured job fits."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data import named
from pipeline.data import prepare as preparation
from pipeline.errors import UserError
from pipeline.model import source
from pipeline.storage import Place
from pipeline.train import checkpoint

GB = 1 << 30
# Disk that one run may take, in bytes: prepared data (about 3 bytes per raw byte) comes on top.
CHECKPOINT_BYTES_PER_PARAMETER = 12  # float32 weights and two moments
MINILM_PARAMETERS = 22_700_000


@dataclass(frozen=True)
class Finding:
    """One line of the examination. ``advice`` says what to do where ``good`` is false."""

    subject: str
    good: bool
    fact: str
    advice: str = ""


def run(config: Config, address: str | None) -> bool:
    """Examine, print a line per finding, and tell whether all is well."""
    findings = examine(config, address)
    for f in findings:
        mark = "[green]ok  [/]" if f.good else "[bold red]FAIL[/]"
        console.out.print(f"{mark} {f.subject:<10} {console.escape(f.fact)}")
        if not f.good:
            console.out.print(f"     {'':<10} -> {console.escape(f.advice)}")
    good = all(f.good for f in findings)
    failed = sum(not f.good for f in findings)
    console.say("doctor", "all is well" if good else f"{failed} of {len(findings)} checks failed")
    return good


def examine(config: Config, address: str | None) -> list[Finding]:
    """All findings about this machine, the cluster and the configured job."""
    versions = ", ".join(f"{k} {v}" for k, v in checkpoint.versions().items())
    findings = [Finding("versions", True, versions)]
    try:
        have = cluster.connect(address)
    except UserError as e:
        return [*findings, Finding("cluster", False, f"no answer at {address}", str(e))]
    where = address or os.environ.get("RAY_ADDRESS") or "local, ends with the command"
    findings += [
        Finding("cluster", True, f"{have.line()} ({where})"),
        *_nodes(),
        _fits(config, have),
        _storage(config, have),
        _disk(config),
        _port(config),
    ]
    findings += [_attempt("data", lambda: _data(config)), _attempt("model", lambda: _model(config))]
    return findings


def _attempt(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except UserError as e:
        return Finding(subject, False, "cannot be used", str(e))


def _nodes() -> list[Finding]:
    """What each node runs: it must be what the driver runs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look() -> dict[str, str]:
        from pipeline.train import checkpoint as c

        return c.versions()

    alive = [n for n in ray.nodes() if n["Alive"]]
    mine = checkpoint.versions()
    task = ray.remote(num_cpus=0)(look)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote()
        for n in alive
    ]
    findings = []
    for node, answer in zip(alive, asked, strict=True):
        total = node["Resources"]
        has = f"{node['NodeManagerAddress']}: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        try:
            theirs = ray.get(answer, timeout=60)
        except Exception as e:  # whatever went wrong there, the node cannot do the work
            reason = (str(e).strip().splitlines() or [type(e).__name__])[-1]
            findings.append(Finding("node", False, f"{has}: {reason}", "install Broadsheet there at the same versions"))
            continue
        other = [f"{k} {theirs.get(k)} there, {v} here" for k, v in mine.items() if theirs.get(k) != v]
        findings.append(
            Finding("node", not other, f"{has}{', same versions' if not other else ': ' + '; '.join(other)}",
                    "install the same versions on every node (constraints.txt)")
        )  # fmt: skip
    return findings


def _fits(config: Config, have: cluster.Resources) -> Finding:
    try:
        layout = cluster.train_layout(config, have)
    except UserError as e:
        return Finding("training", False, "does not fit", str(e))
    return Finding("training", True, f"{layout.arithmetic()} of {have.cpus} CPUs, {have.gpus} GPUs")


def _storage(config: Config, have: cluster.Resources) -> Finding:
    place = Place.of(config.storage)
    marker = place / f".doctor-{os.getpid()}"
    try:
        marker.write_text("broadsheet")
        good = marker.read_text() == "broadsheet"
        marker.delete()
    except (OSError, UserError) as e:
        return Finding("storage", False, f"{place}: {e}", "choose a folder or bucket you may write to with --storage")
    if have.nodes > 1 and place.is_local:
        seen = f"{place}: writable here; {have.nodes} nodes must all see this path"
        return Finding("storage", good, seen + " (a shared mount, or use --storage s3://...)")
    return Finding("storage", good, f"{place}: written and read back")


def _disk(config: Config) -> Finding:
    place = Place.of(config.storage)
    if not place.is_local:
        return Finding("disk", True, f"{place.uri.split('://')[0]} storage: not measured")
    folder = Path(place.uri)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    kept = config.train.keep_checkpoints + 2
    need = kept * CHECKPOINT_BYTES_PER_PARAMETER * MINILM_PARAMETERS
    fact = f"{free / GB:.1f} GB free; {kept} checkpoints of a MiniLM take {need / GB:.1f} GB"
    return Finding("disk", free > 2 * need, fact, "free some disk, or choose another --storage")


def _port(config: Config) -> Finding:
    host, port = config.serve.host, config.serve.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            return Finding(
                "port",
                False,
                f"{host}:{port}: {e.strerror}",
                "end what holds it, or choose another with --set serve.port=",
            )
    return Finding("port", True, f"{host}:{port} is free")


def _data(config: Config) -> str:
    resolved, line = named.resolve(config)
    sources = preparation.plan(resolved)
    return f"{line}; {len(sources)} files, {sum(s.size for s in sources) / 1e6:.1f} MB"


def _model(config: Config) -> str:
    found: Any = source.resolve(config.model.name)
    return f"{config.model.name}: {found.folder or 'trained from scratch'}"
