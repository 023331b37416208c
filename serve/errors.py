"""The errors of the API, with their HTTP statuses."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

ErrorType = Literal[
    "bad_request",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "timeout",
    "too_large",
    "invalid",
    "overloaded",
    "unavailable",
    "internal",
]

STATUS: dict[ErrorType, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "invalid": 422,
    "overloaded": 429,
    "internal": 500,
    "unavailable": 503,
}

MEANING: dict[ErrorType, str] = {
    "bad_request": "The body is not a JSON object in UTF-8.",
    "unauthorized": "The server asks for an API key, and there was none, or none that it knows.",
    "forbidden": "The API key may not do this.",
    "not_found": "There is nothing at this path.",
    "method_not_allowed": "The path exists, but not for this method.",
    "timeout": "The body did not arrive in time.",
    "too_large": "The body, the number of texts or a text is over the limit.",
    "invalid": "A field is missing, unknown, of the wrong type or out of range.",
    "overloaded": "The queue is full, or the client asks too often; come back after the seconds in Retry-After.",
    "internal": "Something failed on the server; its log says what.",
    "unavailable": "The model is not ready, or the text waited longer than the time limit.",
}


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, error_type: ErrorType, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.error_type: ErrorType = error_type
        self.status = STATUS[error_type]
        self.headers = headers or {}


class ErrorBody(BaseModel):
    """The body of every error."""

    error: str = Field(description="One sentence: what is wrong and where.")
    error_type: ErrorType = Field(description="The kind of error, one to one with the HTTP status.")
