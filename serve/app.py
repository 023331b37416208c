"""The API laid out on Ray Serve: each replica loads the checkpoint in its own process."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from pipeline.config import ServeConfig
from pipeline.errors import UserError
from pipeline.evaluate.evidence import FILE, Evidence
from pipeline.evaluate.reference import FILE as REFERENCE
from pipeline.evaluate.reference import Reference
from pipeline.storage import Place
from serve import feedback
from serve.api import build_api
from serve.node_metrics import Mirror
from serve.service import Engine

NAME = "broadsheet"

log = logging.getLogger("ray.serve")


class Replica:
    """One copy of the model behind the HTTP API. Only the path and the configuration travel to it."""

    def __init__(self, checkpoint: str, config: ServeConfig) -> None:
        self.config = config
        self.engine = load_engine(checkpoint, config)
        # Here as well as in the API's start: a model that cannot run fails the deployment with its reason.
        self.engine.logits(self.engine.encode(["warm-up"]).ids)
        self.index = load_index(checkpoint, self.engine)
        self.reference = load_reference(checkpoint, self.engine)
        if config.feedback:
            feedback.prepare(config.feedback)
        self.api: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve's hook: the app is built on the replica
        self.api = build_api(self.engine, self.config, self.index, self.reference)
        Mirror(self.api.state.service.metrics.registry).start()
        return self.api

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self.api is not None and not self.api.state.service.ready:
            raise RuntimeError("the model thread is not running")


def load_engine(checkpoint: str, config: ServeConfig) -> Engine:
    """The checkpoint with the engine that serves it best, and as many threads as the replica has CPUs."""
    from serve.engine.load import load

    engine: Engine
    engine, record = load(checkpoint, config)
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


def application(checkpoint: str, config: ServeConfig, resources: dict[str, float] | None = None) -> Application:
    """The Ray Serve application for a checkpoint folder that every node can read."""
    # A relative path means something else on a replica.
    given = {"feedback": config.feedback, "keys": config.keys}
    config = config.model_copy(update={key: str(Place.of(where)) for key, where in given.items() if where})
    deployment: Deployment = serve.deployment(**options(config, resources))(serve.ingress()(Replica))
    return deployment.bind(checkpoint, config)


def options(config: ServeConfig, resources: dict[str, float] | None = None) -> dict[str, Any]:
    """Ray Serve's settings for the deployment."""
    actor: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
    if resources:
        actor["resources"] = resources
    return {
        "name": NAME,
        "ray_actor_options": actor,
        # Ray's own bound must lie beyond ours, or requests wait where nobody answers 429: texts that wait,
        # texts in one forward pass (each has at least one token), and requests that are read or refused.
        "max_ongoing_requests": config.max_queue + config.batch_tokens + 64,
        "max_queued_requests": -1,
        "max_constructor_retry_count": 2,
        "max_surge_percent": 100,  # a new checkpoint comes up before the old one goes
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s + 5,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
            metrics_interval_s=1,
            look_back_period_s=5,
            upscale_delay_s=3,
            downscale_delay_s=60,
        ),
    }
