"""``GET /docs``: the OpenAPI document as a page to read, without a script and without anything from elsewhere.

FastAPI's own page loads Swagger UI from a content delivery network: not where API keys are typed, and not where there
is no way out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, Template

from pipeline.config import ServeConfig
from serve.sealed import sealed

TEMPLATE = Path(__file__).with_name("manual.html")
METHODS = ("get", "put", "post", "delete", "patch")


@lru_cache(maxsize=1)
def template() -> Template:
    """The page's template; whatever goes into it is escaped."""
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))


def kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: 'list of string', '1 or more, or null'."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(v) for v in schema.get("enum", [schema.get("const")]))
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind(option) for option in options))
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {kind(schema['additionalProperties'])}"
    words = str(schema.get("type", "anything"))
    bounds = [(word, schema[key]) for word, key in (("from", "minimum"), ("to", "maximum")) if key in schema]
    return words + (f" ({' '.join(f'{word} {value}' for word, value in bounds)})" if bounds else "")


def fields(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The properties of an object, as rows."""
    needed = schema.get("required", [])
    return [
        {
            "name": name,
            "kind": kind(found),
            "needed": name in needed,
            "default": json.dumps(found["default"]) if found.get("default") is not None else "",
            "text": found.get("description", ""),
        }
        for name, found in schema.get("properties", {}).items()
    ]


def operations(document: Mapping[str, Any], base: str) -> Iterator[dict[str, Any]]:
    """What can be asked, as sections of the page.

    Args:
        document: OpenAPI, as a tree.
        base: URL of the server, for the examples.
    """
    for path, methods in document["paths"].items():
        for method, found in methods.items():
            if method not in METHODS:
                continue
            body = found.get("requestBody", {})
            schema = body.get("content", {}).get("application/json", {}).get("schema", {})
            example = next(iter(schema.get("examples", [])), None)
            command = ["curl", "-s", base + path]
            if example is not None:
                command += ["-H", "content-type: application/json", "-d", json.dumps(example, ensure_ascii=False)]
            yield {
                "method": method.upper(),
                "path": path,
                "summary": found.get("summary", ""),
                "text": found.get("description", ""),
                "parameters": [
                    {"name": p["name"], "kind": kind(p.get("schema", {})), "needed": p.get("required", False),
                     "default": "", "text": p.get("description", "")}
                    for p in found.get("parameters", [])
                ],
                "body": fields(schema),
                "limits": body.get("description", ""),
                "curl": shlex.join(command) if example is not None or (method == "get" and "{" not in path) else "",
                "answers": [
                    {"status": status, "text": answer.get("description", ""), "kinds": _kinds(answer),
                     "headers": {n: h.get("description", "") for n, h in answer.get("headers", {}).items()}}
                    for status, answer in found.get("responses", {}).items()
                ],
            }  # fmt: skip


def _kinds(answer: Mapping[str, Any]) -> str:
    return ", ".join(
        (f"{kind(c['schema'])}" if c.get("schema") else "") + ("" if name == "application/json" else f" ({name})")
        for name, c in answer.get("content", {}).items()
    )


def add_route(app: FastAPI, config: ServeConfig) -> None:
    """``GET /docs``."""

    @app.get("/docs", include_in_schema=False)
    async def manual(request: Request) -> Response:
        host = request.headers.get("host", "")
        if not re.fullmatch(r"[\w.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?", host):
            host = f"127.0.0.1:{config.port}"
        base = f"{'https' if config.tls_cert else 'http'}://{host}"
        document = app.openapi()
        shapes = document.get("components", {}).get("schemas", {})
        page = template().render(
            title=document["info"]["title"],
            version=document["info"]["version"],
            keys=config.keys is not None,
            operations=list(operations(document, base)),
            shapes=[
                {"name": name, "text": s.get("description", ""), "fields": fields(s)} for name, s in shapes.items()
            ],
        )
        return sealed(page)
