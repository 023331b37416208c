"""The API laid out on Ray Serve: each replica loads the models in its own process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from pipeline.config import ServeConfig
from pipeline.errors import UserError
from pipeline.evaluate import cascade_folder
from pipeline.evaluate.evidence import FILE, Evidence
from pipeline.evaluate.golden import Golden
from pipeline.evaluate.reference import FILE as REFERENCE
from pipeline.evaluate.reference import Reference
from pipeline.storage import Place
from serve import cascade, feedback, follow, kept, one_write
from serve.api import build_app
from serve.node_metrics import Mirror
from serve.releases import TAGGED, Lineup, Release
from serve.roster import Model, Roster, sentence
from serve.service import Engine

NAME = "broadsheet"

log = logging.getLogger("ray.serve")


class Replica:
    """The models behind the HTTP API. Only a path, the configuration and the desk's name travel to it."""

    def __init__(self, own: Release, config: ServeConfig, desk: str) -> None:
        self.config = config
        self.desk = desk
        self.id: str = serve.get_replica_context().replica_id.unique_id
        if config.feedback:
            feedback.prepare(config.feedback)
        # Here and not in the API's start: a model that cannot run fails the deployment with its reason.
        release, model = first_model(own, follow.first(desk, self.id), lambda r: load_model(r, config))
        kept.touch(release)
        self.roster = Roster(release, model, config, self.load)
        self.api: FastAPI | None = None

    def load(self, release: Release) -> Model:
        """A model that may take traffic. Another one answers meanwhile, so engines are not measured here."""
        return load_model(release, self.config, measure=False)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve's hook: the app is built on the replica
        one_write.install()
        self.api = build_app(self.roster, self.config, self.follow)
        Mirror(self.roster.metrics.registry).start()
        return self.api

    async def follow(self, roster: Roster) -> None:
        """Serve what the desk wants."""
        await follow.follow(roster, follow.RayLine(self.desk), self.id)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self.api is not None and not self.roster.ready:
            raise RuntimeError("the model thread is not running")
        if not await self.roster.stable.service.sound():
            raise RuntimeError("the model fails with every text")


def first_model(own: Release, lineup: Lineup | None, load: Callable[[Release], Model]) -> tuple[Release, Model]:
    """What a replica starts with: what the others serve, else what they served before, else its own checkpoint.

    Raises:
        Exception: of its own checkpoint, if that cannot be loaded either.
    """
    for release in (lineup.stable, lineup.previous) if lineup is not None else ():
        if release is not None:
            try:
                return release, load(release)
            except Exception as e:  # an endpoint that answers with an older model is better than none
                log.error("%s cannot be served: %s", release, sentence(e))
    return own, load(own)


def load_model(release: Release, config: ServeConfig, measure: bool = True) -> Model:
    """Load a checkpoint and check that it may take traffic.

    Args:
        release: the checkpoint.
        config: the serve section.
        measure: whether engines may be measured, if they were not yet.

    Raises:
        UserError: it or its cascade is damaged, is not what it was, or fails its golden rows.
    """
    folder = Place.of(release.place)
    engine = load_engine(release.place, config, measure)
    if release.version not in ("", engine.version) and not release.version.startswith(TAGGED):
        raise UserError(f"{folder} has changed: it was {release.version}, and is {engine.version} now")
    engine.logits(engine.encode(["warm-up"]).ids)
    golden = Golden.load(folder)
    failure = refusal(engine, golden, config.batch_tokens)
    if failure is not None and set(engine.runs.values()) != {"torch"}:
        log.warning("%s: %s by %s: torch serves instead", folder, failure, engine.runs)
        engine.as_it_is()
        failure = refusal(engine, golden, config.batch_tokens)
    if failure is not None:
        raise UserError(f"{folder} may not take traffic: {failure}")
    first = cascade.load(folder, engine, golden) if config.cascade else None
    # A cascade has other labels and confidences than the network alone, and so a reference of its own.
    reference = load_reference(str(folder / cascade_folder.FOLDER if first else folder), engine)
    return Model(engine, load_index(release.place, engine), reference, first)


