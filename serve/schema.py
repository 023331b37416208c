"""What goes over the wire: request, response, and the errors with their HTTP statuses."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator

ErrorType = Literal[
    "bad_request",
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
    "not_found": "There is nothing at this path.",
    "method_not_allowed": "The path exists, but not for this method.",
    "timeout": "The body did not arrive in time.",
    "too_large": "The body, the number of texts or a text is over the limit.",
    "invalid": "A field is missing, unknown, of the wrong type or out of range.",
    "overloaded": "The queue is full; come back after the seconds in Retry-After.",
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


class Label(BaseModel):
    """One label with its probability."""

    label: str
    score: float = Field(ge=0, le=1, description="Calibrated probability; over all labels they sum to 1.")


class ClassifyRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": ["Oil prices fell for a third day"], "top_k": 1}]},
    )

    inputs: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="One text, or a list of texts. Texts are cleaned as they were for training."
    )
    top_k: StrictInt | None = Field(
        None, ge=1, description="How many labels to return per text, best first; null returns all."
    )

    @property
    def texts(self) -> list[str]:
        """The texts, whichever way they were sent."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @field_validator("inputs", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            _check_text(value, "inputs")
            return value
        if not isinstance(value, list):
            raise ValueError(f"'inputs' must be a text or a list of texts, not {_kind(value)}")
        if not value:
            raise ValueError("'inputs' is an empty list: send at least one text")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise ValueError(f"inputs[{i}] must be a text, not {_kind(item)}")
            _check_text(item, f"inputs[{i}]")
        return value


def parse(body: bytes, *, max_texts: int, max_text_chars: int, labels: int) -> ClassifyRequest:
    """Read and check a request body.

    Raises:
        Refused: with the status and a sentence that says what is wrong and in which item.
    """
    try:
        tree = json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise Refused("bad_request", f"the body is not UTF-8: byte {e.start} cannot be decoded") from None
    except RecursionError:
        raise Refused("bad_request", "the body is not usable JSON: it is nested too deeply") from None
    except ValueError as e:  # JSONDecodeError, and integers of thousands of digits
        raise Refused("bad_request", f"the body is not valid JSON: {str(e)[:200]}") from None
    if not isinstance(tree, dict):
        raise Refused("bad_request", f"the body must be a JSON object with the key 'inputs', not {_kind(tree)}")
    for key in tree:
        if key not in ClassifyRequest.model_fields:  # shown escaped: a key may hold anything
            known = "the fields are 'inputs' and 'top_k'"
            raise Refused("invalid", f"unknown field {ascii(key)[:60]}; {known}")
    inputs = tree.get("inputs")
    if isinstance(inputs, list) and len(inputs) > max_texts:
        raise Refused("too_large", f"{len(inputs)} texts in one request; at most {max_texts} are allowed")
    try:
        request = ClassifyRequest.model_validate(tree)
    except ValidationError as e:
        raise Refused("invalid", _sentence(e)) from None
    for i, text in enumerate(request.texts):
        if len(text) > max_text_chars:
            where = "inputs" if isinstance(request.inputs, str) else f"inputs[{i}]"
            message = f"{where} has {len(text)} characters; at most {max_text_chars} are allowed"
            raise Refused("too_large", message)
    if request.top_k is not None and request.top_k > labels:
        raise Refused("invalid", f"'top_k' is {request.top_k}, but the model has {labels} labels")
    return request


def _check_text(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        lone = f"\\u{ord(text[e.start]):04x}"
        raise ValueError(f"{where} holds a lone surrogate ({lone}) at character {e.start}") from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "this")


def _sentence(error: ValidationError) -> str:
    """The first problem in words."""
    first = error.errors(include_url=False)[0]
    key = first["loc"][0]
    if first["type"] == "missing":
        return f"the field '{key}' is missing"
    if first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")
    if key == "top_k":
        got = first["input"]
        shown = str(got)[:20] if isinstance(got, int) and not isinstance(got, bool) else _kind(got)
        return f"'top_k' must be a whole number of at least 1, or null; got {shown}"
    return f"'{key}': {first['msg']}"
