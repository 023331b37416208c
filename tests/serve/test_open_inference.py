"""The Open Inference Protocol: metadata, health, inference, and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve.api import build_api

LIMITS = ServeConfig(max_texts=5, max_text_chars=1_000, max_body_bytes=30_000, timeout_s=20)
MODEL = "/v2/models/broadsheet"


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with TestClient(build_api(FakeEngine(), LIMITS), raise_server_exceptions=False) as client:
        yield client


def tensor(*texts: Any, **more: Any) -> dict[str, Any]:
    one = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return {"inputs": [one | more]}


def infer(http: TestClient, body: Any, path: str = f"{MODEL}/infer") -> Any:
    return http.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode())


def test_server_and_model_metadata(http: TestClient) -> None:
    assert http.get("/v2").json().keys() == {"name", "version", "extensions"}
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    for path in (MODEL, f"{MODEL}/versions/fake-1"):
        got = http.get(path).json()
        assert (got["name"], got["versions"]) == ("broadsheet", ["fake-1"])
        assert got["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert [(o["name"], o["datatype"], o["shape"]) for o in got["outputs"]] == [
            ("label", "BYTES", [-1]),
            ("probabilities", "FP32", [-1, 4]),
        ]
        assert json.loads(got["outputs"][1]["parameters"]["labels"]) == FakeEngine.labels
        assert http.get(f"{path}/ready").json() == {"name": "broadsheet", "ready": True}


def test_inference_agrees_with_classify(http: TestClient) -> None:
    texts = ["x world", "sport", "", "芯片 science"]
    response = infer(http, tensor(*texts) | {"id": "a-1"})
    got = response.json()
    assert response.status_code == 200
    assert (got["model_name"], got["model_version"], got["id"]) == ("broadsheet", "fake-1", "a-1")
    assert got["parameters"].keys() == {"truncated", "by_linear", "queue_ms", "tokenize_ms", "inference_ms"}
    label, probabilities = got["outputs"]
    assert (label["datatype"], label["shape"]) == ("BYTES", [4])
    assert label["data"] == ["world", "sport", "business", "science"]
    rows = np.reshape(probabilities["data"], probabilities["shape"])
    for row, ranked in zip(rows, http.post("/v1/classify", json={"inputs": texts}).json(), strict=True):
        assert {r["label"]: r["score"] for r in ranked} == dict(zip(FakeEngine.labels, row, strict=True))
    assert response.headers["x-model-version"] == "fake-1"


def test_shapes_outputs_and_parameters(http: TestClient) -> None:
    for data in (["sport", "world"], [["sport"], ["world"]]):
        body = tensor(shape=[2, 1], data=data) | {"outputs": [{"name": "label", "parameters": {"binary_data": False}}]}
        (label,) = infer(http, body).json()["outputs"]
        assert label["data"] == ["sport", "world"]
    long = tensor("a " * 20)
    assert infer(http, long).json()["parameters"]["truncated"] == 1
    refused = infer(http, long | {"parameters": {"truncation": "error"}})
    assert refused.status_code == 422
    assert "20 tokens" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "key 'inputs'"),
        ({}, 422, "'inputs' must be a list of one tensor, named 'text'"),
        ({"inputs": []}, 422, "list of one tensor"),
        ({"inputs": ["a"]}, 422, "list of one tensor"),
        ({"inputs": tensor("a")["inputs"] * 2}, 422, "list of one tensor"),
        (tensor("a", name="image"), 422, "inputs[0].name must be 'text'"),
        (tensor("a", datatype="FP32"), 422, "datatype must be 'BYTES'"),
        (tensor("a", datatype=["BYTES"]), 422, "datatype must be 'BYTES'"),
        (tensor(data="a"), 422, "data must be a list of texts"),
        (tensor(data=None, parameters={"binary_data_size": 9}), 422, "binary_data=False"),
        (tensor(), 422, "data is empty"),
        (tensor("a", 7), 422, "inputs[0].data[1] must be a text, not a number"),
        (tensor("a", ["b"]), 422, "inputs[0].data[1] must be a text, not a list"),
        (tensor("a", shape=[2]), 422, "shape must be [1] or [1, 1] for these data"),
        (tensor("a", shape=[True]), 422, "shape must be"),
        (tensor("a", shape=None), 422, "shape must be"),
        (tensor("a", shape=[[1]]), 422, "shape must be"),
        (tensor("a") | {"id": 7}, 422, "'id' must be a text"),
        (tensor("a") | {"id": "x" * 257}, 422, "at most 256"),
        (tensor("a") | {"id": "\ud800"}, 422, "'id' holds a lone surrogate"),
        (tensor("a\udfff"), 422, "inputs[0].data[0] holds a lone surrogate"),
        (tensor("a") | {"outputs": [{"name": "logits"}]}, 422, "'label' or 'probabilities'"),
        (tensor("a") | {"outputs": "label"}, 422, "'outputs' must be"),
        (tensor("a") | {"outputs": [{"name": ["label"]}]}, 422, "'outputs' must be"),
        (tensor("a") | {"parameters": []}, 200, ""),
        (tensor("a") | {"parameters": [1]}, 422, "'parameters' must be an object"),
        (tensor("a") | {"parameters": {"truncation": ["x"]}}, 422, "'truncation' 'cut' or 'error'"),
        (tensor(*"abcdef"), 413, "6 texts in one request; at most 5"),
        (tensor("a" * 1_001), 413, "inputs[0].data[0] has 1001 characters"),
        (tensor("a" * 40_000), 413, "larger than 30000 bytes"),
        (tensor("sport sport"), 500, "failed on the server"),
    ],
)
def test_bad_requests(http: TestClient, body: Any, status: int, sentence: str) -> None:
    response = infer(http, body)
    assert response.status_code == status
    if status != 200:
        assert set(response.json()) == {"error", "error_type"}
        assert sentence in response.json()["error"]


def test_unknown_models_and_versions(http: TestClient) -> None:
    for path in ("/v2/models/other", "/v2/models/other/ready", f"{MODEL}/versions/9", f"{MODEL}/versions/9/ready"):
        response = http.get(path)
        assert response.status_code == 404
        assert "there is no" in response.json()["error"]
    response = infer(http, tensor("a"), "/v2/models/%ff%0a/infer")
    assert response.status_code == 404
    assert "this server has 'broadsheet'" in response.json()["error"]


def test_not_ready_and_overloaded() -> None:
    engine = FakeEngine()
    http = TestClient(build_api(engine, LIMITS))
    assert http.get("/v2/health/live").status_code == 200
    assert [http.get(p).status_code for p in ("/v2/health/ready", f"{MODEL}/ready")] == [503, 503]
    assert infer(http, tensor("a")).status_code == 503
    with TestClient(build_api(engine, ServeConfig(max_queue=2, timeout_s=0.05))) as http:
        http.app.state.roster.stable.service.batcher._queue.reserve(2)  # type: ignore[attr-defined]
        full = infer(http, tensor("a"))
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")


def test_the_documented_schema(http: TestClient) -> None:
    operation = http.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for body in (tensor("a"), *schema["examples"]):
        jsonschema.validate(body, schema)
        assert infer(http, body).status_code == 200