def refusal(engine: Engine, golden: Golden | None, batch_tokens: int) -> str | None:
    """Why a model may not take traffic, by its golden rows in batches; where two engines share the work, by both."""
    if golden is None:
        return None
    if engine.runs["single"] == engine.runs["batch"]:
        return golden.failure(lambda texts: engine.all_logits(engine.encode(texts).ids, batch_tokens))
    failure = golden.failure(lambda texts: engine.all_logits(engine.encode(texts).ids, batch_tokens, large=True))
    if failure is None and engine.passes.large_from:  # small batches are the other one's
        failure = golden.failure(lambda texts: engine.all_logits(engine.encode(texts).ids, batch_tokens))
    if failure is None:
        failure = golden.failure(lambda texts: np.concatenate([engine.logits([r]) for r in engine.encode(texts).ids]))
    return failure


def load_engine(checkpoint: str, config: ServeConfig, measure: bool = True) -> Engine:
    """The checkpoint with the engine that serves it best, and as many threads as the replica has CPUs."""
    from serve.engine.load import load

    engine: Engine
    engine, record = load(checkpoint, config, measure=measure)
    log.info("%s: single texts by %s, batches by %s", checkpoint, record.choice.single, record.choice.batch)
    return engine


def load_index(checkpoint: str, engine: Engine) -> Evidence | None:
    """The checkpoint's index of training rows; None where it has none, or one that does not fit: texts are classified
    all the same, and the log says why explanations name no rows."""
    folder = Place.of(checkpoint)
    if not (folder / FILE).exists():
        return None
    try:
        index = Evidence.load(folder)
    except UserError as e:
        log.warning("explanations will have no nearest rows: %s", e)
        return None
    done = engine.with_states(engine.encode(["warm-up"]).ids, 2_048)
    labels = index.labels
    fits = done is not None and done[1].shape[1] == index.states.shape[1] == len(index.centre)
    if not fits or not len(labels) or labels.min() < 0 or labels.max() >= len(engine.labels):
        log.warning("explanations will have no nearest rows: %s is of another model", folder / FILE)
        return None
    return index


def load_reference(checkpoint: str, engine: Engine) -> Reference | None:
    """What drift is measured from; None where the checkpoint has none, or one that does not fit: texts are classified
    all the same, and the log says why drift is not measured."""
    folder = Place.of(checkpoint)
    try:
        reference = Reference.load(folder)
    except UserError as e:
        log.warning("drift will not be measured: %s", e)
        return None
    if reference is None:
        log.info("drift will not be measured: %s has no %s, 'broadsheet evaluate' makes it", folder, REFERENCE)
    elif list(reference.labels) != list(engine.labels):
        log.warning("drift will not be measured: %s is of another model", folder / REFERENCE)
        return None
    return reference


def application(own: Release, config: ServeConfig, desk: str, resources: dict[str, float] | None = None) -> Application:
    """The Ray Serve application for a checkpoint that every node can read, and its desk's name."""
    config = absolute(config)
    deployment: Deployment = serve.deployment(**options(config, resources))(serve.ingress()(Replica))
    return deployment.bind(own, config, desk)


def absolute(config: ServeConfig) -> ServeConfig:
    """The section with absolute paths: a relative one means something else on a replica, or to another command."""
    given = {"feedback": config.feedback, "keys": config.keys}
    return config.model_copy(update={key: str(Place.of(where)) for key, where in given.items() if where})


def options(config: ServeConfig, resources: dict[str, float] | None = None) -> dict[str, Any]:
    """Ray Serve's settings for the deployment."""
    actor: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
    if resources:
        actor["resources"] = resources
    return {
        "name": NAME,
        "ray_actor_options": actor,
        # Ray's own bound must lie beyond ours, or requests wait where nobody answers 429: texts that wait,
        # texts in one forward pass (each has at least one token), both for two models, and requests that are read
        # or refused.
        "max_ongoing_requests": 2 * (config.max_queue + config.batch_tokens) + 64,
        "max_queued_requests": -1,
        "max_constructor_retry_count": 2,
        "max_surge_percent": 100,  # a new checkpoint comes up before the old one goes
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s + 5,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            initial_replicas=max(1, config.min_replicas),  # also where none is kept: the start shows that one can run
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
            metrics_interval_s=1,
            look_back_period_s=5,
            upscale_delay_s=3,
            downscale_delay_s=60,
        ),
    }
