"""The endpoint for those who declare it in Ray Serve's own configuration: KubeRay's RayService, or ``serve deploy``.

``import_path: serve.declared:endpoint`` with ``args: {checkpoint: ..., serve: {...}}``.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from pipeline.config import ServeConfig
from pipeline.storage import Place
from pipeline.train import checkpoint
from serve import desk, exposure
from serve.app import application
from serve.releases import Release, version_of


class Arguments(BaseModel):
    """``args`` of the application.

    Attributes:
        checkpoint: a run or checkpoint folder or URI that every node can read.
        serve: the keys of the configuration's section ``serve``. Host and port must be those of ``http_options``.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]


def endpoint(arguments: Arguments) -> Application:
    """Build the application; Ray Serve calls this on the cluster, anew whenever its configuration changes.

    Raises:
        UserError: there is no checkpoint, or the endpoint would be open without having been asked to.
    """
    exposure.check(arguments.serve, joins=True)
    folder = checkpoint.find(arguments.checkpoint)
    release = Release(str(folder), version_of(Place.of(folder)))
    before = desk.names()
    own = desk.start(release, arguments.serve)
    desk.stop(*before)  # replicas that are about to be replaced go on without
    return application(release, arguments.serve, own)
