"""Request bodies: read with bounds, decoded, and checked, with a sentence for whatever is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ValidationError, ValidationInfo
from starlette.requests import ClientDisconnect

from pipeline.config import ServeConfig
from serve.errors import Refused

THREAD_BYTES = 65_536  # larger bodies are parsed in a thread, so that they hold nobody else up

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


async def receive(request: Request, config: ServeConfig, parse: Callable[[bytes], T]) -> T:
    """The body as ``parse`` makes it, within the limits of ``config``.

    Raises:
        Refused: it is too large, arrives too slowly, ends early, or ``parse`` refuses it.
    """
    try:
        body = await asyncio.wait_for(read_body(request, config.max_body_bytes), config.timeout_s)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {config.timeout_s:g} s"
        raise Refused("timeout", message, {"connection": "close"}) from None
    return parse(body) if len(body) <= THREAD_BYTES else await asyncio.to_thread(parse, body)


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


def read_object(body: bytes, key: str) -> dict[str, Any]:
    """The JSON object in a body; ``key`` is what it should hold, for the error.

    Raises:
        Refused: it is not JSON in UTF-8, or no object.
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
        raise Refused("bad_request", f"the body must be a JSON object with the key '{key}', not {kind(tree)}")
    return tree


def validated(model: type[M], tree: dict[str, Any], where: str = "") -> M:
    """The object as a model.

    Args:
        model: has ``extra="forbid"``.
        tree: what was sent.
        where: what the object is called in errors, such as ``items[3]``.

    Raises:
        Refused: the first problem in words.
    """
    prefix = f"{where}: " if where else ""
    for key in tree:
        if key not in model.model_fields:  # shown escaped: a key may hold anything
            *names, last = (f"'{name}'" for name in model.model_fields)
            known = f"the fields are {', '.join(names)} and {last}" if names else f"the only field is {last}"
            raise Refused("invalid", f"{prefix}unknown field {ascii(key)[:60]}; {known}")
    try:
        return model.model_validate(tree)
    except ValidationError as e:
        raise Refused("invalid", prefix + _sentence(e)) from None


def check_text(text: str, where: str) -> None:
    """Raise ``ValueError`` for a text that is not Unicode: JSON can carry half a surrogate pair."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        lone = f"\\u{ord(text[e.start]):04x}"
        raise ValueError(f"{where} holds a lone surrogate ({lone}) at character {e.start}") from None


def kind(value: Any) -> str:
    """What a JSON value is, for errors."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "this")


def _a_text(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"'{info.field_name}' must be a text, not {kind(value)}")
    check_text(value, f"'{info.field_name}'")
    return value


A_TEXT = BeforeValidator(_a_text)
Text = Annotated[str, A_TEXT]
"""A text field of a request."""


def _sentence(error: ValidationError) -> str:
    """The first problem in words."""
    first = error.errors(include_url=False)[0]
    key, got = first["loc"][0], first["input"]
    if first["type"] == "missing":
        return f"the field '{key}' is missing"
    if first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "literal_error":
        shown = ascii(got)[:40] if isinstance(got, str) else kind(got)
        return f"'{key}' must be {first['ctx']['expected']}; got {shown}"
    if first["type"] in ("string_too_long", "too_long") and isinstance(got, str):
        return f"'{key}' has {len(got)} characters; at most {first['ctx']['max_length']} are allowed"
    if key == "top_k":
        shown = str(got)[:20] if isinstance(got, int) and not isinstance(got, bool) else kind(got)
        return f"'top_k' must be a whole number of at least 1, or null; got {shown}"
    return f"'{key}': {first['msg']}"
