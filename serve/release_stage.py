"""``broadsheet serve --update``, ``--promote``, ``--rollback``, ``--status``: the models of a running endpoint.

The command tells the desk which lineup is wanted, and waits for every replica. If one cannot serve it, the lineup that
was there before is put back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline import cluster, console
from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from serve import endpoints, kept, releases
from serve.releases import Lineup, Release

WAIT_S = 600.0  # for all replicas to serve a lineup
BACK_S = 60.0  # for them to be back at the old one
CHECK_S = 300.0  # for a checkpoint to be loaded and checked before replicas hear of it
DESK_S = 30.0
EVERY_S = 0.2
WAKES = 3  # a proxy may give up on a request before the replica that it woke is there


@dataclass(frozen=True)
class Wanted:
    """The command's flags; update, promote, rollback, status and stop are what to do, and exclude each other."""

    update: str | None = None
    promote: bool = False
    rollback: bool = False
    status: bool = False
    canary: str | None = None
    shadow: bool = False
    unchecked: bool = False
    stop: bool = False

    @property
    def anything(self) -> bool:
        """Whether a running endpoint is meant, and not a new one."""
        return self != Wanted()

    def check(self, where: str | None) -> None:
        """Refuse flags that do not go together.

        Raises:
            UserError: with the two that do not.
        """
        does = {"--update": self.update is not None, "--promote": self.promote, "--rollback": self.rollback,
                "--status": self.status, "--stop": self.stop}  # fmt: skip
        chosen = [flag for flag, given in does.items() if given]
        if len(chosen) > 1:
            raise UserError(f"{chosen[0]} and {chosen[1]} exclude each other: give one of them")
        how = {"--canary": self.canary is not None, "--shadow": self.shadow, "--unchecked": self.unchecked}
        for flag, given in how.items():
            if given and self.update is None:
                raise UserError(f"{flag} goes with --update RUN: name the checkpoint that it is about")
        if self.canary is not None and self.shadow:
            raise UserError("--canary and --shadow exclude each other: give one of them")
        if where is not None:
            raise UserError(f"{chosen[0]} changes a running endpoint and takes no RUN: leave '{where}' away")


def run(config: Config, wanted: Wanted, where: str | None, address: str | None) -> None:
    """Do what the flags say to the endpoint that runs on ``serve.port`` of this machine, or on the cluster.

    Raises:
        UserError: no endpoint runs, or the lineup does not allow it.
        WorkFailed: a replica could not serve what was wanted; what was there before serves on.
    """
    wanted.check(where)
    if wanted.stop and not cluster.is_named(address):
        raise UserError(
            "--stop ends an endpoint on a cluster: name it with --address; one that runs in a terminal ends with Ctrl-C"
        )
    share = None if wanted.canary is None else releases.parse_share(wanted.canary)
    if wanted.stop:
        _stop(config, address)
        return
    desk = _desk(config, address)
    if wanted.status:
        from serve import status

        status.show(desk.state())
        return
    state = desk.state()
    if not state.reports and state.config.min_replicas == 0:
        state = _woken(desk, state.config)
    if not state.reports:
        raise WorkFailed("no replica of the endpoint has said anything for a while: try again, or start it anew")
    now: Lineup = state.lineup
    if wanted.promote:
        new = now.promote()
    elif wanted.rollback:
        new = now.rollback()
    else:
        assert wanted.update is not None

        def after(release: Release) -> Lineup:
            if wanted.shadow:
                return now.shadowed(release)
            return now.update(release) if share is None else now.canary(release, share)

        new = after(_checked(wanted.update, state, wanted.unchecked, after))
    _change(desk, now, new, {name for name, report in state.reports.items() if report.known is not None})
    kept.clear(new.stable, (*now.releases, *new.releases))
    _say(new)


class Desk:
    """The actor, with sentences for what goes wrong."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def state(self) -> Any:
        """A ``desk.State``."""
        return self._ask(lambda: self._actor.state.remote())

    def put(self, lineup: Lineup) -> bool:
        """See ``desk.Desk.put``."""
        return bool(self._ask(lambda: self._actor.put.remote(lineup)))

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:
        import ray

        until = time.monotonic() + DESK_S
        while True:
            try:
                return ray.get(question(), timeout=DESK_S)
            except ray.exceptions.RayError as e:
                lasting = isinstance(e, ray.exceptions.GetTimeoutError) or time.monotonic() > until
                if lasting or (isinstance(e, ray.exceptions.ActorDiedError) and "ray.kill" in str(e)):
                    raise WorkFailed("the endpoint's desk does not answer: start the endpoint anew") from e
                time.sleep(1)


def nowhere(config: Config, address: str | None) -> str:
    """Where no endpoint runs, in words."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return f"no endpoint runs on {address}" if address else f"no endpoint runs here on port {config.serve.port}"


