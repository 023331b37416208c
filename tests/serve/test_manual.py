"""The page that describes the API."""

from __future__ import annotations

import html
import re
import shlex
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve import manual
from serve.api import build_api


@pytest.fixture(scope="module")
def page() -> str:
    with TestClient(build_api(FakeEngine(), ServeConfig(feedback="feedback"))) as http:
        response = http.get("/docs", headers={"host": "news.example:8000"})
        assert response.headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'none'; style-src"
        )
        document = http.get("/openapi.json").json()
    for path in document["paths"]:
        assert path in response.text
    for shape in document["components"]["schemas"]:
        assert f'<section id="{shape}">' in response.text
    return response.text


def test_it_loads_nothing_and_runs_nothing(page: str) -> None:
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:|openapi\.json|\./)", page)


def test_its_examples_are_requests_that_are_answered(page: str) -> None:
    commands = [shlex.split(html.unescape(c)) for c in re.findall(r"<pre>(.*?)</pre>", page)]
    assert len(commands) >= 8
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        for command in commands:
            url = command[2]
            assert url.startswith("http://news.example:8000/")
            if "/v1/feedback" in url or "/v1/drift" in url:
                continue
            path = url.removeprefix("http://news.example:8000")
            if "-d" in command:
                body = command[command.index("-d") + 1]
                answer = http.post(path.replace("{name}", "broadsheet"), content=body)
            else:
                answer = http.get(path)
            assert answer.status_code == 200, (command, answer.text)


def test_a_host_that_is_none_is_not_repeated() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        text = http.get("/docs", headers={"host": "x'; rm -rf <b>"}).text
    assert "rm -rf" not in text
    assert "http://127.0.0.1:8000/v1/classify" in text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "string"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, "integer (from 1) or null"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number (from 0 to 1)"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Label"}}, "list of Label"),
        ({"type": "array"}, "list"),
        ({"enum": ["cut", "error"], "type": "string"}, '"cut" | "error"'),
        ({"const": 2}, "2"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object of integer"),
        ({}, "anything"),
    ],
)
def test_schemas_in_words(schema: dict[str, Any], words: str) -> None:
    assert manual.kind(schema) == words
