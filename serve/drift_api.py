"""``GET /v1/drift``: what ``serve.drift`` has counted of a model on the replica that answers."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from pipeline.evaluate.reference import FILE
from serve.drift import DriftReport
from serve.errors import Refused
from serve.keys import need_admin
from serve.responses import RELEASE_HEADER, documented, documented_choice, json_response
from serve.roster import Roster


def add_route(app: FastAPI, roster: Roster) -> None:
    """``GET /v1/drift``."""

    @app.get(
        "/v1/drift",
        summary="How far the texts of this replica have moved from those of evaluation",
        response_model=DriftReport,
        responses=documented("forbidden", "not_found", "invalid"),
        openapi_extra=documented_choice(),
    )
    async def drifted(request: Request) -> Response:
        need_admin(request)
        running = roster.asked(request.headers.get(RELEASE_HEADER)) or roster.stable
        if running.service.drift is None:
            message = f"the model has no {FILE} to measure drift from, or it could not be read (the server's log says "
            raise Refused("not_found", message + "so): 'broadsheet evaluate' makes it")
        return json_response(running.service.drift.report(running.engine.version).model_dump())
