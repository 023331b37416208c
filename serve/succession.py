"""A model trained again takes the place of the serving one: what serves here, and how it is replaced.

Ray is connected once per process, and the endpoint may run in another Ray than the one that trains: each visit to the
endpoint gives the connection back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline import cluster, console
from pipeline.config import Config, load
from pipeline.errors import UserError, WorkFailed
from pipeline.retrain import stage
from pipeline.retrain.base import Run
from pipeline.storage import Place
from serve import endpoints, release_stage
from serve.releases import TAGGED, version_of


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that runs.

    Attributes:
        checkpoint: the folder of its stable model.
        version: of that model's weights, as of ``Release``.
        on_trial: the checkpoint beside it, if there is one.
        feedback: the folder that it writes feedback to, if any.
    """

    checkpoint: str
    version: str
    on_trial: str | None = None
    feedback: str | None = None

    def serves(self, checkpoint: Place) -> bool:
        """Whether its stable model is what lies in a checkpoint's folder now."""
        return self.checkpoint == str(checkpoint) and self.version in ("", version_of(checkpoint))


def run(where: str, suspects: str, sets: Sequence[str], flags: Mapping[str, Any], address: str | None) -> None:
    """``broadsheet run --from-feedback``.

    Args:
        where: the run to start from; empty: the one that this name was begun from, or the one that serves.
        suspects: 'ignore' or 'drop'.
        sets, flags: as for ``config.load``, on top of that run's configuration, but for where the endpoint is: that is
            for the command to say, or for the earlier attempt that it goes on with.
        address: the Ray cluster.

    Raises:
        UserError: there is no run to start from, or the command does not fit it.
        WorkFailed: training or promotion stopped half-way; the same command goes on.
    """
    if flags["name"] is None:
        raise UserError("--from-feedback makes a new run beside the old one: name it with --name")
    first = load(None, sets, flags)
    own_storage = stage.says("storage", sets, flags)
    own_port = stage.says("serve.port", sets, flags)

    def at_port_of(earlier: stage.Begun | None) -> Config:
        known = None if earlier is None or own_port else earlier.port
        return first.updated({"serve.port": known or first.serve.port})

    earlier = stage.begun(stage.beside(where) if where and not own_storage else first.storage, first.name)
    there = at_port_of(earlier)
    endpoint = serving(there, address)
    if not (earlier or where or own_storage) and endpoint is not None:  # the new run lies beside the one it is made of
        earlier = stage.begun(stage.beside(endpoint.checkpoint), first.name)
        if (again := at_port_of(earlier)) != there:
            there, endpoint = again, serving(again, address)
    where = where or (earlier.base if earlier else "") or (endpoint.checkpoint if endpoint else "")
    if not where:
        raise UserError(f"{release_stage.nowhere(there, address)}: name the run to start from, --from-feedback RUN")
    base = Run.open(where)
    found = {"serve.port": there.serve.port, **({"storage": earlier.storage} if earlier else {})}
    config = stage.new_config(base, sets, {**flags, **found})
    console.about(config.name)
    console.say("feedback", f"from {base.place}; " + (f"{endpoint.checkpoint} serves" if endpoint else "none serves"))
    stage.check_rival(rival(endpoint, base, config), base)
    job = stage.train(base, config, endpoint.feedback if endpoint else None, suspects, address)
    if job is not None:
        conclude(job.config, base, address)


def serving(config: Config, address: str | None) -> Endpoint | None:
    """The endpoint on ``serve.port`` of this machine, or on the cluster; None if none runs.

    Raises:
        UserError: no cluster answers at the address.
        WorkFailed: the endpoint does not answer.
    """
    with _visit(config, address):
        desk = release_stage.find(config, address)
        if desk is None:
            return None
        state = desk.state()
    lineup = state.lineup
    beside = lineup.candidate.checkpoint if lineup.candidate is not None else None
    return Endpoint(lineup.stable.checkpoint, lineup.stable.version, beside, state.config.feedback)


