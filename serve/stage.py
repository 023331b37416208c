"""``broadsheet serve``, and the last stage of ``broadsheet run``, as a person meets them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from serve import client, exposure, haproxy, haproxy_processes, tls

if TYPE_CHECKING:
    from pipeline.stages import Job

FREED_S = 10.0  # until the CPUs of a training that has ended are free, as Ray sees it


def before_connecting(config: Config, address: str | None, asks: bool = True) -> None:
    """Set what Ray must find in the environment when it starts; refuse a port that is taken, and what would be open
    without having been asked for.

    Args:
        config: the whole configuration.
        address: of the cluster; None for a Ray of our own.
        asks: whether this command will ask the endpoint itself, and needs a key for that.

    Raises:
        UserError: with the way out.
    """
    joins = cluster.is_named(address)
    exposure.check(config.serve, joins)
    if asks:
        exposure.own_key(config.serve)
    if not joins:
        os.environ.update(haproxy.environment(config.serve))
        exposure.check_front(config.serve)
    elif not asks:  # Serve may run there already, on this very port
        return
    from serve import deploy  # with Ray, which takes seconds

    try:
        deploy.check_port(config.serve.host, config.serve.port)
    except deploy.HeldByLeftover as e:
        if not _ended(e.pid, e.port):
            raise
        deploy.check_port(config.serve.host, config.serve.port)


def _ended(pid: int, port: int) -> bool:
    """Offer to end an HAProxy that an earlier run left behind, if there is somebody to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    if not click.confirm(f"port {port} is held by an HAProxy (pid {pid}) that an earlier run left behind. End it?"):
        return False
    return haproxy_processes.end(pid, port)


def serve(config: Config, where: str | None, address: str | None) -> None:
    """Serve a checkpoint until Ctrl-C (or SIGTERM); on a cluster that was named, deploy it there and come back.

    Raises:
        UserError: there is no checkpoint, the port is taken, or the endpoint would be open without being asked to.
        WorkFailed: the endpoint did not come up.
    """
    from pipeline.train import checkpoint

    found = checkpoint.find(where or str(Place.of(config.storage) / config.name))
    before_connecting(config, address, asks=False)
    if config.serve.cascade and (lacks := _cascade(found)):
        raise UserError(f"serve.cascade is on, and {lacks}; or leave serve.cascade off: the network answers all texts")
    from serve import deploy

    has = cluster.connect(address)
    if not cluster.is_named(address):
        deploy.check_room(config.serve, has)
    console.say("serve", f"loading {found}")
    if config.serve.engine == "auto":
        console.say("serve", "a first start on a kind of machine measures engines: about a minute more")
    url = _deploy(found, config)
    body = '{"inputs": "Oil prices climb as exporters agree to cut output", "top_k": 1}'
    trust = f"--cacert {shlex.quote(config.serve.tls_cert)} " if config.serve.tls_cert else ""
    key = f'-H "authorization: Bearer ${exposure.KEY_VARIABLE}" ' if config.serve.keys else ""
    ask = f"curl -s {trust}{key}{url}/v1/classify -H 'content-type: application/json' -d {shlex.quote(body)}"
    console.say("next", f"open {url} in a browser, or: {ask}")
    if cluster.is_named(address):
        _say_it_stays(config, address)
    else:
        _wait_and_stop()


def export(config: Config, where: str | None) -> None:
    """Measure on this machine which engine serves a checkpoint, and print the figures.

    Raises:
        UserError: there is no checkpoint.
    """
    from pipeline.evaluate import cascade, cascade_folder
    from pipeline.train import checkpoint
    from serve.engine import choice, load

    found = checkpoint.find(where or str(Place.of(config.storage) / config.name))
    _, record = load.load(str(found), config.serve, lambda line: console.say("export", line))
    for line in choice.lines(record.measured, record.choice):
        console.say("export", line)
    if record.reason:
        console.say("export", f"engine {record.choice.single}: {record.reason}")
    if (pair := cascade_folder.read(found)) is not None:
        console.say("export", cascade.line(pair.figures()))
    console.say("next", f"broadsheet serve {found}")


def answer_and_stop(job: Job, address: str | None, keep_serving: bool) -> None:
    """Serve the job's checkpoint, classify two texts through HTTP, print the answers, and stop (or stay).

    An endpoint that a cluster keeps already is left alone, and a line says how it takes on the checkpoint.
    """
    from pipeline import stages
    from serve import deploy

    assert job.checkpoint is not None
    has = cluster.connect(address)
    if not cluster.is_named(address):
        deploy.check_room(job.config.serve, has)
    joins = deploy.runs()
    if joins and deploy.ours():
        update = f"{_command(job.config, address)} --update {shlex.quote(str(job.run))}"
        console.warn(
            "serve", f"the cluster keeps an endpoint already, and it stays as it is. To replace its model: {update}"
        )
        console.say("done", f"everything is under {job.run}")
        console.say("next", f"open {job.run}/report/index.html")
        return
    began = time.monotonic()
    config = job.config
    if not keep_serving and config.serve.engine == "auto":  # two texts are not worth measuring engines
        config = config.updated({"serve.engine": "torch"})
    if config.serve.cascade and (lacks := _cascade(job.checkpoint)):  # all else that this command was for is done
        console.warn("serve", f"{lacks}; the network answers all texts")
    url = _deploy(job.checkpoint, config, strict=False, stays=keep_serving)
    stays = False
    try:
        texts = stages.two_texts(job)
        section = job.config.serve
        context = tls.trusting(section.tls_cert) if section.tls_cert else None
        answers = client.classify(url, texts, top_k=2, key=exposure.own_key(section), context=context)
        for text, answer in zip(texts, answers, strict=True):
            words = ", ".join(f"{a['label']} {a['score']:.3f}" for a in answer)
            console.say("serve", f"“{text[:80]}{'…' if len(text) > 80 else ''}” -> {words}")
        job.seconds["serve"] = time.monotonic() - began
        if keep_serving and cluster.is_named(address):
            stays = True
            _say_it_stays(config, address)
            return
        if keep_serving:
            _wait_and_stop(stop=False)
    finally:
        if not stays:
            deploy.end(whole=not joins)
    console.say("serve", "endpoint stopped")
    if not keep_serving:
        console.say("done", f"everything is under {job.run}")
        console.say("next", f"open {job.run}/report/index.html, or serve the model: broadsheet serve {job.run}")


