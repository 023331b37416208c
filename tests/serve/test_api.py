"""The HTTP API around a fake engine: shapes, statuses and sentences."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve.api import build_api
from serve.errors import MEANING, STATUS

LIMITS = ServeConfig(max_texts=5, max_text_chars=200_000, max_body_bytes=300_000, timeout_s=20)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def http(engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(build_api(engine, LIMITS), raise_server_exceptions=False) as client:
        yield client


def post(http: TestClient, body: Any, **more: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post("/v1/classify", content=data, **more)


def test_one_text_gives_one_list_of_all_labels(http: TestClient) -> None:
    response = post(http, {"inputs": "a word about sport"})
    assert response.status_code == 200
    (labels,) = response.json()
    assert [row["label"] for row in labels] == ["sport", "business", "science", "world"]
    assert sum(row["score"] for row in labels) == pytest.approx(1)
    assert response.headers["x-model-version"] == "fake-1"
    assert response.headers["x-broadsheet-truncated"] == "0"
    for phase in ("queue", "tokenize", "inference"):
        assert float(response.headers[f"x-{phase}-ms"]) >= 0


def test_a_list_keeps_its_order_and_top_k_cuts(http: TestClient) -> None:
    texts = ["x world", "sport", "long " * 20 + "science", ""]
    response = post(http, {"inputs": texts, "top_k": 1})
    assert [[row["label"] for row in rows] for rows in response.json()] == [
        ["world"],
        ["sport"],
        ["science"],
        ["business"],
    ]
    assert response.headers["x-broadsheet-truncated"] == "1"


def test_a_text_that_is_too_long_can_be_refused(http: TestClient) -> None:
    texts = ["sport", "long " * 20 + "science"]
    refused = post(http, {"inputs": texts, "truncation": "error"})
    assert refused.status_code == 422
    assert "inputs[1] has 21 tokens, and the model reads 16" in refused.json()["error"]
    assert post(http, {"inputs": texts[0], "truncation": "error"}).status_code == 200
    assert post(http, {"inputs": texts, "truncation": "cut"}).headers["x-broadsheet-truncated"] == "1"


def test_a_byte_order_mark_and_any_content_type_are_fine(http: TestClient) -> None:
    body = b'\xef\xbb\xbf{"inputs": "sport"}'
    response = post(http, body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert response.status_code == 200


REFUSED = [
    (b"", 400, "not valid JSON"),
    (b"{", 400, "not valid JSON"),
    (b'{"inputs": "\xff"}', 400, "not UTF-8"),
    ('{"inputs": "sport"}'.encode("utf-16"), 400, "not UTF-8"),
    (b'["a text"]', 400, "not a list"),
    (b'"a text"', 400, "not a text"),
    (b"null", 400, "not null"),
    (b"NaN", 400, "not a number"),
    (b"[" * 100_000, 400, "JSON"),
    (b'{"inputs": ' + b"1" * 5_000 + b"}", 400, "JSON"),
    (b"{}", 422, "'inputs' is missing"),
    (b'{"inputs": NaN}', 422, "not a number"),
    (b'{"inputs": null}', 422, "not null"),
    (b'{"inputs": {"text": "a"}}', 422, "not an object"),
    (b'{"inputs": []}', 422, "empty list"),
    (b'{"inputs": ["a", 7, null]}', 422, "inputs[1] must be a text, not a number"),
    (b'{"inputs": ["a", ["b"]]}', 422, "inputs[1] must be a text, not a list"),
    (b'{"inputs": ["a", true]}', 422, "inputs[1] must be a text, not a boolean"),
    (b'{"inputs": "\\ud800"}', 422, "lone surrogate (\\ud800) at character 0"),
    (b'{"inputs": ["a", "b \\udfff"]}', 422, "inputs[1] holds a lone surrogate"),
    (b'{"inputs": "a", "\\ud800": 1}', 422, "unknown field '\\ud800'"),
    (b'{"inputs": "a", "topk": 1}', 422, "unknown field 'topk'"),
    (b'{"inputs": "a", "top_k": 0}', 422, "'top_k' must be a whole number of at least 1, or null; got 0"),
    (b'{"inputs": "a", "top_k": -1}', 422, "got -1"),
    (b'{"inputs": "a", "top_k": 1.5}', 422, "got a number"),
    (b'{"inputs": "a", "top_k": true}', 422, "got a boolean"),
    (b'{"inputs": "a", "top_k": "1"}', 422, "got a text"),
    (b'{"inputs": "a", "top_k": 5}', 422, "'top_k' is 5, but the model has 4 labels"),
    (b'{"inputs": "a", "truncation": "no"}', 422, "'truncation' must be 'cut' or 'error'; got 'no'"),
    (b'{"inputs": "a", "truncation": null}', 422, "'truncation' must be 'cut' or 'error'; got null"),
    (json.dumps({"inputs": ["a"] * 10_000}).encode(), 413, "10000 texts in one request; at most 5"),
    (json.dumps({"inputs": ["a", "b" * 200_001]}).encode(), 413, "inputs[1] has 200001 characters"),
    (json.dumps({"inputs": "b" * 5_000_000}).encode(), 413, "larger than 300000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), REFUSED)
def test_bad_requests(http: TestClient, body: bytes, status: int, sentence: str) -> None:
    response = post(http, body)
    answer = response.json()
    assert (response.status_code, set(answer)) == (status, {"error", "error_type"})
    assert STATUS[answer["error_type"]] == status
    assert sentence in answer["error"]


def test_an_endless_body_is_read_no_further_than_the_limit(engine: FakeEngine) -> None:
    """Straight ASGI, so that what is read can be counted."""
    sent = 0
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
    }
    asyncio.run(build_api(engine, LIMITS)(scope, receive, send))
    assert answers[0]["status"] == 413
    assert sent == 31


def test_a_declared_size_over_the_limit_is_refused_unread(http: TestClient) -> None:
    def never() -> Iterator[bytes]:
        yield b"{"

    response = http.post("/v1/classify", content=never(), headers={"content-length": "9" * 4000})
    assert response.status_code == 413


def test_unknown_paths_and_methods_have_the_same_shape(http: TestClient) -> None:
    assert http.get("/nowhere").json()["error_type"] == "not_found"
    response = http.get("/v1/classify")
    assert response.status_code == 405
    assert response.json()["error_type"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


def test_a_model_error_is_a_500_without_details_and_the_next_request_works(http: TestClient) -> None:
    response = post(http, {"inputs": "sport sport"})
    assert response.status_code == 500
    assert response.json()["error_type"] == "internal"
    assert "twice" not in response.text
    assert post(http, {"inputs": "sport"}).status_code == 200


def test_scores_that_are_not_numbers_are_a_500(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "probabilities", lambda self, logits: logits * float("nan"))
    response = post(http, {"inputs": "sport"})
    assert response.status_code == 500
    assert response.json()["error_type"] == "internal"


def test_health_ready_and_front_page(http: TestClient) -> None:
    assert http.get("/health").json() == {"status": "alive"}
    engine = {"single": "fake", "batch": "fake"}
    assert http.get("/ready").json() == {"status": "ready", "model_version": "fake-1", "engine": engine}
    front = http.get("/").json()
    assert front["classify"]["path"] == "/v1/classify"
    assert front["labels"] == FakeEngine.labels
    assert http.get("/docs").status_code == 200


def test_before_the_start_nothing_is_ready(engine: FakeEngine) -> None:
    http = TestClient(build_api(engine, LIMITS))  # no lifespan without 'with'
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 503
    response = post(http, {"inputs": "sport"})
    assert response.status_code == 503
    assert response.json()["error_type"] == "unavailable"


def test_a_full_queue_is_a_429_and_a_slow_model_a_503() -> None:
    engine = FakeEngine()
    config = ServeConfig(max_queue=2, max_texts=256, timeout_s=0.05)
    with TestClient(build_api(engine, config)) as http:
        assert post(http, {"inputs": ["a"] * 3}).status_code == 413  # more than the queue ever holds
        engine.gate.clear()
        slow = post(http, {"inputs": "a"})
        assert slow.status_code == 503
        assert slow.headers["retry-after"] == "1"
        http.app.state.roster.stable.service.batcher._queue.reserve(2)  # type: ignore[attr-defined]
        full = post(http, {"inputs": "a"})
        assert full.status_code == 429
        assert full.headers["retry-after"] == "1"
        assert "at most 2" in full.json()["error"]
        engine.gate.set()


def test_the_openapi_document_tells_the_truth(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    operation = document["paths"]["/v1/classify"]["post"]
    documented = {int(status) for status in operation["responses"]}
    assert documented == {200} | (set(STATUS.values()) - {401, 403, 404, 405})
    assert set(MEANING) == set(STATUS)
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for body, status, _ in REFUSED:
        if status == 422 and b"NaN" not in body and b"ud" not in body and b'"top_k": 5' not in body:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(json.loads(body), schema)
    jsonschema.validate({"inputs": ["a"], "top_k": None}, schema)
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(post(http, {"inputs": "sport"}).json(), answer | {"components": document["components"]})
    headers = operation["responses"]["200"]["headers"]
    assert set(headers) <= set(post(http, {"inputs": "sport"}).headers)