def _promote(config: Config, run: Place, instead_of: Endpoint, address: str | None) -> None:
    """Have the endpoint serve a run's checkpoint, after its golden rows were checked (``serve --update``).

    Raises:
        UserError: the endpoint serves another model than ``instead_of`` by now, or is gone.
        WorkFailed: it could not serve the checkpoint; what served before serves on.
    """
    with _visit(config, address):
        now = serving(config, address)
        if now is None or (now.checkpoint, now.version) != (instead_of.checkpoint, instead_of.version):
            raise UserError(
                f"the endpoint does not serve {instead_of.checkpoint} any more: run the same command again, and it "
                "compares with what serves now"
            )
        release_stage.run(config, release_stage.Wanted(update=str(run)), None, address)


def rival(endpoint: Endpoint | None, base: Run, config: Config) -> Run:
    """The run that a new one has to beat: the one that serves, or else the one that it starts from.

    Raises:
        UserError: what serves does not lie in its folder any more.
    """
    new = Place.of(config.storage) / config.name / "checkpoint"
    if endpoint is None or endpoint.checkpoint == str(base.checkpoint) or endpoint.serves(new):
        found = base
    else:
        found = Run.open(endpoint.checkpoint)
    if endpoint is not None and endpoint.checkpoint == str(found.checkpoint) and not endpoint.serves(found.checkpoint):
        if found.place == new.parent:
            raise UserError(f"{new.parent} was trained again while it serves: choose another --name for this one")
        serves = "" if endpoint.version.startswith(TAGGED) else f" (it serves {endpoint.version})"
        raise UserError(
            f"{found.checkpoint} was trained again since the endpoint took it{serves}, so what serves cannot be "
            f"compared: first have it serve what is there, 'broadsheet serve --update {found.place}'"
        )
    return found


def conclude(config: Config, base: Run, address: str | None) -> None:
    """Compare a run that was trained again with what serves by now, promote it if it is better, and say so.

    Args:
        config: of the new run, which is evaluated.
        base: the run that it started from.
        address: the Ray cluster.

    Raises:
        UserError: the two cannot be compared.
        WorkFailed: the endpoint could not serve the new checkpoint; what served before serves on.
    """
    new = Place.of(config.storage) / config.name
    endpoint = serving(config, address)
    against = rival(endpoint, base, config)
    stage.check_rival(against, base)
    decision, facts = stage.judge(new, against, config.seed)
    following = f"broadsheet serve --update {new}"
    if endpoint is None:
        end, following = f"nothing was promoted: {release_stage.nowhere(config, address)}", f"broadsheet serve {new}"
    elif endpoint.serves(new / "checkpoint"):
        end, following = f"{new} serves already", "broadsheet serve --status"
        facts["promoted"] = True
    elif stage.was_promoted(new, facts["training"]):
        end = f"{new} was promoted before, and taken back since: not promoted again by itself"
        facts["promoted"] = True
    elif not decision.promote:
        end = f"{against.place} goes on serving"
    elif endpoint.on_trial is not None:
        end = f"not promoted: {endpoint.on_trial} is on trial ('serve --promote' or '--rollback' ends that)"
    else:
        try:
            _promote(config, new, endpoint, address)
        except (UserError, WorkFailed) as e:
            stage.note(new, facts | {"end": f"not promoted: {e}"})
            raise
        end, following = f"promoted in place of {against.place}", "broadsheet serve --status"
        facts["promoted"] = True
    console.say("decide", end)
    stage.note(new, facts | {"end": end})
    console.say("next", following)


@contextmanager
def _visit(config: Config, address: str | None) -> Iterator[None]:
    """Let go of a Ray that is not the endpoint's, and afterwards of the endpoint's, if it was not connected before."""
    import ray

    noted = None if cluster.is_named(address) else endpoints.find(config.serve.port)
    if noted and ray.is_initialized() and ray.get_runtime_context().gcs_address != noted:
        ray.shutdown()
    before = ray.is_initialized()
    try:
        yield
    finally:
        if noted and not before:
            ray.shutdown()