def _desk(config: Config, address: str | None) -> Desk:
    found = find(config, address)
    if found is None:
        raise UserError(
            f"{nowhere(config, address)}: start one with 'broadsheet serve RUN', or name its --port or --address"
        )
    return found


def _stop(config: Config, address: str | None) -> None:
    """End the endpoint on a cluster, whatever is left of it; Serve, too, unless it has other applications.

    Raises:
        UserError: nothing is left of one, or no cluster answers.
    """
    from serve import deploy, desk

    cluster.connect(address or os.environ.get("RAY_ADDRESS"))
    if not (deploy.ours() or desk.names()):
        raise UserError(f"{nowhere(config, address)}: there is nothing to stop")
    others = deploy.end()
    console.say(
        "serve", "endpoint stopped" + (f"; {', '.join(others)} goes on in the same Ray Serve" if others else "")
    )


def find(config: Config, address: str | None) -> Desk | None:
    """The desk of the endpoint that runs on ``serve.port`` of this machine, or on the cluster; None if none does.

    Raises:
        UserError: no cluster answers at the address, or two endpoints replace each other just now.
    """
    import ray

    from serve import desk

    address = address or os.environ.get("RAY_ADDRESS") or None
    noted = None if address else endpoints.find(config.serve.port)
    if not (address or noted):
        return None
    if noted:
        cluster.take_on(endpoints.auth(config.serve.port))
    try:
        cluster.connect(address or noted)
    except UserError:
        if noted:
            return None
        raise
    found = desk.names()
    if len(found) > 1:
        raise UserError("the endpoint is being deployed anew just now: try again when that is done")
    try:
        return Desk(ray.get_actor(found[0], desk.NAMESPACE))
    except (IndexError, ValueError):
        return None


def _woken(desk: Desk, config: ServeConfig) -> Any:
    """Have an endpoint that keeps no replica start one; returns what the desk knows then.

    Raises:
        WorkFailed: none came up.
    """
    console.say("update", "no replica runs (serve.min_replicas=0): waking one")
    until = time.monotonic() + WAIT_S
    _wake(config)
    while True:
        state = desk.state()
        if any(report.known is not None for report in state.reports.values()) or time.monotonic() > until:
            return state
        time.sleep(EVERY_S)


def _wake(config: ServeConfig) -> None:
    """Ask the endpoint whether it is ready, which makes Ray Serve start a replica where none runs.

    Raises:
        WorkFailed: it did not answer.
    """
    from serve import client, deploy, tls

    url = deploy.base_url(config)
    context = tls.trusting(config.tls_cert) if config.tls_cert else None
    for left in reversed(range(WAKES)):
        try:
            client.request(f"{url}/ready", timeout=WAIT_S, context=context)
            return
        except WorkFailed as e:
            if not left:
                raise WorkFailed(
                    f"no replica runs (serve.min_replicas=0), and none could be woken: {e}; send it a request, "
                    "and try again"
                ) from e
            time.sleep(EVERY_S)


def _checked(where: str, state: Any, unchecked: bool, wanted: Callable[[Release], Lineup]) -> Release:
    """The checkpoint as a release, checked as far as there is room to.

    Raises:
        UserError: it is none, has no golden rows, no cascade where cascades are served, or other labels than the
            serving model, or fails its golden rows.
    """
    from pipeline.evaluate.golden import Golden
    from pipeline.train import checkpoint
    from serve import cascade

    folder = checkpoint.find(where)
    labels = list(checkpoint.read_card(folder)["labels"])
    if Golden.load(folder) is None and not unchecked:
        raise UserError(
            f"{folder} has no golden rows, so nobody can tell whether it works: run 'broadsheet evaluate' on it first "
            "(or say --unchecked)"
        )
    lacks = cascade.lacking(folder) if state.config.cascade and not unchecked else None
    if lacks:
        raise UserError(
            f"the endpoint serves cascades (serve.cascade), and {lacks}; or say --unchecked: its network then answers "
            "every text, which takes longer"
        )
    report = next((r for r in state.reports.values() if r.known is not None), None)
    if report is None:
        raise WorkFailed("no replica serves yet: try again when one does")
    if report.labels != labels and not unchecked:
        lost, added = ([x for x in a if x not in b] for a, b in ((report.labels, labels), (labels, report.labels)))
        said = [
            f"{what} {', '.join(map(repr, some[:5]))}" for what, some in (("without", lost), ("new", added)) if some
        ]
        raise UserError(
            f"{folder} has other labels than the model that serves ({'; '.join(said) or 'in another order'}), and "
            "clients may count on those: say --unchecked if they do not"
        )
    release = kept.release(folder, lambda s: console.warn("update", s))
    wanted(release)  # what the lineup does not allow is refused before there is any work
    _try(folder, release, state.config)
    return release


