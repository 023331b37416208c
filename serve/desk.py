"""The desk: an actor beside the replicas that knows which lineup is wanted, and what each replica made of it.

Replicas keep asking it for a newer lineup, and each time say what they have. Nothing waits for the desk to answer a
request: without it, replicas go on with what they have. One that was restarted knows the lineup from its memory.
Each deployment has a desk of its own, so that replicas of two deployments, one replacing the other, never hear of each
other's models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from pipeline.config import ServeConfig
from serve.memory import ClusterMemory, Memory
from serve.releases import Lineup, Release
from serve.tally import Tally

PREFIX = "broadsheet-desk-"
NAMESPACE = "serve"  # Ray Serve's own
log = logging.getLogger("ray.serve")
LOST_S = 15.0  # a replica that was silent for so long is gone
STALL_S = 5.0  # where the desk itself was away for so long, all replicas seem silent
RECALL_S = 3.0  # after a restart, until all replicas have said what they have


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    Attributes:
        replica: its id.
        known: the newest lineup it has heard of; None before the first.
        serving: the generation it serves; 0: the checkpoint it started with.
        state: loading a newer one, serving what it knows, failed to, or leaving.
        reason: why it failed.
        labels: of its stable model.
        versions: of the weights of what it has loaded.
        tallies: of the stable model and the candidate.
    """

    replica: str
    known: Lineup | None = None
    serving: int = 0
    state: Literal["loading", "serving", "failed", "leaving"] = "loading"
    reason: str = ""
    labels: list[str] = field(default_factory=list)
    versions: dict[Release, str] = field(default_factory=dict)
    tallies: dict[Release, Tally] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the desk knows: the wanted lineup, the endpoint's configuration, the newest report of each replica, and
    the ids of those that fell silent without taking leave."""

    lineup: Lineup
    config: ServeConfig
    reports: dict[str, Report]
    lost: frozenset[str]


class Desk:
    """The actor's code; works without Ray.

    Args:
        release: what the deployment serves.
        config: its configuration.
        memory: where it keeps the lineup, and finds that of the desk whose place it takes.
        up: called in a thread, once, when the first replica serves.
    """

    def __init__(
        self, release: Release, config: ServeConfig, memory: Memory | None = None, up: Callable[[], None] | None = None
    ) -> None:
        self._up = up
        self._memory = memory
        first = Lineup(release)
        kept = memory.read() if memory is not None else None
        self._lineup, self._proven = kept or (first, first)
        self._looked = time.monotonic()
        self._recalls_until = self._looked + RECALL_S if kept else 0.0
        self._writing: asyncio.Task[None] | None = None
        self._told: dict[str, int] = {}  # the newest generation that each replica was told of
        self._config = config
        self._reports: dict[str, Report] = {}
        self._heard: dict[str, float] = {}
        self._lost: set[str] = set()
        self._news = asyncio.Event()

    async def exchange(self, report: Report, wait_s: float) -> Lineup:
        """Take a report; answer with the wanted lineup, as soon as it is newer than what the replica knows.

        A replica that starts gets the newest lineup that another one serves already: if loading the newest one kills
        replicas, it is not what they start with.

        Args:
            report: of the replica.
            wait_s: how long to wait for a newer lineup.
        """
        self._take(report)
        self._sweep()
        if report.known is not None and self._up is not None:
            up, self._up = self._up, None
            await asyncio.to_thread(up)
        if report.known is None:
            return self._proven
        if report.state != "leaving" and self._lineup.generation <= report.known.generation:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)
        self._told[report.replica] = self._lineup.generation
        return self._lineup

    async def put(self, lineup: Lineup) -> bool:
        """Want this lineup; False if another one came first."""
        if lineup.generation != self._lineup.generation + 1:
            return False
        self._adopt(lineup)
        if self._writing is not None:
            await self._writing
        return True

    async def state(self) -> State:
        """What is known; replicas that were not heard of for long are left out."""
        await asyncio.sleep(max(0.0, self._recalls_until - time.monotonic()))
        self._sweep()
        return State(self._lineup, self._config, dict(self._reports), frozenset(self._lost))

    def _take(self, report: Report) -> None:
        if report.state == "leaving":
            self._forget(report.replica)
            return
        self._reports[report.replica] = report
        self._heard[report.replica] = time.monotonic()
        self._lost.discard(report.replica)
        if report.known is None:
            return
        if report.known.generation > self._lineup.generation:
            self._adopt(report.known)
        served = report.state == "serving" and report.serving == report.known.generation
        if served and report.serving > self._proven.generation:
            self._proven = report.known
            self._remember()

    def _sweep(self) -> None:
        """Give up replicas that are silent. If one died of a lineup that none has ever served, the one before it comes
        back: whoever asked for the new one may be gone, and replicas would start and die for ever."""
        now = time.monotonic()
        if now - self._looked > STALL_S:  # give them the time to speak
            self._heard = {r: max(heard, now - LOST_S + STALL_S) for r, heard in self._heard.items()}
        self._looked = now
        for replica in [r for r, heard in self._heard.items() if now - heard > LOST_S]:
            if self._reports[replica].known is not None:  # one that still loads its first model says nothing meanwhile
                self._lost.add(replica)
                if self._told.get(replica) == self._lineup.generation > self._proven.generation:
                    log.warning("%s was lost while it loaded %s: putting it back", replica, self._lineup)
                    self._adopt(self._proven.instead(self._lineup))
            self._forget(replica)

    def _remember(self) -> None:
        if self._memory is not None and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write(self._memory))

    async def _write(self, memory: Memory) -> None:
        """In a thread: the store may take as long as the head is away. What comes meanwhile is written, too."""
        written = None
        while written != (written := (self._lineup, self._proven)):
            await asyncio.to_thread(memory.write, *written)

    def _adopt(self, lineup: Lineup) -> None:
        self._lineup = lineup
        self._remember()
        self._news.set()
        self._news = asyncio.Event()

    def _forget(self, replica: str) -> None:
        self._reports.pop(replica, None)
        self._heard.pop(replica, None)
        self._told.pop(replica, None)


class _Actor(Desk):
    def __init__(self, name: str, release: Release, config: ServeConfig, instead_of: Sequence[str]) -> None:
        super().__init__(release, config, ClusterMemory(name), lambda: stop(*instead_of))


def start(
    release: Release, config: ServeConfig, resources: dict[str, float] | None = None, instead_of: Sequence[str] = ()
) -> str:
    """Start a desk for a deployment; returns its name. It outlives this process, and is ended by ``stop``.

    Args:
        release: what the deployment serves.
        config: its configuration.
        resources: that the actor asks for.
        instead_of: desks that it ends once a replica of its own serves.
    """
    name = PREFIX + uuid.uuid4().hex[:12]
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
    if resources:
        options["resources"] = resources
    ray.remote(_Actor).options(**options, max_restarts=-1, max_task_retries=0).remote(name, release, config, instead_of)
    return name


def names() -> list[str]:
    """The desks of the connected cluster."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in found if a["namespace"] == NAMESPACE and a["name"].startswith(PREFIX))


def stop(*those: str) -> None:
    """End desks; what is gone already is fine."""
    for name in those:
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
        ClusterMemory(name).forget()
