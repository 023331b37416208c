"""Start and stop the endpoint on the Ray cluster this process is connected to."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve

from pipeline import cluster, console
from pipeline.cluster import Resources
from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from serve import client, desk, endpoints, exposure, haproxy, haproxy_processes, kept, tls
from serve.app import NAME, absolute, application
from serve.releases import Release, version_of

T = TypeVar("T")

READY_TIMEOUT_S = 600.0  # a first start on a kind of machine measures engines


class HeldByLeftover(UserError):
    """The port is held by an HAProxy that an earlier run left behind: process ``pid``."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port
        super().__init__(
            f"port {port} is held by an HAProxy (pid {pid}) that an earlier run left behind: end it with 'kill {pid}'"
        )


def deploy(checkpoint: str, config: Config, timeout_s: float = READY_TIMEOUT_S, stays: bool = True) -> str:
    """Serve a checkpoint and wait until the endpoint answers. Ray must be connected.

    Args:
        checkpoint: a checkpoint folder or URI that every node can read.
        config: the whole configuration; the serve section counts.
        timeout_s: how long the first replica may take.
        stays: whether replicas may start later, when the checkpoint's folder may hold another one.

    Returns:
        The base URL, for example ``http://127.0.0.1:8000``.

    Raises:
        UserError: there is no checkpoint, the port is taken, or the endpoint would be open without being asked to.
        WorkFailed: the model did not come up; the message carries the replica's reason.
    """
    folder = checkpoint_folder(checkpoint)
    exposure.check(config.serve, joins=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    started_here = not _joined(config.serve)
    before, ran = desk.names(), ours()
    if started_here:
        check_port(config.serve.host, config.serve.port)
        exposure.check_front(config.serve)
        serve.start(http_options=_listening(config.serve))
    url = base_url(config.serve)
    own = ""
    try:
        resources = pinned(config.serve)
        place = Place.of(folder)
        release = (
            kept.release(place, lambda s: console.warn("serve", s)) if stays else Release(folder, version_of(place))
        )
        kept.clear(release)
        own = desk.start(release, absolute(config.serve), resources)
        app = application(release, config.serve, own, resources)
        serve.run_many(
            [serve.RunTarget(app, name=NAME, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait(url, timeout_s, tls.trusting(config.serve.tls_cert) if config.serve.tls_cert else None)
    except BaseException:  # Ctrl-C too: an HAProxy would outlive this process and hold the port
        if started_here:
            shutdown()
        elif own:  # what served before goes on, with its own desk
            desk.stop(own)
            if NAME not in ran:
                with contextlib.suppress(ray.exceptions.RayError, TimeoutError):  # there is a reason to tell already
                    serve.delete(NAME)
        raise
    desk.stop(*before)
    endpoints.remember(config.serve.port, ray.get_runtime_context().gcs_address)
    return url


def ours() -> list[str]:
    """The applications of the connected cluster that are endpoints of Broadsheet; none where Serve does not run."""
    return [name for name, app in serve.status().applications.items() if name == NAME or NAME in app.deployments]


def runs() -> bool:
    """Whether Serve runs on the connected cluster, with or without applications."""
    return _controller() is not None


def end(whole: bool = True) -> list[str]:
    """End the endpoint, and every desk.

    Args:
        whole: whether to end Serve itself, too, where no other application is left.

    Returns:
        The names of the other applications, which go on.

    Raises:
        WorkFailed: the endpoint does not end.
    """
    mine = ours()
    others = sorted(set(serve.status().applications) - set(mine))
    if whole and not others:
        shutdown()
        return []
    for name in mine:
        try:
            serve.delete(name)
        except TimeoutError:  # Ray waits for a minute
            raise WorkFailed(f"{name} is still ending: look at 'serve status', and try again") from None
    desk.stop(*desk.names())
    endpoints.forget(ray.get_runtime_context().gcs_address)
    return others


def shutdown(timeout_s: float = 10.0) -> None:
    """Stop Ray Serve, and make sure that the HAProxy processes it started on this machine are gone."""
    config_file = _haproxy_config()
    _stop_controller(timeout_s)
    with _unsaid():  # that the controller is dead
        serve.shutdown()
    desk.stop(*desk.names())
    endpoints.forget(ray.get_runtime_context().gcs_address)
    Path(config_file).with_name(haproxy.PEM).unlink(missing_ok=True)
    until = time.monotonic() + timeout_s  # one that dies may leave a stand-in for a moment
    while (left := haproxy_processes.running(config_file)) and time.monotonic() < until + 5:
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        time.sleep(0.2)


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Without what Ray Serve says below warnings."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _stop_controller(timeout_s: float) -> None:
    """Ask the controller to stop without waiting on the call: Ray prints an error for a call that its end cuts off."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    until = time.monotonic() + timeout_s
    with contextlib.suppress(ValueError, ray.exceptions.RayActorError):  # gone: what we wait for
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=timeout_s)
        while time.monotonic() < until:
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
            time.sleep(0.1)


def base_url(config: ServeConfig) -> str:
    """The URL under which this machine reaches the endpoint."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"


def checkpoint_folder(checkpoint: str) -> str:
    """The checkpoint's absolute path or URI.

    Raises:
        UserError: it is not a checkpoint.
    """
    folder = Place.of(checkpoint)
    if not (folder / "broadsheet.json").exists():
        raise UserError(f"no checkpoint to serve in {checkpoint}: train one first with 'broadsheet train'")
    return str(folder)


def check_port(host: str, port: int) -> None:
    """Make sure that the port can be bound.

    Raises:
        UserError: it cannot; the message says who holds it where that is known.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise UserError(f"cannot listen on host {host!r}: {e}; choose another with --host") from None
    with socket.socket(family, kind, protocol) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(address)
            return
        except OSError as e:
            reason = e.strerror or str(e)
    for pid, _ in haproxy_processes.leftover():
        if haproxy_processes.holds(pid, port):
            raise HeldByLeftover(pid, port)
    raise UserError(f"cannot listen on {host}:{port} ({reason.lower()}): choose another port with --port")


def _listening(config: ServeConfig) -> dict[str, Any]:
    """Ray's HTTP options.

    Behind our HAProxy Ray itself stays on loopback: its replicas speak plain HTTP on the address it is given.
    """
    if haproxy.active() and haproxy.front() is not None:
        return {"host": config.host if exposure.is_loopback(config.host) else "127.0.0.1", "port": config.port}
    options: dict[str, Any] = {"host": config.host, "port": config.port}
    front = haproxy.wanted(config)
    return options | ({"ssl_certfile": front.cert, "ssl_keyfile": front.key} if front.cert else {})


def _joined(config: ServeConfig) -> bool:
    """Whether Serve already runs on the cluster, on the address that is wanted.

    Raises:
        UserError: it runs, but elsewhere.
    """
    running = _controller()
    if running is None:
        return False
    there, wanted = running.http_config, _listening(config)
    if (there.host, there.port) != (wanted["host"], wanted["port"]):
        raise UserError(
            f"Ray Serve already runs on this cluster, on {there.host}:{there.port}: use --host {there.host} "
            f"--port {there.port}, or stop it first with 'serve shutdown'"
        )
    return True


def listens_on() -> str | None:
    """The address on which the Serve of the connected cluster listens; None where none runs."""
    running = _controller() if ray.is_initialized() else None
    return None if running is None else str(running.http_config.host)


def _controller() -> Any:
    """Ray's client of the Serve that runs on the connected cluster; None if none does."""
    from ray.serve.context import _get_global_client  # private: tests/serve/test_serve_e2e.py watches it

    return _get_global_client(raise_if_no_controller_running=False)


def in_a_replica(config: ServeConfig, timeout_s: float, work: Callable[..., T], *given: Any) -> T:
    """Run ``work`` as a task with the CPUs of a replica, where the replicas are, and the checkpoint.

    Raises:
        UserError, WorkFailed: of ours, raised by ``work``.
        TimeoutError: it took longer than ``timeout_s``.
        ray.exceptions.RayError: anything else it raised.
    """
    size: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica, "max_retries": 0}
    task = ray.remote(work).options(**size, resources=pinned(config)).remote(*given)
    try:
        found: T = ray.get(task, timeout=timeout_s)
        return found
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        raise TimeoutError(f"not done within {timeout_s:g} s") from None
    except ray.exceptions.RayError as e:
        ours = cluster.our_error(e, way_out="")
        if ours is None:
            raise
        raise ours from e


def taken(config: ServeConfig, within_s: float = 0.0) -> str | None:
    """What a task with the CPUs of a replica lacks on the connected cluster now, in words; None if it can run.

    Args:
        config: the serve section.
        within_s: how long to wait for what ended just now to give back what it had.
    """
    need = {"CPU": config.cpus_per_replica, "GPU": config.gpus_per_replica}
    until = time.monotonic() + within_s
    while True:
        free = ray.available_resources()
        lacking = [f"{free.get(kind, 0.0):g} {kind}s are free of the {count:g} that a replica needs"
                   for kind, count in need.items() if free.get(kind, 0.0) < count]  # fmt: skip
        if not lacking or time.monotonic() >= until:
            return "; ".join(lacking) or None
        time.sleep(0.5)


def check_room(config: ServeConfig, has: Resources) -> None:
    """Refuse a number of replicas that can never run, on machines that will not become more.

    Raises:
        UserError: with the arithmetic.
    """
    most = has.room(config.cpus_per_replica, config.gpus_per_replica)
    if config.min_replicas > most:
        size = f"{config.cpus_per_replica:g} CPUs"
        size += f" and {config.gpus_per_replica:g} GPUs" if config.gpus_per_replica else ""
        raise UserError(
            f"serve.min_replicas={config.min_replicas} of {size} each do not fit: {most} do here ({has.line()}). "
            "Lower it, or serve.cpus_per_replica"
        )


def pinned(config: ServeConfig) -> dict[str, float]:
    """On several nodes, a loopback endpoint can only reach replicas on its own node: keep them here.

    Raises:
        UserError: this node has too few CPUs for a replica.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not exposure.is_loopback(config.host) or len(nodes) == 1:
        return {}
    here = ray.util.get_node_ip_address()
    most = max((n["Resources"].get("CPU", 0.0) for n in nodes if n["NodeManagerAddress"] == here), default=0.0)
    if most < config.cpus_per_replica:
        raise UserError(
            f"an endpoint on {config.host} keeps its replicas on this node ({here}), which offers {most:g} CPUs: "
            f"a replica needs {config.cpus_per_replica:g}. Listen where other nodes can be reached with --host 0.0.0.0"
        )
    return {f"node:{here}": 0.001}


def _wait(url: str, timeout_s: float, context: ssl.SSLContext | None) -> None:
    until = time.monotonic() + timeout_s
    last = "it did not start"
    while time.monotonic() < until:
        status: Any = serve.status().applications.get(NAME)
        if status is not None:
            messages = [status.message, *(d.message for d in status.deployments.values())]
            last = next((_reason(m) for m in reversed(messages) if m), last)
            if status.status == "DEPLOY_FAILED":
                raise WorkFailed(f"the model server did not start: {last}")
            if status.status == "RUNNING":
                try:
                    client.request(f"{url}/ready", timeout=5, context=context)
                    return
                except WorkFailed as e:
                    last = str(e)
        time.sleep(0.25)
    raise WorkFailed(f"the model server was not ready after {timeout_s:g} s: {last}")


def _reason(message: str) -> str:
    """The last line of a traceback, or the first of anything else."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|Ready)\b.*: ", line)]
    found = errors[-1] if errors else lines[0]
    return re.sub(r"^(ray::[^:]*: )?", "", found)[:500]


def _haproxy_config() -> str:
    """The configuration file of this node's HAProxy (Ray puts the node id into the path)."""
    from ray.serve._private.constants import RAY_SERVE_HAPROXY_CONFIG_FILE_LOC

    folder, name = os.path.split(RAY_SERVE_HAPROXY_CONFIG_FILE_LOC)
    return os.path.join(folder, ray.get_runtime_context().get_node_id(), name)