def _try(folder: Place, release: Release, config: ServeConfig) -> None:
    """Load the checkpoint as a replica does, where there is room for one more."""
    import ray

    from serve.app import load_model
    from serve.deploy import in_a_replica, taken

    if taken(config):
        console.say("update", "no CPU is free to check the checkpoint before: the replicas check it while they serve")
        return
    console.say("update", f"checking {folder}")

    def load(release: Release) -> None:
        load_model(release, config)

    try:
        in_a_replica(config, CHECK_S, load, release)
    except TimeoutError as e:
        console.say("update", f"{e}: the replicas check it while they serve")
    except (UserError, WorkFailed, ray.exceptions.RayError) as e:
        ours = isinstance(e, (UserError, WorkFailed))
        reason = str(e) if ours else (str(getattr(e, "cause", None) or e).strip().splitlines() or [""])[-1]
        raise WorkFailed(f"{folder} was refused and takes no traffic: {reason}") from e


def _change(desk: Desk, old: Lineup, new: Lineup, there: set[str]) -> None:
    """Have every replica serve ``new``; if one cannot, ``old`` again.

    Args:
        desk: of the endpoint.
        old: what is served.
        new: its successor.
        there: the replicas.
    """
    if not desk.put(new) and desk.state().lineup != new:  # it may have heard us while we did not hear it
        raise UserError("another command has changed the models meanwhile: look at --status, and try again")
    try:
        _wait(desk, new, there, WAIT_S)
    except BaseException as e:
        back = old.instead(new)
        if not desk.put(back):
            raise
        console.warn("update", f"putting {old.stable} back")
        try:
            _wait(desk, back, set(), BACK_S)
        except WorkFailed as again:
            raise WorkFailed(f"{e}; and not every replica is back yet ({again}): look at --status") from e
        raise


def _wait(desk: Desk, lineup: Lineup, there: set[str], seconds: float) -> None:
    """Wait until every replica serves the lineup.

    Raises:
        WorkFailed: one cannot, was lost, or takes too long.
    """
    until = time.monotonic() + seconds
    said = -1
    while time.monotonic() < until:
        state = desk.state()
        if lost := there & state.lost:  # the desk puts the old lineup back then, too
            raise WorkFailed(f"{len(lost)} of {len(there)} replicas died while they loaded it")
        if state.lineup.generation > lineup.generation:
            raise WorkFailed("another command has changed the models meanwhile: look at --status")
        reports = state.reports.values()
        if not reports and state.config.min_replicas == 0:  # the last one went while the checkpoint was checked
            _wake(state.config)
        for report in reports:
            if report.state == "failed" and report.known.generation == lineup.generation:
                raise WorkFailed(f"a replica refused: {report.reason}")
        done = sum(report.serving >= lineup.generation for report in reports)
        if done != said:
            console.say("update", f"{done} of {len(reports)} replicas serve it")
            said = done
        if reports and done == len(reports):
            return
        time.sleep(EVERY_S)
    raise WorkFailed(f"not every replica served it within {seconds:g} s")


def _say(lineup: Lineup) -> None:
    if lineup.candidate is None:
        kept = f"; {lineup.previous} is kept for --rollback" if lineup.previous else ""
        console.say("serve", f"{lineup.stable} answers all requests{kept}")
        return
    what = "gets a copy of all requests" if lineup.shadow else f"answers {100 * lineup.share:g}% of the requests"
    console.say("serve", f"{lineup.candidate} {what}, beside {lineup.stable}")
    console.say("next", "compare them with --status, then --promote or --rollback")
