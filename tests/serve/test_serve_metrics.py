"""``GET /metrics``: what is counted, and under which names."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve.api import build_api


def scraped(http: TestClient) -> dict[str, float]:
    response = http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(response.text) for s in family.samples]
    return {s.name + "".join(f"|{k}={v}" for k, v in sorted(s.labels.items())): s.value for s in samples}


def test_what_is_counted() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig(max_texts=5)), raise_server_exceptions=False) as http:
        http.post("/v1/classify", json={"inputs": ["sport", "a sport", "b " * 20]})
        http.post("/v1/classify", json={"inputs": 7})
        http.post("/v1/classify", json={"inputs": "sport sport"})
        http.post(
            "/v2/models/broadsheet/infer",
            json={"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["world"]}]},
        )
        for name in ("one", "two"):
            http.get(f"/v2/models/{name}")
            http.get(f"/nowhere/{name}")
        got = scraped(http)
    prefix = "broadsheet_requests_total|path="
    assert {k.removeprefix(prefix): v for k, v in got.items() if k.startswith(prefix)} == {
        "/v1/classify|status=200": 1,
        "/v1/classify|status=422": 1,
        "/v1/classify|status=500": 1,
        "/v2/models/{name}/infer|status=200": 1,
        "/v2/models/{name}|status=404": 2,
        "other|status=404": 2,
    }
    assert got["broadsheet_texts_total|version=fake-1"] == 4
    assert got["broadsheet_truncated_texts_total|version=fake-1"] == 1
    assert got["broadsheet_predicted_labels_total|label=sport|version=fake-1"] == 2
    assert got["broadsheet_predicted_labels_total|label=science|version=fake-1"] == 0
    assert got["broadsheet_queue_texts|version=fake-1"] == 0
    assert got["broadsheet_model_info|release=stable|version=fake-1"] == 1
    assert got["broadsheet_model_requests_total|outcome=ok|version=fake-1"] == 2
    assert got["broadsheet_model_requests_total|outcome=failed|version=fake-1"] == 1
    for phase in ("queue", "tokenize", "inference"):
        assert got[f"broadsheet_phase_seconds_count|phase={phase}|version=fake-1"] == 2
    assert got["broadsheet_batch_texts_sum|version=fake-1"] == 1 + 3 + 1  # with the warm-up; one that fails is none
    assert got["broadsheet_batch_tokens_sum|version=fake-1"] == 1 + 3 * 16 + 1


def test_a_client_that_hangs_up_is_no_failure() -> None:
    async def hung_up() -> dict[str, float]:
        app = build_api(FakeEngine(), ServeConfig())
        body = b'{"inputs": "sport"}'
        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"/v1/classify",
                 "query_string": b"",
                 "headers": [(b"content-length", str(len(body)).encode())], "http_version": "1.1", "scheme": "http",
                 "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": "", "app": app}  # fmt: skip
        async with app.router.lifespan_context(app):
            waiting = asyncio.create_task(app(scope, asyncio.Event().wait, None))  # the body never comes
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            registry = app.state.roster.metrics.registry
            found = [s for f in registry.collect() for s in f.samples if s.name == "broadsheet_requests_total"]
        return {f"{s.labels['path']} {s.labels['status']}": s.value for s in found}

    assert asyncio.run(hung_up()) == {"/v1/classify 499": 1}


def test_each_app_counts_for_itself() -> None:
    for _ in range(2):
        with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
            http.post("/v1/classify", json={"inputs": "sport"})
            assert scraped(http)["broadsheet_texts_total|version=fake-1"] == 1


def test_openmetrics_where_it_is_asked_for() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        response = http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")
