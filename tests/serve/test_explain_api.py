"""``/v1/explain``: around a fake engine, and with a real network against the offline path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from pipeline.evaluate import evidence, explain
from pipeline.evaluate.evidence import Evidence
from pipeline.storage import Place
from serve.api import build_api
from serve.app import load_engine, load_index
from serve.errors import Refused
from serve.explain import AT_ONCE, WORDS, Explainer, Gone, chunks
from serve.service import Service
from serve.worker import ModelFailed, NotReady

LIMITS = ServeConfig(max_text_chars=200_000, max_body_bytes=300_000, timeout_s=20)


def index_of(labels: int, width: int) -> Evidence:
    """One row per label, each in a direction of its own."""
    return Evidence(
        [f"f.csv:{i}" for i in range(labels)], [f"row {i}" for i in range(labels)], np.arange(labels),
        np.zeros(width, np.float32), np.eye(labels, width, dtype=np.float32),
    )  # fmt: skip


def ask(http: TestClient, body: Any) -> Any:
    return http.post("/v1/explain", content=body if isinstance(body, bytes) else json.dumps(body).encode())


def test_words_effects_and_nearest_rows() -> None:
    with TestClient(build_api(FakeEngine(), LIMITS, index_of(4, 4))) as http:
        response = ask(http, {"inputs": "a word about sport"})
        got = response.json()
        assert response.status_code == 200
        assert got["label"] == "sport"
        assert [w["word"] for w in got["words"]] == ["a", "word", "about", "sport"]
        assert [got["text"][w["start"] : w["end"]] for w in got["words"]] == ["a", "word", "about", "sport"]
        effects = [w["effect"] for w in got["words"]]
        assert effects[:3] == [0, 0, 0]
        assert effects[3] == pytest.approx(got["probability"] - 1 / (np.exp(3) + 3))
        assert got["nearest"][0] == {"id": "f.csv:2", "label": "sport", "text": "row 2", "similarity": 1.0}
        assert len(got["nearest"]) == evidence.NEAREST
        assert response.headers["x-model-version"] == "fake-1"
        assert set(FakeEngine.labels) >= {row["label"] for row in got["nearest"]}


def test_it_runs_in_the_models_thread_in_batches_and_counts_no_texts() -> None:
    engine = FakeEngine()
    with TestClient(build_api(engine, ServeConfig(batch_tokens=64), index_of(4, 4))) as http:
        engine.batches.clear()
        assert ask(http, {"inputs": "word " * 15 + "sport"}).status_code == 200
        assert engine.threads == {"model"}
        assert sum(len(b) for b in engine.batches) == 17 + 1  # the text, without each word, and once for its state
        assert all(len(b) * max(b) <= 64 for b in engine.batches)
        assert 'broadsheet_texts_total{version="fake-1"} 0.0' in http.get("/metrics").text


def test_texts_without_words_and_very_long_ones() -> None:
    engine = FakeEngine()
    engine.max_tokens = 10_000
    with TestClient(build_api(engine, LIMITS)) as http:
        for text in ("", "  \n "):
            got = ask(http, {"inputs": text}).json()
            assert (got["words"], got["nearest"]) == ([], [])
        got = ask(http, {"inputs": "word " * 9_999 + "sport"}).json()
        assert len(got["words"]) == WORDS
        assert got["label"] == "sport"
        assert got["words"][-1]["effect"] > 0.5


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"[]", 400, "JSON object with the key 'inputs', not a list"),
        ({}, 422, "'inputs' is missing"),
        ({"inputs": ["a"]}, 422, "'inputs' must be one text"),
        ({"inputs": 7}, 422, "'inputs' must be a text, not a number"),
        ({"inputs": None}, 422, "not null"),
        ({"inputs": "a", "top_k": 1}, 422, "unknown field 'top_k'; the only field is 'inputs'"),
        (b'{"inputs": "\\udc00"}', 422, "lone surrogate"),
        ({"inputs": "b" * 200_001}, 413, "inputs has 200001 characters"),
        ({"inputs": "b" * 400_000}, 413, "larger than 300000 bytes"),
        ({"inputs": "sport sport"}, 500, "failed on the server"),
    ],
)
def test_bad_requests(body: Any, status: int, sentence: str) -> None:
    with TestClient(build_api(FakeEngine(), LIMITS), raise_server_exceptions=False) as http:
        response = ask(http, body)
        assert response.status_code == status
        assert set(response.json()) == {"error", "error_type"}
        assert sentence in response.json()["error"]


def run(engine: FakeEngine, body: Callable[[Service, Explainer], Any], **settings: Any) -> None:
    async def inside() -> None:
        service = Service(engine, ServeConfig(**{"timeout_s": 20, **settings}))
        explainer = Explainer(service, index_of(4, 4))
        with pytest.raises(NotReady):
            await explainer.explain("a", there)
        await service.start()
        try:
            await body(service, explainer)
        finally:
            engine.gate.set()
            service.stop()

    asyncio.run(inside())


async def there() -> bool:
    return False


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_text_to_classify_overtakes_a_long_explanation() -> None:
    engine = FakeEngine()

    async def body(service: Service, explainer: Explainer) -> None:
        engine.gate.clear()
        start = engine.entered
        long = asyncio.create_task(explainer.explain("word " * 16, there))
        await until(lambda: engine.entered == start + 1)
        short = asyncio.create_task(service.classify(["sport"]))
        await until(lambda: service.batcher.waiting == 1)
        engine.gate.set()
        await short
        assert not long.done()
        await long

    run(engine, body, batch_tokens=64)


def test_so_many_at_once_and_then_429() -> None:
    engine = FakeEngine()

    async def body(service: Service, explainer: Explainer) -> None:
        engine.gate.clear()
        some = [asyncio.create_task(explainer.explain("a sport", there)) for _ in range(AT_ONCE)]
        await until(lambda: explainer._running == AT_ONCE)
        with pytest.raises(Refused, match="no more are at once"):
            await explainer.explain("a sport", there)
        engine.gate.set()
        await asyncio.gather(*some)
        await explainer.explain("a sport", there)

    run(engine, body)


def test_nobody_waits_for_the_answer_any_more() -> None:
    engine = FakeEngine()

    async def hung_up() -> bool:
        return True

    async def body(service: Service, explainer: Explainer) -> None:
        before = engine.entered
        with pytest.raises(Gone):
            await explainer.explain("word " * 16, hung_up)
        assert engine.entered == before + 1

    run(engine, body, batch_tokens=64)


def test_a_call_that_fails_does_not_stop_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    async def body(service: Service, explainer: Explainer) -> None:
        monkeypatch.setattr(engine, "with_states", lambda ids, tokens: 1 / 0)
        with pytest.raises(ModelFailed, match="ZeroDivisionError"):
            await explainer.explain("sport", there)
        assert (await service.classify(["sport"])).probabilities.shape == (1, 4)

    run(engine, body)


def test_chunks() -> None:
    assert list(chunks([], 64, 9)) == []
    assert list(chunks([500], 64, 9)) == [slice(0, 1)]
    cut = [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 6)]
    assert list(chunks([30, 30, 33, 32, 500, 1], 64, 9)) == cut
    assert list(chunks([1] * 7, 64, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_a_real_network_gives_what_the_offline_path_gives(bert: Path) -> None:
    engine: Any = load_engine(str(bert), ServeConfig())
    assert load_index(str(bert), engine) is None  # a checkpoint without an index is served all the same
    text = "The bank's  profit & the 芯片 market: goal! " * 3
    wanted = explain.explain(engine, text)
    with TestClient(build_api(engine, ServeConfig())) as http:
        got = ask(http, {"inputs": text}).json()
    assert (got["label"], got["text"], got["nearest"]) == (wanted.label, wanted.text, [])
    assert got["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    assert [w["word"] for w in got["words"]] == [w.word for w in wanted.words]
    assert [w["effect"] for w in got["words"]] == pytest.approx([w.effect for w in wanted.words], abs=1e-5)


def test_an_index_is_used_where_it_fits_the_model(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    engine: Any = load_engine(str(tmp_path), ServeConfig())
    index_of(3, 32).save(Place.of(tmp_path))
    index = load_index(str(tmp_path), engine)
    assert index is not None
    with TestClient(build_api(engine, ServeConfig(), index)) as http:
        got = ask(http, {"inputs": "the bank and the market"}).json()["nearest"]
    assert got == evidence.nearest(engine, index, ["the bank and the market"], evidence.NEAREST)[0]
    for other in (index_of(4, 32), index_of(3, 31)):  # a label too many, another width
        other.save(Place.of(tmp_path))
        assert load_index(str(tmp_path), engine) is None
    (tmp_path / evidence.FILE).write_bytes(b"PAR1")
    assert load_index(str(tmp_path), engine) is None
