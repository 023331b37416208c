"""``broadsheet doctor``: what the machine or cluster has, whether its nodes are alike, and whether the run fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data import named
from pipeline.data import prepare as preparation
from pipeline.doctor import facts, fits, nodes
from pipeline.doctor.facts import Counted, NodeFacts
from pipeline.doctor.judge import GB, Finding, judge
from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.model import source
from pipeline.storage import Place
from pipeline.train import checkpoint, trainer

SERVE_S = 10.0


def run(config: Config, address: str | None) -> bool:
    """Examine, print a line per finding, and tell whether all is well."""
    findings = []
    for f in examine(config, address):
        findings.append(f)
        if console.as_json():
            more = {"subject": f.subject} if f.good else {"subject": f.subject, "advice": f.advice}
            console.record("info" if f.good else "error", "doctor", f.fact, None, **more)
            continue
        mark = ("ok  ", "green") if f.good else ("FAIL", "bold red")
        console.out.print(Text.assemble(mark, f" {f.subject:<10} {f.fact}"))
        if not f.good:
            console.out.print(Text(f"     {'':<10} -> {f.advice}"))
    failed = sum(not f.good for f in findings)
    console.say("doctor", "all is well" if not failed else f"{failed} of {len(findings)} checks failed")
    return not failed


def examine(config: Config, address: str | None) -> Iterator[Finding]:
    """All findings about the cluster (or this machine) and the configured run, as they are made."""
    try:
        have = cluster.connect(address)
    except UserError as e:
        yield Finding("cluster", False, f"no answer at {address or os.environ.get('RAY_ADDRESS')}", str(e))
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local, ends with the command"
    yield Finding("cluster", True, f"{have.line()} ({where})")
    here_has = 0.0, 0.0
    try:
        examined = nodes.examine(config)
    except (OSError, UserError, WorkFailed) as e:
        advice = "choose a folder or bucket that you may write to with --storage"
        yield Finding("storage", False, f"here: {Place.of(config.storage)}: {first_line(e)}", advice)
    else:
        own = [n.counted for n in examined.nodes if n.counted.address == examined.here]
        here_has = sum(c.cpus for c in own), sum(c.gpus for c in own)
        for n in examined.nodes:
            yield Finding("node", True, _line(n, examined.here))
        for silent, reason in examined.silent.items():
            advice = "there: pip install -c constraints.txt -e ., with the same Python, then restart Ray"
            yield Finding("node", False, f"{silent}: it cannot run the project: {reason}", advice)
        port = f"{config.serve.host}:{config.serve.port}"
        me = NodeFacts(Counted("", examined.here, 0, 0, 0, 0), "here", checkpoint.versions(), facts.code_digest())
        storage = str(Place.of(config.storage))
        yield from judge(examined.nodes, me, storage, examined.read_back, port, _serves())
    yield from _run(config, have, here_has)


def _run(config: Config, have: cluster.Resources, here_has: tuple[float, float]) -> Iterator[Finding]:
    """Whether data and model are there, and the run fits."""
    found: source.ModelSource

    def resolved() -> str:
        nonlocal found
        found = source.resolve(config.model.name)
        return f"{config.model.name}: {found.folder or 'trained from scratch'}"

    yield _attempt("data", lambda: _data(config))
    model = _attempt("model", resolved)
    yield model
    if model.good:
        count, averaged = fits.parameters(config, found.folder), trainer.ema_decay(config, found) > 0
        loopback = cluster.is_loopback(config.serve.host)
        yield from fits.findings(config, have, here_has, loopback, count, averaged, _free(config))


def _line(n: NodeFacts, here: str) -> str:
    c = n.counted
    what = f"{c.cpus:g} CPUs, {c.gpus:g} GPUs, {c.memory / GB:.1f} GB memory, {c.object_store / GB:.1f} GB object store"
    return f"{n.name}{' (here)' if c.address == here else ''}: {what}"


def _attempt(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except (UserError, WorkFailed) as e:
        return Finding(subject, False, "cannot be used", str(e))


def _serves() -> int | None:
    """The port on which Ray Serve listens on the cluster; None where it does not run."""
    import ray

    try:
        controller = ray.get_actor(
            "SERVE_CONTROLLER_ACTOR", "serve"
        )  # private: tests/serve/test_serve_e2e.py watches it
        told: Any = ray.get(controller.get_http_config.remote(), timeout=SERVE_S)
        return int(told.port)
    except (ValueError, AttributeError, ray.exceptions.RayError):
        return None


def _free(config: Config) -> int | None:
    """Bytes free where runs live, if that is a disk."""
    place = Place.of(config.storage)
    if not place.is_local:
        return None
    folder = Path(place.uri)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _data(config: Config) -> str:
    resolved, line = named.resolve(config)
    sources = preparation.plan(resolved)
    return f"{line}; {len(sources)} files, {sum(s.size for s in sources) / 1e6:.1f} MB"
