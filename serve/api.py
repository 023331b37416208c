"""The HTTP API, without Ray: ``build_api(engine, config)`` makes a FastAPI app around a loaded model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response

from pipeline.config import ServeConfig
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.reference import Reference
from serve import answers, direct, drift_api, explain, feedback, manual, metrics, open_inference, playground, security
from serve.errors import Refused
from serve.releases import Release
from serve.requests import receive
from serve.responses import (
    RELEASE_HEADER,
    after,
    documented,
    documented_body,
    documented_choice,
    documented_result,
    json_response,
    result_headers,
)
from serve.roster import Model, Roster
from serve.schema import ClassifyRequest, Label, check_top_k, parse
from serve.service import Engine


def build_api(
    engine: Engine, config: ServeConfig, index: Evidence | None = None, reference: Reference | None = None
) -> FastAPI:
    """The app around one model.

    Args:
        engine: the loaded model.
        config: the serve section.
        index: training rows for ``/v1/explain``; None gives no nearest ones.
        reference: what drift is measured from; None: it is not measured.
    """
    return build_app(Roster(Release("given"), Model(engine, index, reference), config), config)


def build_app(
    roster: Roster, config: ServeConfig, beside: Callable[[Roster], Coroutine[Any, Any, None]] | None = None
) -> FastAPI:
    """The app. Its lifespan starts and stops the models' threads; ``app.state.roster`` holds the models.

    Args:
        roster: the models, not started.
        config: the serve section.
        beside: runs until the app stops.
    """
    max_texts = min(config.max_texts, config.max_queue)  # more than the queue holds could never be let in

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await roster.start()
        task = asyncio.create_task(beside(roster)) if beside is not None else None
        yield
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await roster.stop()
        if kept is not None:
            await kept.close()

    app = FastAPI(
        title="Broadsheet",
        version=_release(),
        description="Classifies texts. GET / names the labels.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.roster = roster

    @app.get("/health", summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether the model is loaded and answers", responses=documented("unavailable"))
    async def ready() -> dict[str, Any]:
        if not roster.ready:
            raise Refused("unavailable", "the model is not ready")
        engine = roster.stable.engine
        return {"status": "ready", "model_version": engine.version, "engine": engine.runs}

    @app.post(
        "/v1/classify",
        summary="Classify one text or a list of texts",
        response_model=list[list[Label]],
        response_description="One list per text: labels with their scores, best first.",
        responses=documented_result(),
        openapi_extra=documented_body(
            ClassifyRequest.model_json_schema(),
            f"At most {max_texts} texts of {config.max_text_chars} characters, {config.max_body_bytes} bytes in all.",
        )
        | documented_choice(),
    )
    async def classify(request: Request) -> Response:
        def read(body: bytes) -> ClassifyRequest:
            return parse(body, max_texts=max_texts, max_text_chars=config.max_text_chars)

        wanted = await receive(request, config, read)
        with roster.hold(roster.asked(request.headers.get(RELEASE_HEADER)) or roster.next()) as model:
            check_top_k(wanted, len(model.engine.labels))
            result, by = await roster.classify(model, wanted.texts, wanted.truncation == "cut")
        rows = ranked(result.probabilities, by.engine.labels, wanted.top_k)
        response = json_response(rows, result_headers(result, by.engine.version))
        return after(response, roster.shadow(by, wanted.texts, result))

    direct.add(app, "/v1/classify", config.timeout_s)
    playground.add_route(app, roster, feedback=bool(config.feedback))
    explain.add_route(app, roster, config)
    kept = feedback.add_route(app, roster, config, max_texts)
    open_inference.add_routes(app, roster, config, max_texts, _release())
    security.secure(app, config)
    metrics.add_route(app, roster.metrics)
    drift_api.add_route(app, roster)
    manual.add_route(app, config)
    answers.add_handlers(app, config.timeout_s)
    return app


def ranked(probabilities: np.ndarray, labels: list[str], top_k: int | None) -> list[list[dict[str, Any]]]:
    """Labels with scores per text, best first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[i], "score": float(row[i])} for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def _release() -> str:
    try:
        return version("broadsheet")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
