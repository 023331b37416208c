"""The endpoint for those who declare it in Ray Serve's own configuration: KubeRay's RayService, or ``serve deploy``.

``import_path: serve.declared:endpoint`` with ``args: {checkpoint: ..., serve: {...}}``.
"""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from pipeline.config import ServeConfig
from pipeline.errors import UserError
from pipeline.train import checkpoint
from serve import deploy, desk, exposure, kept
from serve.app import absolute, application
from serve.cascade import lacking

log = logging.getLogger("ray.serve")


class Arguments(BaseModel):
    """``args`` of the application.

    Attributes:
        checkpoint: a run or checkpoint folder or URI that every node can read.
        serve: the keys of the configuration's section ``serve``. Where it listens is for ``http_options`` to say, and
            ``host`` stands for it only where no Serve runs yet.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]


def endpoint(arguments: Arguments) -> Application:
    """Build the application; Ray Serve calls this on the cluster, anew whenever its configuration changes.

    The desks of what it takes the place of go once a replica of the new application serves: until then, or if none ever
    does, the old replicas keep theirs.

    Raises:
        UserError: there is no checkpoint, or no cascade in it where one is asked for, the endpoint would be open
            without having been asked to, or a latency goal is given.
    """
    section = absolute(arguments.serve)
    if section.latency_goal_ms is not None:
        raise UserError(
            "serve.latency_goal_ms does nothing where the endpoint is declared, as nothing is measured: give the "
            "serve.target_ongoing_requests, serve.max_queue and serve.batch_tokens that 'broadsheet serve RUN "
            f"--set serve.latency_goal_ms={section.latency_goal_ms:g}' prints"
        )
    exposure.check(section.model_copy(update={"host": deploy.listens_on() or section.host}), joins=True)
    folder = checkpoint.find(arguments.checkpoint)
    if section.cascade and (lacks := lacking(folder)):
        raise UserError(f"serve.cascade is on, and {lacks}; or leave serve.cascade off: the network answers all texts")
    release = kept.release(folder, log.warning)
    kept.clear(release)
    own = desk.start(release, section, instead_of=desk.names())
    return application(release, section, own)
