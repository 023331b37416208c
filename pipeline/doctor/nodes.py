"""The thin layer on Ray: an actor on each node, pinned there, that collects facts; none of them is judged here."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.doctor import facts
from pipeline.doctor.facts import Counted, NodeFacts
from pipeline.errors import UserError, WorkFailed, first_line
from pipeline.storage import Place

ANSWER_S = 180.0  # to import the project on a cold disk, and to ask torch for GPUs


@dataclass(frozen=True)
class Examined:
    """What came of asking all nodes.

    Attributes:
        nodes: the facts of those that answered.
        silent: the others, by address, and why.
        read_back: ids of nodes whose marker on the storage could be read here.
        here: address of the node that the driver is on.
    """

    nodes: list[NodeFacts]
    silent: dict[str, str]
    read_back: list[str]
    here: str


class _Probe:
    """Sits on one node and answers."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def collect(self, *arguments: Any) -> NodeFacts:
        from pipeline.doctor import facts as there  # the node's own copy

        return there.collect(*arguments)

    def time(self) -> float:
        return time.time()

    def listen(self, host: str) -> int:
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        return int(self._listener.getsockname()[1])

    def unreachable(self, peers: dict[str, tuple[str, int]]) -> dict[str, str]:
        from pipeline.doctor import facts as there

        return there.unreachable(peers)


def examine(config: Config) -> Examined:
    """Ask every live node of the connected cluster. What an examination leaves on the storage is deleted again.

    Raises:
        UserError: the driver itself cannot write to the storage.
    """
    import ray

    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    here = ray.get_runtime_context().get_node_id()
    storage = Place.of(config.storage)
    folder = storage / f".doctor-{uuid.uuid4().hex[:12]}"
    made = _missing(storage)
    try:
        facts.marker(str(folder), "driver").write_text("driver")
        asked = _Asked({node: _pinned(node) for node in alive}, alive)
        found = {
            node: answer
            for node, answer in asked.all(
                lambda node, probe: probe.collect.remote(
                    _counted(alive[node]), _session(alive[node]), str(folder), config.serve.host, config.serve.port
                )
            ).items()
            if isinstance(answer, NodeFacts)
        }
        read_back = [node for node in found if _reads(folder, node)]
        clocks = {node: _clock(asked, node) for node in found}
        listening = asked.all(lambda node, probe: probe.listen.remote(alive[node]["NodeManagerAddress"]))
        peers = {node: (found[node].name, (alive[node]["NodeManagerAddress"], port))
                 for node, port in listening.items() if node in found}  # fmt: skip
        cut = asked.all(
            lambda node, probe: probe.unreachable.remote(dict(p for other, p in peers.items() if other != node))
        )
        nodes = [
            replace(f, clock_ahead_s=clocks[node][0], clock_within_s=clocks[node][1], unreachable=cut.get(node, {}))
            for node, f in found.items()
            if node in asked.probes
        ]
        return Examined(nodes, asked.silent, read_back, alive[here]["NodeManagerAddress"])
    finally:
        with contextlib.suppress(OSError, UserError):
            folder.delete()
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


class _Asked:
    """The probes; one that failed once is not asked again."""

    def __init__(self, probes: dict[str, Any], alive: dict[str, dict[str, Any]]) -> None:
        self.probes, self._alive = probes, alive
        self.silent: dict[str, str] = {}

    def all(self, question: Callable[[str, Any], Any], only: str | None = None) -> dict[str, Any]:
        """The answers of all nodes, asked at the same time; or of one of them."""
        import ray

        until = time.monotonic() + ANSWER_S
        answers = {}
        for node, reference in [(node, question(node, probe)) for node, probe in self.probes.items()
                                if only in (None, node)]:  # fmt: skip
            try:
                answers[node] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
            except Exception as e:  # whatever went wrong there, the node cannot do the work
                self.silent[self._alive[node]["NodeManagerAddress"]] = _reason(e)
                del self.probes[node]
        return answers


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "GetTimeoutError":
        return f"no answer within {ANSWER_S:g} s"
    cause = getattr(error, "cause", None)
    lines = str(cause or error).strip().splitlines()
    return lines[-1].strip() if lines else first_line(error)


def _pinned(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_Probe).options(num_cpus=0, scheduling_strategy=strategy).remote()


def _counted(node: dict[str, Any]) -> Counted:
    has = node["Resources"]
    sizes = (has.get(what, 0) for what in ("CPU", "GPU", "memory", "object_store_memory"))
    return Counted(node["NodeID"], node["NodeManagerAddress"], *sizes)


def _session(node: dict[str, Any]) -> str:
    """Where Ray keeps its own files there: two above the raylet's socket."""
    return str(Path(node["RayletSocketName"]).parents[1])


def _clock(asked: _Asked, node: str) -> tuple[float, float]:
    """How far a node's clock is ahead, in seconds, and how well that is known: the quickest of three answers."""
    best = (0.0, float("inf"))
    for _ in range(3):
        began = time.time()
        for theirs in asked.all(lambda _, probe: probe.time.remote(), only=node).values():  # none, if it was lost
            within = (time.time() - began) / 2
            best = min(best, (theirs - began - within, within), key=lambda pair: pair[1])
    return best


def _reads(folder: Place, who: str) -> bool:
    try:
        return facts.marker(str(folder), who).read_text() == who
    except (OSError, UserError, WorkFailed):
        return False


def _missing(storage: Place) -> list[Path]:
    """The local folders that do not exist yet, the innermost first: an examination leaves nothing behind."""
    if not storage.is_local:
        return []
    path = Path(storage.uri)
    return [p for p in (path, *path.parents) if not os.path.exists(p)]
