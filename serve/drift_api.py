"""``GET /v1/drift``: what ``serve.drift`` has counted on the replica that answers."""

from __future__ import annotations

from fastapi import FastAPI, Response

from pipeline.evaluate.reference import FILE
from serve.drift import Drift, DriftReport
from serve.errors import Refused
from serve.responses import documented, json_response


def add_route(app: FastAPI, drift: Drift | None, version: str) -> None:
    """``GET /v1/drift``."""

    @app.get(
        "/v1/drift",
        summary="How far the texts of this replica have moved from those of evaluation",
        response_model=DriftReport,
        responses=documented("not_found"),
    )
    async def drifted() -> Response:
        if drift is None:
            message = f"the model has no {FILE} to measure drift from, or it could not be read (the server's log says "
            raise Refused("not_found", message + "so): 'broadsheet evaluate' makes it")
        return json_response(drift.report(version).model_dump())
