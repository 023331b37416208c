"""Connect to Ray, count what is there, and refuse plans that cannot be laid out, with the arithmetic."""

from __future__ import annotations

import ipaddress
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline import auth_token, raylet
from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.processors import local_cpus

REACH_SECONDS = 5.0
AUTH_MODE = "RAY_AUTH_MODE"
NOBODY = ("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # where no Ray answers
_without_dashboard = False  # the Ray that this process has started
START_TIMEOUT = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")  # for Ray to find room for all workers


@dataclass(frozen=True)
class Resources:
    """What a cluster has.

    Attributes:
        per_node: logical CPUs and GPUs of each live node.
        memory_gb: memory that Ray hands out, all nodes together.
    """

    per_node: tuple[tuple[int, int], ...]
    memory_gb: float = 0.0

    @property
    def nodes(self) -> int:
        """Live nodes."""
        return len(self.per_node)

    @property
    def cpus(self) -> int:
        """Logical CPUs of all nodes."""
        return sum(c for c, _ in self.per_node)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(g for _, g in self.per_node)

    def room(self, cpus: float, gpus: float = 0.0) -> int:
        """How many processes of this size fit: each must find all of its CPUs and GPUs on one node."""
        fits = []
        for node_cpus, node_gpus in self.per_node:
            by_cpu = int(node_cpus / cpus + 1e-9)
            fits.append(min(by_cpu, int(node_gpus / gpus + 1e-9)) if gpus else by_cpu)
        return sum(fits)

    def line(self) -> str:
        """For a person."""
        each = " + ".join(str(c) for c, _ in self.per_node)
        cpus = f"{self.cpus} CPUs" + (f" ({each})" if 1 < self.nodes <= 8 else "")
        nodes = f"{self.nodes} node{'s' if self.nodes != 1 else ''}"
        return f"{nodes}, {cpus}, {self.gpus} GPUs, {self.memory_gb:.0f} GB memory"


def connect(address: str | None = None, dashboard: bool = False) -> Resources:
    """Connect once: to ``address`` (or RAY_ADDRESS), else to a fresh local Ray that ends with this process.

    Args:
        address: the cluster.
        dashboard: whether a local Ray starts its dashboard, which takes a second: Ray Train frees the CPUs of a
            stopped trial only after asking the dashboard's API who is still alive.

    Raises:
        UserError: no cluster answers at the address.
    """
    # Quiet by default; a user's own settings win.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(*START_TIMEOUT)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # of the half minute that some clouds give
    # How often the controller looks at its workers: each evaluation, and what a killed driver loses, waits for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    import ray

    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address != "local":
            check_reachable(address)
        if address == "local":
            auth_token.keep_private()
            # Two Train runs and their helpers are eight processes, mostly idle: no reason for Ray to warn of a leak.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, local_cpus())))
            # Nobody tells of the end of this machine: that is a process less.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            options |= {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1", "num_cpus": local_cpus()}
            global _without_dashboard
            _without_dashboard = not dashboard
        else:
            # Only the variables the workers need travel; the code must be installed on every node.
            options |= {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=address, **options)
        except Exception as e:  # ray raises many kinds here; the first line says what happened
            first = first_line(e)
            raise UserError(
                f"--address {address}: cannot connect to a Ray cluster there: {first}. "
                "Start one with 'ray start --head', or leave --address and RAY_ADDRESS away for a local one"
            ) from e
        if address == "local":
            raylet.watch()
    return resources()


def take_on(auth: str) -> None:
    """Show the token to a Ray of ours on this machine, if it demands one: Ray does that by itself where it starts or
    finds a cluster, but not where an address is named (2.60).

    Args:
        auth: RAY_AUTH_MODE of that Ray; a user's own setting wins.
    """
    if not auth or AUTH_MODE in os.environ:
        return
    os.environ[AUTH_MODE] = auth
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # it was read when Ray was loaded; private: tests/serve/test_releases_e2e.py watches it


def is_named(address: str | None) -> bool:
    """Whether a cluster is asked for, rather than a fresh local Ray."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reachable(address: str) -> None:
    """Find out in seconds that nobody listens: Ray's own attempt takes minutes.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return  # ray:// and 'auto' are Ray's to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError, ValueError) as e:
        raise UserError(
            f"--address {address}: no Ray cluster listens there ({e}). Start one with 'ray start --head', "
            "or leave --address and RAY_ADDRESS away for a local one"
        ) from e


def data() -> Any:
    """``ray.data``, with its own log lines and progress bars off: ``console`` shows progress instead."""
    import logging

    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # Only after the import, which configures it. Its errors are raised, too: no need of their tracebacks on the screen.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray.data


