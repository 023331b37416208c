"""The HTTP API, without Ray: ``build_api(service, config)`` makes a FastAPI app around a loaded model."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.config import ServeConfig
from serve.batcher import DeadlinePassed, QueueFull
from serve.schema import MEANING, STATUS, ClassifyRequest, ErrorBody, ErrorType, Label, Refused, parse
from serve.service import Engine, Result, Service
from serve.worker import NotReady

log = logging.getLogger("ray.serve")

THREAD_BYTES = 65_536  # larger bodies are parsed in a thread, so that they hold nobody else up

RESULT_HEADERS = {
    "x-model-version": "Short id of the checkpoint that answered.",
    "x-broadsheet-truncated": "How many of the texts were longer than the model reads and were cut.",
    "x-queue-ms": "Milliseconds waiting for the model.",
    "x-tokenize-ms": "Milliseconds cleaning and tokenizing.",
    "x-inference-ms": "Milliseconds on the model.",
}


def build_api(engine: Engine, config: ServeConfig) -> FastAPI:
    """The app. Its lifespan starts and stops the model's threads; ``app.state.service`` is the model."""
    service = Service(engine, batch_tokens=config.batch_tokens, max_queue=config.max_queue, timeout_s=config.timeout_s)
    max_texts = min(config.max_texts, config.max_queue)  # more than the queue holds could never be let in

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        service.stop()

    app = FastAPI(
        title="Broadsheet",
        version=engine.version,
        description=f"Classifies texts into: {', '.join(engine.labels)}.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service

    @app.get("/", summary="What this is")
    async def about() -> dict[str, Any]:
        return {
            "name": "broadsheet",
            "model_version": engine.version,
            "labels": engine.labels,
            "classify": {
                "method": "POST",
                "path": "/v1/classify",
                "body": {"inputs": ["a text"], "top_k": 1},
            },
            "docs": "/docs",
        }

    @app.get("/health", summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether the model is loaded and answers", responses=_errors("unavailable"))
    async def ready() -> dict[str, str]:
        if not service.ready:
            raise Refused("unavailable", "the model is not ready")
        return {"status": "ready", "model_version": engine.version}

    @app.post(
        "/v1/classify",
        summary="Classify one text or a list of texts",
        response_model=list[list[Label]],
        response_description="One list per text: labels with their scores, best first.",
        responses={
            200: {"headers": {k: {"description": v, "schema": {"type": "string"}} for k, v in RESULT_HEADERS.items()}},
            **_errors("bad_request", "timeout", "too_large", "invalid", "overloaded", "internal", "unavailable"),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": f"At most {max_texts} texts of {config.max_text_chars} characters, "
                f"{config.max_body_bytes} bytes in all.",
                "content": {"application/json": {"schema": ClassifyRequest.model_json_schema()}},
            }
        },
    )
    async def classify(request: Request) -> Response:
        try:
            body = await asyncio.wait_for(read_body(request, config.max_body_bytes), config.timeout_s)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {config.timeout_s:g} s"
            raise Refused("timeout", message, {"connection": "close"}) from None

        def read() -> ClassifyRequest:
            return parse(body, max_texts=max_texts, max_text_chars=config.max_text_chars, labels=len(engine.labels))

        wanted = read() if len(body) <= THREAD_BYTES else await asyncio.to_thread(read)
        try:
            result = await service.classify(wanted.texts)
        except QueueFull as e:
            raise Refused("overloaded", f"the queue is full: {e}", {"retry-after": "1"}) from None
        except DeadlinePassed:
            message = f"the text was not answered within {config.timeout_s:g} s: the server is overloaded"
            raise Refused("unavailable", message, {"retry-after": "1"}) from None
        except NotReady as e:
            raise Refused("unavailable", str(e), {"retry-after": "1"}) from None
        rows = ranked(result.probabilities, engine.labels, wanted.top_k)
        return _json(rows, 200, _result_headers(result, engine.version))

    @app.exception_handler(Refused)
    async def refused(_: Request, e: Refused) -> Response:
        return _error(e.error_type, str(e), e.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, e: HTTPException) -> Response:
        kinds: dict[int, ErrorType] = {status: kind for kind, status in STATUS.items()}
        kind = kinds.get(e.status_code, "bad_request" if e.status_code < 500 else "internal")
        message = {
            404: "nothing here; post texts to /v1/classify",
            405: "this path does not take this method",
        }
        return _error(kind, message.get(e.status_code, str(e.detail)), dict(e.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, e: Exception) -> Response:
        log.error("request failed", exc_info=e)
        return _error("internal", "the request failed on the server; its log says why")

    return app


async def read_body(request: Request, limit: int) -> bytes:
    """The request body, reading no further than ``limit`` bytes.

    Raises:
        Refused: the body is larger, or ends early.
    """
    too_large = Refused("too_large", f"the body is larger than {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except ClientDisconnect:
        raise Refused("bad_request", "the connection closed before the body was complete") from None
    return b"".join(parts)


def ranked(probabilities: np.ndarray, labels: list[str], top_k: int | None) -> list[list[dict[str, Any]]]:
    """Labels with scores per text, best first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[i], "score": float(row[i])} for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def _result_headers(result: Result, version: str) -> dict[str, str]:
    values = (
        version,
        str(result.truncated),
        *(f"{1000 * s:.2f}" for s in (result.queue_s, result.tokenize_s, result.inference_s)),
    )
    return dict(zip(RESULT_HEADERS, values, strict=True))


def _json(content: Any, status: int, headers: dict[str, str]) -> Response:
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(data, status, headers, "application/json")


def _error(kind: ErrorType, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": message, "error_type": kind}, STATUS[kind], headers or {})


def _errors(*kinds: ErrorType) -> dict[int | str, dict[str, Any]]:
    return {STATUS[kind]: {"model": ErrorBody, "description": MEANING[kind]} for kind in kinds}
