"""The route that is answered without FastAPI's frame: the same answers, counts and errors."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve import direct
from serve.api import build_api


def test_texts_are_classified_without_the_router_and_counted_under_their_route() -> None:
    app = build_api(FakeEngine(), ServeConfig())
    seen: list[str] = []
    router = app.router.middleware_stack

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("path", scope["type"]))
        await router(scope, receive, send)

    app.router.middleware_stack = watched
    with TestClient(app, raise_server_exceptions=False) as http:
        assert http.post("/v1/classify", json={"inputs": "sport"}).json()[0][0]["label"] == "sport"
        refused = http.post("/v1/classify", json={"inputs": []})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "invalid")
        failed = http.post("/v1/classify", json={"inputs": "sport sport"})
        assert (failed.status_code, failed.json()["error_type"]) == (500, "internal")
        assert seen == ["lifespan"]
        other = http.get("/v1/classify")
        assert (other.status_code, other.json()["error_type"]) == (405, "method_not_allowed")
        assert seen[1:] == ["/v1/classify"]
        counted = http.get("/metrics").text
    for status, count in ((200, 1), (422, 1), (500, 1), (405, 1)):
        assert f'broadsheet_requests_total{{path="/v1/classify",status="{status}"}} {count}.0' in counted


def test_the_document_still_has_it() -> None:
    assert "post" in build_api(FakeEngine(), ServeConfig()).openapi()["paths"]["/v1/classify"]


def test_a_path_that_is_no_route_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        direct.add(build_api(FakeEngine(), ServeConfig()), "/v1/clasify", 1.0)