def resources() -> Resources:
    """What the connected cluster has."""
    import ray

    alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    per_node = tuple((int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in alive)
    return Resources(per_node, sum(n.get("memory", 0) for n in alive) / 1e9)


def most_free_cpus() -> float:
    """CPUs that nobody holds now on the connected cluster's node with most of them."""
    return max((float(n.get("CPU", 0.0)) for n in _free_of_nodes()), default=0.0)


def free() -> Resources:
    """Whole CPUs and GPUs that nobody holds now on the connected cluster."""
    return Resources(tuple((int(n.get("CPU", 0.0)), int(n.get("GPU", 0.0))) for n in _free_of_nodes()))


def _free_of_nodes() -> list[dict[str, float]]:
    from ray._private.state import available_resources_per_node  # nothing public tells nodes apart: test_retrain_e2e

    return list(available_resources_per_node().values())


def may_grow() -> bool:
    """Whether nodes may join the connected cluster by themselves: whatever starts nodes for Ray (``ray up``, KubeRay)
    names the group of each. Whether it has reached its largest size, nobody tells."""
    import ray

    return any((n.get("Labels") or {}).get("ray.io/node-group") for n in ray.nodes() if n["Alive"])


@contextmanager
def pinned() -> Iterator[None]:
    """While Ray Train starts its actors, name this cluster in their environment.

    The actor that frees the CPUs of a stopped trial asks Ray's state API who is alive, and that looks for *a* cluster:
    in RAY_ADDRESS, else whatever the last ``ray start`` on the machine left in a file. One that was killed, or a
    second Ray beside ours, and the CPUs are never freed: the next trial waits for ever (Ray 2.60). Ray Train hands
    the variables named in a set of its own on to its actors; ``tests/test_cluster.py`` watches that set.

    A Ray without a dashboard says all the same that its dashboard is at port 8265. Where another Ray's is there, that
    one is asked, does not know our controller, and the workers of a training that goes well are ended. So that actor is
    sent where nobody answers; it goes on asking, and such a Ray ends with its driver anyway.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    names = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **dict([NOBODY] if _without_dashboard else [])}
    ENV_VARS_TO_PROPAGATE.update(names)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def expect_lost_nodes() -> None:
    """Wait for room for fewer seconds, where a training may go on with fewer workers.

    Ray counts on a lost node for up to half a minute, and would wait two for a worker there before it tries again
    with what is left. A user's own setting wins.
    """
    name, usual = START_TIMEOUT
    if os.environ.get(name) == usual:
        os.environ[name] = "30"


# What it means when one of Ray's own errors reaches the driver: whatever Ray retries has been retried by then. The
# first that is found counts. A dead actor is not here: Ray Train's are told of with their checkpoints.
_OUT_OF_MEMORY = "OutOfMemoryError"
_RAY_BROKE = {
    _OUT_OF_MEMORY: "memory ran out, and Ray ended a worker process",
    "OutOfDiskError": "the disk that Ray keeps its objects on is full",
    "ObjectStoreFullError": "the memory that Ray keeps its objects in is full",
    "LocalRayletDiedError": raylet.DIED,
    "NodeDiedError": "a node of the Ray cluster died or cannot be reached",
    "OwnerDiedError": "the process that owned data on its way between two steps died",
    "ObjectLostError": "data on its way between two steps was lost with the node that held it",
    "WorkerCrashedError": "a worker process of Ray died, and so did those that tried again",
    "RpcError": "a process of Ray does not answer",
    "RaySystemError": "Ray itself failed",
}


def our_error(
    error: BaseException,
    memory_keys: str = "",
    way_out: str = raylet.GO_ON,
) -> UserError | WorkFailed | None:
    """The UserError or WorkFailed inside what Ray raised for a task, actor or training worker, if there is one.

    Where there is none, but Ray itself broke, a WorkFailed that says what died.

    Args:
        error: what was caught.
        memory_keys: what to lower in the configuration where memory ran out.
        way_out: the last words where Ray broke.
    """
    said = raised(error)
    if said is not None:
        return said
    broke: dict[str, BaseException] = {}
    for e in _inside(error):
        for kind in type(e).__mro__:
            if kind.__module__ == "ray.exceptions" and kind.__name__ in _RAY_BROKE:  # by name: Ray may not be loaded
                broke.setdefault(kind.__name__, e)
    for name, what in _RAY_BROKE.items():
        if name in broke and isinstance(error, Exception):  # Ctrl-C stays Ctrl-C
            return WorkFailed(f"{what}{_more(name, broke[name], memory_keys)}. {way_out}")
    return None


@contextmanager
def in_our_words() -> Iterator[None]:
    """Raise what ``our_error`` finds in an error of the work within; what it knows nothing of stays as it is."""
    try:
        yield
    except Exception as e:
        ours = our_error(e)
        if ours is None:
            raise
        raise ours from None


def raised(error: BaseException) -> UserError | WorkFailed | None:
    """The UserError or WorkFailed inside what Ray raised, if there is one."""
    for e in _inside(error):
        if isinstance(e, (UserError, WorkFailed)):
            return UserError(str(e)) if isinstance(e, UserError) else WorkFailed(str(e))
    return None


def _inside(error: BaseException) -> Iterator[BaseException]:
    """An error, and those it was raised for."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        e = queue.pop()
        cause = getattr(e, "cause", None)
        if isinstance(cause, BaseException) and isinstance(e, type(cause)):
            e = cause  # what Ray mixed a class of its own into prints a remote traceback
        if id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        inner = [e.__cause__, e.__context__, getattr(e, "cause", None), getattr(e, "controller_failure", None)]
        inner += list((getattr(e, "worker_failures", None) or {}).values())
        queue += [i for i in inner if isinstance(i, BaseException)]


def _more(name: str, error: BaseException, memory_keys: str) -> str:
    """What else can be said of an error of Ray's own."""
    if name == _OUT_OF_MEMORY:
        return ": free some" + (f", or lower {memory_keys}" if memory_keys else "")
    if name in ("RpcError", "RaySystemError"):  # which can be anything: only its own words say what
        return f" ({first_line(error)[:200].rstrip('.')})"
    return ""