def _cascade(found: Place) -> str | None:
    """Say what the checkpoint's cascade does; returns why there is none to serve, if so."""
    from pipeline.evaluate import cascade, cascade_folder
    from serve.cascade import lacking

    lacks = lacking(found)
    record = cascade_folder.read(found)
    if lacks is None and record is not None:
        console.say("serve", cascade.line(record.figures()))
    return lacks


def _deploy(checkpoint: Place, config: Config, strict: bool = True, stays: bool = True) -> str:
    """Deploy and say what serves.

    Args:
        checkpoint: its folder.
        config: the whole configuration.
        strict: whether a latency goal that nothing can be measured for is an error.
        stays: as of ``deploy.deploy``.
    """
    from serve import deploy

    if config.serve.latency_goal_ms:
        try:
            config = _for_goal(config.serve.latency_goal_ms, checkpoint, config)
        except (UserError, WorkFailed) as e:
            if strict:
                raise
            console.warn("serve", f"{e}. What is configured is kept")
    url = deploy.deploy(str(checkpoint), config, stays=stays)
    s = config.serve
    console.say("serve", f"listening on {url} ({s.min_replicas} to {s.max_replicas} replicas of "
                f"{s.cpus_per_replica:g} CPU{'' if not s.haproxy else ', HAProxy in front'}), {url}/docs")  # fmt: skip
    context = tls.trusting(s.tls_cert) if s.tls_cert else None
    with contextlib.suppress(WorkFailed):  # said for information; the endpoint has answered already
        runs = client.request(f"{url}/ready", context=context)["engine"]
        console.say("serve", f"engine: {runs['single']} for single texts, {runs['batch']} for batches")
    if s.keys is None and not exposure.is_loopback(s.host):
        console.warn("serve", f"whoever reaches {s.host}:{s.port} may ask: there are no keys (--insecure)")
    return url


def _for_goal(goal_ms: float, checkpoint: Place, config: Config) -> Config:
    """The configuration with what follows from the goal, where it does not say otherwise itself."""
    from serve import capacity, deploy

    if lacks := deploy.taken(config.serve, FREED_S):
        console.warn("serve", f"serve.latency_goal_ms: nothing is measured, as {lacks}. What is configured is kept")
        return config
    console.say("serve", "measuring what a replica does")
    try:
        rates, max_tokens = deploy.in_a_replica(
            config.serve, deploy.READY_TIMEOUT_S, capacity.of_checkpoint, str(checkpoint), config.serve
        )
    except TimeoutError as e:
        raise WorkFailed(f"serve.latency_goal_ms: what a replica does could not be measured: {e}") from e
    knobs = capacity.derive(goal_ms, rates, config.serve, max_tokens)
    for line in capacity.lines(goal_ms, rates, knobs):
        console.say("serve", line)
    if config.serve.cascade:
        console.say("serve", "that is the network alone: texts that the cascade's linear model answers take less")
    if not knobs.reachable:
        console.warn("serve", f"no number of replicas meets the goal: a text alone takes {rates.single_ms:.1f} ms")
    changes = {}
    for key in ("target_ongoing_requests", "max_queue", "batch_tokens"):
        if config.serve.follows_from_goal(key):
            changes[f"serve.{key}"] = getattr(knobs, key)
        else:
            console.say("serve", f"serve.{key}={getattr(config.serve, key):g} is kept, as it is set")
    return config.updated(changes)


def _say_it_stays(config: Config, address: str | None) -> None:
    """How to come back to an endpoint that the cluster keeps."""
    where = _command(config, address)
    console.say("next", f"the cluster keeps the endpoint: {where} --status, --update RUN, --rollback, --stop")


def _command(config: Config, address: str | None) -> str:
    """What to type for an endpoint on a cluster, up to what it should do. RAY_ADDRESS is the job's own affair."""
    port = "" if config.serve.port == 8000 else f" --port {config.serve.port}"
    return f"broadsheet serve{port} --address {address or 'auto'}"


def _wait_and_stop(stop: bool = True) -> None:
    """Wait for Ctrl-C or SIGTERM; a second Ctrl-C while stopping is ignored."""
    from serve import deploy

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    console.say("serve", "Ctrl-C stops it")
    over.wait()
    console.say("serve", "stopping")
    if stop:
        deploy.shutdown()
