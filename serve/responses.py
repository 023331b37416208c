"""What every answer has in common: compact JSON, one shape of error, headers with the model's version and timings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Response
from starlette.background import BackgroundTask

from serve.errors import MEANING, STATUS, ErrorBody, ErrorType

if TYPE_CHECKING:
    from serve.service import Result

RELEASE_HEADER = "x-broadsheet-release"  # of a request: stable or candidate
RESULT_HEADERS = {
    "x-model-version": "Short id of the checkpoint that answered.",
    "x-broadsheet-truncated": "How many of the texts were longer than the model reads and were cut.",
    "x-broadsheet-linear": "How many of the texts the linear model of a cascade answered (serve.cascade).",
    "x-queue-ms": "Milliseconds waiting for the model.",
    "x-tokenize-ms": "Milliseconds cleaning and tokenizing.",
    "x-inference-ms": "Milliseconds on the model.",
}


def result_headers(result: Result, version: str) -> dict[str, str]:
    """``RESULT_HEADERS`` with their values."""
    values = (
        version,
        str(result.truncated),
        str(result.by_linear),
        *(f"{1000 * s:.2f}" for s in result.phases.values()),
    )
    return dict(zip(RESULT_HEADERS, values, strict=True))


def json_response(content: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Compact JSON in UTF-8."""
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(data, status, headers or {}, "application/json")


def after(response: Response, done: Callable[[], None] | None) -> Response:
    """The response, with something to do once it was sent; that must return at once."""
    if done is not None:

        async def call() -> None:  # a plain function would cost a thread
            done()

        response.background = BackgroundTask(call)
    return response


def error_response(kind: ErrorType, message: str, headers: dict[str, str] | None = None) -> Response:
    """The one shape of all errors."""
    return json_response({"error": message, "error_type": kind}, headers, STATUS[kind])


def documented(*kinds: ErrorType) -> dict[int | str, dict[str, Any]]:
    """Errors for the OpenAPI document."""
    return {STATUS[kind]: {"model": ErrorBody, "description": MEANING[kind]} for kind in kinds}


def documented_result() -> dict[int | str, dict[str, Any]]:
    """The headers of a result, and the errors that an answer of the model may be instead, for the OpenAPI document."""
    headers = {k: {"description": v, "schema": {"type": "string"}} for k, v in RESULT_HEADERS.items()}
    errors = documented("bad_request", "timeout", "too_large", "invalid", "overloaded", "internal", "unavailable")
    return {200: {"headers": headers}, **errors}


def documented_body(schema: dict[str, Any], description: str) -> dict[str, Any]:
    """A JSON body that is read by hand, for the OpenAPI document."""
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def documented_choice() -> dict[str, Any]:
    """The header that picks a model, for the OpenAPI document."""
    about = "Which model answers while one is on trial; by default the server's choice."
    schema = {"type": "string", "enum": ["stable", "candidate"]}
    return {"parameters": [{"name": RELEASE_HEADER, "in": "header", "description": about, "schema": schema}]}
