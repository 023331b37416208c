"""The Open Inference Protocol, version 2, as KServe and its clients speak it: JSON tensors over HTTP.

The texts come as a BYTES tensor and take the same way as those of ``/v1/classify``. The extension for binary tensors
is not spoken.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response

from pipeline.config import ServeConfig
from serve.errors import Refused
from serve.requests import check_text, kind, read_object, receive
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
from serve.roster import Roster, Running
from serve.schema import check_count, check_lengths
from serve.service import Result

NAME = "broadsheet"
INPUT = "text"
OUTPUTS = ("label", "probabilities")
ID_CHARS = 256
BODY = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": ID_CHARS},
        "parameters": {"type": "object", "properties": {"truncation": {"enum": ["cut", "error"]}}},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype", "data"],
                "properties": {
                    "name": {"const": INPUT},
                    "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
                    "datatype": {"const": "BYTES"},
                    "data": {"type": "array"},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"enum": list(OUTPUTS)}}},
        },
    },
    "examples": [{"inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["Oil prices fell"]}]}],
}


class Asked(NamedTuple):
    """A request: its id (None: without), its texts, the outputs that are wanted, and whether texts may be cut."""

    id: str | None
    texts: list[str]
    outputs: list[str]
    cut: bool


def parse(body: bytes, *, max_texts: int, max_text_chars: int) -> Asked:
    """Read and check an inference request.

    Raises:
        Refused: with the status and a sentence that says what is wrong and where.
    """
    tree = read_object(body, "inputs")
    identity = tree.get("id")
    if identity is not None:
        if not isinstance(identity, str) or len(identity) > ID_CHARS:
            raise Refused("invalid", f"'id' must be a text of at most {ID_CHARS} characters")
        _checked(identity, "'id'")
    parameters = tree.get("parameters") or {}
    truncation = parameters.get("truncation", "cut") if isinstance(parameters, dict) else None
    if truncation not in ("cut", "error"):
        raise Refused("invalid", "'parameters' must be an object, and its 'truncation' 'cut' or 'error'")
    inputs = tree.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused("invalid", f"'inputs' must be a list of one tensor, named '{INPUT}'")
    texts = _texts(inputs[0], max_texts)
    check_lengths({f"inputs[0].data[{i}]": text for i, text in enumerate(texts)}, max_text_chars)
    return Asked(identity, texts, _wanted(tree.get("outputs")), truncation == "cut")


def _texts(tensor: dict[str, Any], max_texts: int) -> list[str]:
    if tensor.get("name") != INPUT:
        raise Refused("invalid", f"inputs[0].name must be '{INPUT}'")
    if tensor.get("datatype") != "BYTES":
        raise Refused("invalid", "inputs[0].datatype must be 'BYTES': texts")
    data = tensor.get("data")
    if not isinstance(data, list):
        hint = ""
        if isinstance(tensor.get("parameters"), dict) and "binary_data_size" in tensor["parameters"]:
            hint = "; binary tensors are not spoken here (tritonclient: binary_data=False)"
        raise Refused("invalid", f"inputs[0].data must be a list of texts{hint}")
    if not data:
        raise Refused("invalid", "inputs[0].data is empty: send at least one text")
    check_count(len(data), max_texts)
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or any(type(n) is not int for n in shape)
        or shape not in ([len(data)], [len(data), 1])
    ):
        raise Refused("invalid", f"inputs[0].shape must be [{len(data)}] or [{len(data)}, 1] for these data")
    texts = []
    for i, item in enumerate(data):
        if isinstance(item, list) and len(item) == 1 and len(shape) == 2:  # nested like the shape, as is allowed
            item = item[0]
        if not isinstance(item, str):
            raise Refused("invalid", f"inputs[0].data[{i}] must be a text, not {kind(item)}")
        texts.append(_checked(item, f"inputs[0].data[{i}]"))
    return texts


def _wanted(outputs: Any) -> list[str]:
    if outputs is None or outputs == []:
        return list(OUTPUTS)
    names = [o.get("name") if isinstance(o, dict) else None for o in outputs] if isinstance(outputs, list) else [None]
    if any(name not in OUTPUTS for name in names):
        raise Refused("invalid", "'outputs' must be a list of objects whose name is 'label' or 'probabilities'")
    return [name for name in OUTPUTS if name in names]


def _checked(text: str, where: str) -> str:
    try:
        check_text(text, where)
    except ValueError as e:
        raise Refused("invalid", str(e)) from None
    return text


def answer(asked: Asked, result: Result, labels: list[str], version: str) -> dict[str, Any]:
    """The inference response: labels [n] and probabilities [n, classes], both flat and row-major."""
    rows, classes = result.probabilities.shape
    outputs = {
        "label": {
            "name": "label",
            "datatype": "BYTES",
            "shape": [rows],
            "data": [labels[i] for i in result.probabilities.argmax(1)],
        },
        "probabilities": {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [rows, classes],
            "data": result.probabilities.ravel().tolist(),
        },
    }
    return {
        "model_name": NAME,
        "model_version": version,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {
            "truncated": result.truncated,
            "by_linear": result.by_linear,
            **{f"{phase}_ms": round(1000 * s, 2) for phase, s in result.phases.items()},
        },
        "outputs": [outputs[name] for name in asked.outputs],
    }


def metadata(labels: list[str], versions: list[str]) -> dict[str, Any]:
    """The model's metadata. Parameters may only be texts, numbers and booleans: the labels are a list in JSON."""
    named = {"labels": json.dumps(labels, ensure_ascii=False)}
    return {
        "name": NAME,
        "versions": versions,
        "platform": "broadsheet_pytorch",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(labels)], "parameters": named},
        ],
    }


