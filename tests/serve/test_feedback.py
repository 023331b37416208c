"""``/v1/feedback``: what is refused, what is kept, and that ``prepare`` reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from preparing import prepared
from serve_fakes import FakeEngine

from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError
from pipeline.storage import Place
from serve import feedback
from serve.api import build_api
from serve.app import application
from serve.errors import Refused
from serve.releases import Release

TEXT = "The team won the cup"
GOOD = {"text": TEXT, "label": "sport", "predicted": "world", "model_version": "fake-1", "note": "a headline"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def http(folder: Path) -> Iterator[TestClient]:
    config = ServeConfig(feedback=str(folder), max_texts=3, max_text_chars=100, max_body_bytes=10_000)
    with TestClient(build_api(FakeEngine(), config), raise_server_exceptions=False) as client:
        yield client


def send(http: TestClient, body: Any, kind: str = "application/json; charset=utf-8") -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post("/v1/feedback", content=data, headers={"content-type": kind})


def test_one_and_several_are_kept(http: TestClient, folder: Path) -> None:
    assert send(http, GOOD).json() == {"kept": 1}
    items = [{"text": "芯片 &\u2028\x00", "label": "science"}, {"text": "oil", "label": "business", "note": None}]
    assert send(http, {"items": items}).json() == {"kept": 2}
    files = sorted(folder.iterdir())
    assert len(files) == 2
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    (first,) = [row for row in rows if row["text"] == TEXT]
    assert {k: first[k] for k in GOOD} == GOOD
    assert first["received"].utcoffset().total_seconds() == 0
    assert {row["text"] for row in rows} == {TEXT, *(item["text"] for item in items)}
    assert http.get("/").json()["feedback"] is True
    assert "broadsheet_feedback_rows_total 3.0" in http.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "not a list"),
        ({}, 422, "the field 'text' is missing"),
        ({"text": "a"}, 422, "the field 'label' is missing"),
        ({"text": " \n", "label": "sport"}, 422, "'text' is empty"),
        ({"text": 1, "label": "sport"}, 422, "'text' must be a text, not a number"),
        ({"text": "a", "label": None}, 422, "'label' must be a text, not null"),
        ({"text": "a", "label": "cooking"}, 422, "'label' is 'cooking', which the model does not have: 'business', 's"),
        ({"text": "a", "label": "x" * 5_000}, 422, "xx…', which"),
        (b'{"text": "a", "label": "\\ud800"}', 422, "'label' holds a lone surrogate"),
        (b'{"text": "\\ud800", "label": "sport"}', 422, "'text' holds a lone surrogate"),
        (b'{"text": "a", "label": "sport", "note": "\\ud800"}', 422, "'note' holds a lone surrogate"),
        ({"text": "a", "label": "sport", "note": "x" * 2_001}, 422, "'note' has 2001 characters; at most 2000"),
        ({"text": "a", "label": "sport", "truth": 1}, 422, "unknown field 'truth'; the fields are 'text', 'label', "),
        ({"text": "a" * 101, "label": "sport"}, 413, "'text' has 101 characters"),
        ({"items": GOOD}, 422, "'items' must be a list of objects, not an object"),
        ({"items": []}, 422, "empty list"),
        ({"items": [GOOD], "text": "a"}, 422, "not both"),
        ({"items": [GOOD, 7]}, 422, "items[1] must be an object, not a number"),
        ({"items": [GOOD, {"text": "a"}]}, 422, "items[1]: the field 'label' is missing"),
        ({"items": [GOOD] * 4}, 413, "4 texts in one request; at most 3"),
        ({"items": [GOOD | {"text": "x" * 20_000}]}, 413, "larger than 10000 bytes"),
    ],
)
def test_what_is_refused_is_not_kept(http: TestClient, folder: Path, body: Any, status: int, sentence: str) -> None:
    response = send(http, body)
    assert response.status_code == status
    assert set(response.json()) == {"error", "error_type"}
    assert sentence in response.json()["error"]
    assert not folder.exists()


def test_a_form_of_another_site_is_refused(http: TestClient, folder: Path) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = send(http, GOOD, kind)
        assert response.status_code == 400
        assert "content-type: application/json" in response.json()["error"]
    assert not folder.exists()


def test_it_is_off_unless_asked_for() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        response = send(http, GOOD)
        assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
        assert "--set serve.feedback=FOLDER" in response.json()["error"]
        assert http.get("/").json()["feedback"] is False


def test_a_folder_that_cannot_be_written(http: TestClient, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    response = send(http, GOOD)
    assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
    assert "is not kept" in response.json()["error"]
    assert str(folder) not in response.text
    with pytest.raises(UserError, match=r"serve\.feedback: cannot write to .*choose another folder"):
        feedback.prepare(str(folder))
    with pytest.raises(UserError, match=r"serve\.feedback: .*names no bucket"):
        feedback.prepare("s3://")
    folder.unlink()
    assert send(http, GOOD).status_code == 200
    assert feedback.prepare(str(folder)) == Place.of(folder)
    assert len(list(folder.iterdir())) == 1  # the trial left nothing


def test_many_at_once_share_files_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside() -> None:
        log = feedback.FeedbackLog(Place.of(tmp_path))
        rows = [{"text": str(i), "label": "sport"} for i in range(100)]
        tasks = [asyncio.create_task(log.append([row])) for row in rows]
        await asyncio.sleep(0)
        tasks[50].cancel()  # a client that hangs up: its row is kept all the same
        await asyncio.gather(*tasks, return_exceptions=True)
        await log.close()
        monkeypatch.setattr(feedback, "MOST_CHARS", 10)
        some = asyncio.create_task(log.append([{"text": "x" * 50, "label": "sport"}]))  # one alone is always let in
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="too much feedback"):
            await log.append([{"text": "x", "label": "sport"}])
        await some

    asyncio.run(inside())
    kept = [text for file in tmp_path.iterdir() for text in pq.read_table(file)["text"].to_pylist()]
    assert sorted(kept) == sorted([*(str(i) for i in range(100)), "x" * 50])
    assert len(list(tmp_path.iterdir())) < 10


def test_prepare_reads_what_was_kept(http: TestClient, folder: Path, tmp_path: Path) -> None:
    for i in range(10):
        items = [{"text": f"{word} number {i} of many", "label": label, "note": None if i % 2 else "x"}
                 for word, label in (("goal", "sport"), ("bank", "business"))]  # fmt: skip
        assert send(http, {"items": items}).status_code == 200
    data = prepared(tmp_path / "runs", {"train": f"{folder}/*.parquet"}, "data.text=text", "data.label=label")
    assert data.labels == ["business", "sport"]
    assert sum(data.rows(split) for split in ("train", "validation", "test")) == 20


def test_a_relative_folder_is_made_absolute_where_the_command_runs() -> None:
    settings = Config().updated({"serve.feedback": "kept"}).serve
    bound = application(Release("/x"), settings, "desk")._bound_deployment
    assert bound.init_args[1].feedback == str(Path("kept").absolute())


def test_the_documented_schema(http: TestClient) -> None:
    operation = http.get("/openapi.json").json()["paths"]["/v1/feedback"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(GOOD, schema)
    jsonschema.validate({"items": [GOOD]}, schema)
    for bad in ({"text": "a"}, {"items": []}, {"items": [{}]}, {"text": "a", "label": "b", "truth": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
