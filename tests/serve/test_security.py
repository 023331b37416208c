"""API keys and the rate limit in front of the API: who gets in, what a refusal says, and what is never written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from pipeline.storage import Place
from serve import haproxy_config, keys, rate, security
from serve.api import build_api
from serve.errors import ErrorBody

HTML = {"accept": "text/html,*/*;q=0.8"}
ASK = {"inputs": "a sport"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.of(tmp_path / "keys.json")


@pytest.fixture
def secret(place: Place) -> str:
    return keys.add(place, "ana")


@pytest.fixture
def admin(place: Place) -> str:
    return keys.add(place, "root", "admin")


@pytest.fixture
def http(place: Place, secret: str, admin: str, tmp_path: Path) -> Iterator[TestClient]:
    config = ServeConfig(keys=str(place), feedback=str(tmp_path / "feedback"))
    with TestClient(build_api(FakeEngine(), config), raise_server_exceptions=False) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_probes_and_documents_are_open(http: TestClient) -> None:
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 200


def test_the_page_is_open_and_the_facts_are_not(http: TestClient, secret: str) -> None:
    page = http.get("/", headers=HTML)
    assert page.status_code == 200
    assert page.text.startswith("<!doctype html>")
    assert http.get("/").status_code == 401
    assert http.get("/", headers=bearer(secret)).json()["labels"] == FakeEngine.labels
    assert "sport" not in page.text + http.get("/openapi.json").text + http.get("/docs").text


CLOSED = [
    "/", "/metrics", "/v1/classify", "/v1/explain", "/v1/feedback", "/v2", "/v2/models/broadsheet", "/nowhere",
    "/v2/models/broadsheet/ready", "/v2/models/broadsheet/infer", "/health/", "/ready%0A", "/Health", "//health",
    "/health/../v1/classify", "/docs/oauth2-redirect", "/v1/classify%0A", "/openapi.json%0A",
]  # fmt: skip


def test_everything_else_is_closed(http: TestClient) -> None:
    for path in CLOSED:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
            response = http.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert ErrorBody.model_validate_json(response.content).error_type == "unauthorized"
                assert "Authorization: Bearer" in response.json()["error"]


def test_ways_to_show_a_key(http: TestClient, secret: str) -> None:
    for headers in (
        bearer(secret),
        {"authorization": f"bearer   {secret} "},
        {"x-api-key": secret},
        {"x-api-key": secret, "authorization": "Basic YTpi"},
    ):
        assert http.post("/v1/classify", json=ASK, headers=headers).status_code == 200
    wrong = [bearer(secret[:-1]), bearer(""), bearer("é"), {"authorization": secret}, {"authorization": "Basic YTpi"}]
    for headers in (*wrong, {"x-api-key": secret + "x"}, {"x-api-key": secret, **bearer("bs_other")}):
        raw = {k: v.encode("latin-1") for k, v in headers.items()}
        response = http.post("/v1/classify", json=ASK, headers=raw)
        assert response.status_code == 401
        assert secret not in response.text
    assert http.post(f"/v1/classify?key={secret}", json=ASK).status_code == 401
    response = http.post("/v1/classify", json=ASK, headers=bearer("bs_other"))
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert response.json()["error"] == "the server does not know this API key"


def test_training_data_and_figures_ask_for_an_admin(http: TestClient, secret: str, admin: str) -> None:
    item = {"text": "a text", "label": "sport"}
    for path in ("/v1/feedback", "/v1/feedback%0A", "/metrics", "/metrics%0A"):
        method = "POST" if "feedback" in path else "GET"
        response = http.request(method, path, json=item, headers=bearer(secret))
        assert response.status_code == 403
        assert response.json()["error_type"] == "forbidden"
    assert http.post("/v1/feedback", json=item, headers=bearer(admin)).json() == {"kept": 1}
    text = http.get("/metrics", headers=bearer(admin)).text
    assert 'broadsheet_requests_total{path="/v1/feedback",status="403"} 2.0' in text
    assert http.post("/v1/classify", json=ASK, headers=bearer(admin)).status_code == 200


def test_keys_come_and_go_while_it_runs(
    http: TestClient, place: Place, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = _guard(http).ring
    assert ring is not None
    monkeypatch.setattr(ring, "_every", 0.0)

    def status(secret: str) -> int:
        return int(http.post("/v1/classify", json=ASK, headers=bearer(secret)).status_code)

    other = keys.add(place, "ben")
    assert status(other) == 200
    keys.revoke(place, "ana")
    assert (status(secret), status(other)) == (401, 200)
    Path(place.uri).write_text("{")
    assert (status(secret), status(other)) == (401, 200)
    Path(place.uri).unlink()
    assert (status(secret), status(other)) == (401, 200)


def _guard(http: TestClient) -> Any:
    layer: Any = http.app.middleware_stack  # type: ignore[attr-defined]
    while not isinstance(layer, security._Guard):
        layer = layer.app
    return layer


def test_a_server_that_cannot_read_its_keys_does_not_come_up(tmp_path: Path) -> None:
    from pipeline.errors import UserError

    with pytest.raises(UserError, match="no such file of keys"):
        build_api(FakeEngine(), ServeConfig(keys=str(tmp_path / "none.json")))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(security, "RateLimit", lambda each: rate.RateLimit(each, clock=clock))
    return clock


def test_each_key_has_its_own_limit(place: Place, secret: str, clock: Clock) -> None:
    other = keys.add(place, "ben")
    config = ServeConfig(keys=str(place), rate_limit=2)
    with TestClient(build_api(FakeEngine(), config)) as http:

        def ask(secret: str) -> Any:
            return http.post("/v1/classify", json=ASK, headers=bearer(secret))

        assert [ask(secret).status_code for _ in range(3)] == [200, 200, 429]
        refused = ask(secret)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error_type"] == "overloaded"
        assert "at most 2 requests per second" in refused.json()["error"]
        assert ask(other).status_code == 200
        assert [ask("bs_wrong").status_code for _ in range(5)] == [401] * 5
        assert [http.get("/ready").status_code for _ in range(5)] == [200] * 5
        clock.now += int(refused.headers["retry-after"])
        assert ask(secret).status_code == 200


def test_retry_after_is_when_it_works(clock: Clock) -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig(rate_limit=0.3))) as http:
        assert http.post("/v1/classify", json=ASK).status_code == 200
        refused = http.post("/v1/classify", json=ASK)
        assert refused.headers["retry-after"] == "4"  # 1 / 0.3 = 3.33
        clock.now += 4
        assert http.post("/v1/classify", json=ASK).status_code == 200


def scope(client: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "client": (client, 1), "headers": list(headers)}


def test_only_our_own_proxy_is_believed() -> None:
    said = (haproxy_config.CLIENT_HEADER, b"token 10.0.0.7")
    assert security.client_address(scope("127.0.0.1", said), "token") == "10.0.0.7"
    assert security.client_address(scope("10.0.0.8", said), "other") == "10.0.0.8"
    assert security.client_address(scope("10.0.0.8", said), None) == "10.0.0.8"
    assert security.client_address(scope("10.0.0.8", (b"x-forwarded-for", b"10.0.0.9")), "token") == "10.0.0.8"
    for broken in (b"", b"token", b" 10.0.0.7", b"\xff\xff"):
        security.client_address(scope("10.0.0.8", (haproxy_config.CLIENT_HEADER, broken)), "token")


def test_one_client_has_64_bits_of_addresses() -> None:
    a, b, c = (security.client_address(scope(f"2001:db8:0:{n}"), None) for n in ("1::1", "1:ffff::2", "2::1"))
    assert a == b
    assert a != c
    assert security.client_address(scope("::ffff:10.0.0.7"), None) == "10.0.0.7"
    assert security.client_address(scope("not:an:address"), None) == "not:an:address"
    assert security.client_address({"client": None, "headers": []}, None) == ""


def test_behind_tls_a_redirect_stays_there(tmp_path: Path) -> None:
    config = ServeConfig(tls_cert=str(tmp_path / "c"), tls_key=str(tmp_path / "k"))
    with TestClient(build_api(FakeEngine(), config)) as http:
        response = http.post("/v1/classify/", json=ASK, follow_redirects=False)
        assert response.headers["location"].startswith("https://")


def test_nothing_is_in_the_way_where_nothing_is_asked_for() -> None:
    app = build_api(FakeEngine(), ServeConfig())
    assert security._Guard not in [layer.cls for layer in app.user_middleware]
    assert "securitySchemes" not in app.openapi()["components"]


def test_the_openapi_document_knows_of_keys(http: TestClient, secret: str) -> None:
    document = http.get("/openapi.json").json()
    assert document == http.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            status = http.request(method, path.replace("{name}", "broadsheet"), json={}).status_code
            assert (status == 401) == ("401" in operation["responses"]) == ("security" not in operation)
    refused = document["paths"]["/v1/classify"]["post"]["responses"]["401"]["content"]["application/json"]["schema"]
    body = http.post("/v1/classify", json=ASK).json()
    jsonschema.validate(body, refused | {"components": document["components"]})


def test_neither_texts_nor_keys_are_logged(
    http: TestClient, secret: str, admin: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: bad requests, the model, the disk, keys that nobody knows."""
    caplog.set_level(logging.DEBUG)
    mark = "zebra"
    texts = [f"{mark} sport", f"{mark} sport sport", mark * 50_000, f"{mark} \ud800"]
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    bodies += [f'{{"inputs": "{mark}'.encode(), mark.encode(), b"\xff" + mark.encode(), json.dumps({mark: 1}).encode()]
    bodies += [json.dumps({"text": t, "label": label}).encode() for t in texts for label in ("sport", mark)]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES"}
    bodies += [json.dumps({"inputs": [tensor | {"data": [text]}]}).encode() for text in texts]
    paths = ("/v1/classify", "/v1/explain", "/v1/feedback", "/v2/models/broadsheet/infer", "/nowhere")

    def failing(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("serve.feedback.write", failing)
    statuses = set()
    for shown in (secret, admin, f"bs_{mark}", ""):
        for path in paths:
            for body in bodies:
                headers = bearer(shown) | {"content-type": "application/json"}
                statuses.add(http.post(path, content=body, headers=headers).status_code)
    assert statuses == {200, 400, 401, 403, 404, 413, 422, 500, 503}
    records = [record for record in caplog.records if not record.name.startswith("httpx")]  # the client's own
    written = "".join(caplog.handler.format(record) + str(vars(record)) for record in records)
    assert "a batch of 1 texts failed" in written
    assert "the disk is full" in written
    for word in (mark, secret, admin, "Bearer"):
        assert word not in written
