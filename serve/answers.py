"""Every exception as an error of one shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serve.batcher import DeadlinePassed, QueueFull
from serve.errors import STATUS, ErrorType, Refused
from serve.explain import Gone
from serve.responses import error_response
from serve.service import TooLong
from serve.worker import NotReady

log = logging.getLogger("ray.serve")

LATER = {"retry-after": "1"}
EXPECTED = (Refused, QueueFull, DeadlinePassed, NotReady, TooLong, Gone)


def answer(error: Exception, timeout_s: float) -> Response:
    """The response to what is expected to go wrong.

    Args:
        error: of a route, one of ``EXPECTED``.
        timeout_s: within which a text should have been answered.
    """
    if isinstance(error, Refused):
        return error_response(error.error_type, str(error), error.headers)
    if isinstance(error, QueueFull):
        return error_response("overloaded", f"the queue is full: {error}", LATER)
    if isinstance(error, DeadlinePassed):
        message = f"the text was not answered within {timeout_s:g} s: the server is overloaded"
        return error_response("unavailable", message, LATER)
    if isinstance(error, NotReady):
        return error_response("unavailable", str(error), LATER)
    if isinstance(error, TooLong):
        message = f"inputs[{error.index}] has {error.tokens} tokens, and the model reads {error.most}: shorten it, or "
        return error_response("invalid", message + "allow it to be cut with 'truncation': 'cut'")
    assert isinstance(error, Gone)
    return error_response("bad_request", "the connection closed before the answer was ready")


def add_handlers(app: FastAPI, timeout_s: float) -> None:
    """Answer every exception of the app's routes."""

    async def expected(_: Request, e: Exception) -> Response:
        return answer(e, timeout_s)

    for kind in EXPECTED:
        app.add_exception_handler(kind, expected)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, e: HTTPException) -> Response:
        kinds: dict[int, ErrorType] = {status: kind for kind, status in STATUS.items()}
        kind = kinds.get(e.status_code, "bad_request" if e.status_code < 500 else "internal")
        message = {
            404: "nothing here; post texts to /v1/classify",
            405: "this path does not take this method",
        }
        return error_response(kind, message.get(e.status_code, str(e.detail)), dict(e.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, e: Exception) -> Response:
        log.error("request failed", exc_info=e)
        return error_response("internal", "the request failed on the server; its log says why")