def add_routes(app: FastAPI, roster: Roster, config: ServeConfig, max_texts: int, release: str) -> None:
    """Everything below ``/v2``; ``release`` is Broadsheet's version."""

    def versions() -> list[str]:
        return list(dict.fromkeys(model.engine.version for model in roster.loaded))

    def known(name: str, version: str | None = None) -> Running | None:
        """The model of this version, None where any will do."""
        if name != NAME:
            raise Refused("not_found", f"there is no model {ascii(name)[:60]} here; this server has '{NAME}'")
        if version is None:
            return None
        model = roster.of_version(version)
        if model is None:
            here = " and ".join(f"'{v}'" for v in versions())
            raise Refused("not_found", f"there is no version {ascii(version)[:60]} here; it is {here}")
        return model

    def need_ready(model: Running) -> None:
        if not model.service.ready:
            raise Refused("unavailable", "the model is not ready")

    @app.get("/v2", summary="Server metadata")
    async def server() -> dict[str, Any]:
        return {"name": NAME, "version": release, "extensions": []}

    @app.get("/v2/health/live", summary="Whether the process is alive")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the model answers", responses=documented("unavailable"))
    async def server_ready() -> dict[str, bool]:
        need_ready(roster.stable)
        return {"ready": True}

    async def model(name: str, version: str | None = None) -> dict[str, Any]:
        found = known(name, version)
        return metadata((found or roster.stable).engine.labels, versions())

    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        need_ready(known(name, version) or roster.stable)
        return {"name": NAME, "ready": True}

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        known(name, version)
        asked = await receive(
            request, config, lambda body: parse(body, max_texts=max_texts, max_text_chars=config.max_text_chars)
        )
        pinned = known(name, version)
        with roster.hold(pinned or roster.asked(request.headers.get(RELEASE_HEADER)) or roster.next()) as model:
            result, by = await roster.classify(model, asked.texts, asked.cut, pinned=pinned is not None)
        content = answer(asked, result, by.engine.labels, by.engine.version)
        response = json_response(content, result_headers(result, by.engine.version))
        return after(response, roster.shadow(by, asked.texts, result))

    body = documented_body(BODY, f"One BYTES tensor of at most {max_texts} texts, of shape [n] or [n, 1].")
    body |= documented_choice()
    for path, hidden in (("/v2/models/{name}", False), ("/v2/models/{name}/versions/{version}", True)):
        shown: dict[str, Any] = {"methods": ["GET"], "include_in_schema": not hidden}
        app.add_api_route(path, model, summary="Model metadata", responses=documented("not_found"), **shown)
        app.add_api_route(
            f"{path}/ready", model_ready, summary="Whether it answers",
            responses=documented("not_found", "unavailable"), **shown,
        )  # fmt: skip
        app.add_api_route(
            f"{path}/infer", infer, summary="Classify a tensor of texts", response_model=None,
            responses=documented_result() | documented("not_found"), openapi_extra=body,
            **shown | {"methods": ["POST"]},
        )  # fmt: skip
