"""Two models behind one endpoint: who answers what, in which order, and what happens to a cascade that is broken."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serve_fakes import FakeEngine
from small_bert import LABELS, WORDS

from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError
from pipeline.evaluate import cascade as policy
from pipeline.evaluate import cascade_folder, reference
from pipeline.evaluate.baseline import SHARED, Baseline
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place
from serve import stage
from serve.api import build_app
from serve.app import load_model
from serve.cascade import Cascade, lacking
from serve.release_stage import _checked
from serve.releases import Release
from serve.roster import Model, Roster
from serve.service import Service

CONFIG = ServeConfig(timeout_s=20, cascade=True)


class Linear(FakeEngine):
    """Sure of texts whose last word is 'sure', and says 'world' of all."""

    def all_logits(self, ids: Sequence[np.ndarray], batch_tokens: int, large: bool = False) -> np.ndarray:
        out = np.zeros((len(ids), len(self.labels)), np.float32)
        out[:, self.labels.index("world")] = [9.0 if len(row) > 1 and row[-2] == 9 else 0.5 for row in ids]
        return out


def app_of(engine: FakeEngine, linear: Any) -> TestClient:
    model = Model(engine, cascade=Cascade(linear, 0.9, shares_tokens=True))
    return TestClient(build_app(Roster(Release("given"), model, CONFIG), CONFIG), raise_server_exceptions=False)


def test_answers_keep_their_order_and_the_header_says_who_answered() -> None:
    engine = FakeEngine()
    with app_of(engine, Linear()) as http:
        warm = len(engine.batches)
        assert warm == 1  # the start sends a text through the network, whatever the linear model makes of it
        texts = ["sport", "x sport", "science", "y business", "z sport"]
        response = http.post("/v1/classify", json={"inputs": texts, "top_k": 1})
        assert [row[0]["label"] for row in response.json()] == ["sport", "world", "science", "world", "world"]
        assert response.headers["x-broadsheet-linear"] == "3"
        assert sum(len(batch) for batch in engine.batches[warm:]) == 2
        alone = http.post("/v1/classify", json={"inputs": "x sport"})
        assert alone.headers["x-broadsheet-linear"] == "1"
        assert float(alone.headers["x-queue-ms"]) == 0
        assert sum(row["score"] for row in alone.json()[0]) == pytest.approx(1)
        assert http.post("/v1/classify", json={"inputs": "sport"}).headers["x-broadsheet-linear"] == "0"
        body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["x sport", "sport"]}]}
        answer = http.post("/v2/models/broadsheet/infer", json=body).json()
        assert answer["outputs"][0]["data"] == ["world", "sport"]
        assert answer["parameters"]["by_linear"] == 1
        explained = http.post("/v1/explain", json={"inputs": "x sport"})
        assert explained.json()["label"] == "sport"  # of the network
        assert explained.headers["x-broadsheet-linear"] == "0"
        families = text_string_to_metric_families(http.get("/metrics").text)
        found = {s.labels["by"]: s.value for f in families for s in f.samples if s.name.endswith("cascade_texts_total")}
        assert found == {"linear": 5, "network": 4}
        assert http.get("/").json()["cascade"] == {"confidence": 0.9}
        assert "x-broadsheet-linear" in http.get("/openapi.json").text


def test_a_text_that_may_not_be_cut_is_refused_all_the_same() -> None:
    with app_of(FakeEngine(), Linear()) as http:
        refused = http.post("/v1/classify", json={"inputs": "x " * 20, "truncation": "error"})
        assert refused.status_code == 422


class Broken(Linear):
    """What a linear model may do wrong."""

    def __init__(self, value: float | None) -> None:
        super().__init__()
        self.value = value

    def all_logits(self, ids: Sequence[np.ndarray], batch_tokens: int, large: bool = False) -> np.ndarray:
        if self.value is None:
            raise RuntimeError("no weights")
        return np.full((len(ids), len(self.labels)), self.value)


def test_scores_that_are_not_numbers_go_to_the_network_and_a_failure_is_a_500() -> None:
    with app_of(FakeEngine(), Broken(float("nan"))) as http:
        response = http.post("/v1/classify", json={"inputs": ["x sport"], "top_k": 1})
        assert response.json()[0][0]["label"] == "sport"
        assert response.headers["x-broadsheet-linear"] == "0"
    with app_of(FakeEngine(), Broken(None)) as http:
        response = http.post("/v1/classify", json={"inputs": "x sport"})
        assert (response.status_code, response.json()["error_type"]) == (500, "internal")
        assert "weights" not in response.text


def test_what_is_settled_never_waits_for_the_network() -> None:
    async def inside() -> None:
        engine = FakeEngine()
        service = Service(engine, CONFIG, cascade=Cascade(Linear(), 0.9, shares_tokens=False))
        await service.start()
        engine.gate.clear()
        waiting = asyncio.create_task(service.classify(["sport"]))
        await asyncio.sleep(0.05)
        done = await service.classify(["x sport", "y sport"])
        assert (done.by_linear, done.queue_s) == (2, 0.0)
        assert not waiting.done()
        long = await service.classify(["x " * 1_500])  # in the tokenizer's thread
        assert long.by_linear == 1
        engine.gate.set()
        assert (await waiting).by_linear == 0
        assert service.batcher.waiting == 0
        service.stop()

    asyncio.run(inside())


def test_what_is_settled_gives_its_places_back_at_once() -> None:
    async def inside() -> None:
        engine = FakeEngine()
        config = CONFIG.model_copy(update={"max_queue": 4})
        service = Service(engine, config, cascade=Cascade(Linear(), 0.9, shares_tokens=False))
        await service.start()
        engine.gate.clear()
        first = asyncio.create_task(service.classify(["sport", "x sport", "y sport", "z sport"]))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(service.classify(["sport", "business", "science"]))
        await asyncio.sleep(0.05)
        assert not second.done()
        engine.gate.set()
        assert [(await task).by_linear for task in (first, second)] == [3, 0]
        with service.batcher.room(4):
            pass
        service.stop()

    asyncio.run(inside())


def texts_and_labels(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % len(LABELS)
    return [" ".join(generator.choice(WORDS[LABELS[i]], generator.integers(3, 9))) for i in labels], labels


@pytest.fixture(scope="module")
def made(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with golden rows and a cascade, as evaluation leaves them."""
    from pipeline.data.prepared import Tokens
    from pipeline.data.tokenize import special_ids
    from pipeline.train import linear

    where = tmp_path_factory.mktemp("cascade") / "checkpoint"
    shutil.copytree(bert, where)
    network = Classifier.load(str(where))

    def tokens(texts: list[str], labels: np.ndarray) -> Tokens:
        ids = network.encode(texts).ids
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
        return Tokens(np.concatenate(ids), offsets, labels)

    model = linear.fit(tokens(*texts_and_labels(240, 1)), None, LABELS, special_ids(where), 0, 2, 17).model
    texts, labels = texts_and_labels(600, 2)
    logits = network.all_logits(network.encode(texts).ids, 2_048)
    Golden(texts, labels, logits).save(Place.of(where))
    first = linear.logits(model, tokens(texts, labels)).astype(np.float64)
    files = {name: (where / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    base = Baseline({"tokens": SHARED}, first, None, model, files, network.max_tokens)
    pair = policy.Both(labels, first, network.probabilities(logits))
    record = policy.judge(network.version, base, pair, None, range(32))
    assert record.threshold is not None, record.reason
    encoded = network.encode(texts)
    together, _ = pair.together(record.temperature, record.threshold)
    drift = reference.make(LABELS, together, encoded.ids, encoded.truncated, network.unknown_id)
    cascade_folder.save(Place.of(where), record, base, network.card, drift)
    return where


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    where = tmp_path / "checkpoint"
    shutil.copytree(made, where)
    return where


SETTINGS = ServeConfig(cascade=True, engine="torch")


def loaded(folder: Path, settings: ServeConfig = SETTINGS) -> Model:
    return load_model(Release(str(folder)), settings, measure=False)


def test_saved_and_loaded_again(made: Path) -> None:
    model = loaded(made)
    assert model.cascade is not None
    record = cascade_folder.read(Place.of(made))
    assert record is not None
    assert model.cascade.threshold == record.threshold
    texts, labels = texts_and_labels(200, 3)
    settled = model.cascade.settle(texts, model.engine.encode(texts))
    assert (settled.probabilities.argmax(1) == labels)[settled.sure].mean() > 0.9
    alone = Classifier.load(str(made / cascade_folder.FOLDER))  # a checkpoint like any other
    np.testing.assert_allclose(
        alone.probabilities(alone.all_logits(alone.encode(texts).ids, 512)), settled.probabilities, atol=1e-5
    )
    own = Cascade(model.cascade.linear, model.cascade.threshold, shares_tokens=False)
    np.testing.assert_allclose(
        own.settle(texts, model.engine.encode(texts)).probabilities, settled.probabilities, atol=1e-6
    )
    assert model.reference == reference.Reference.load(Place.of(made / cascade_folder.FOLDER))
    assert loaded(made, ServeConfig(engine="torch")).cascade is None


def test_a_damaged_or_foreign_cascade_takes_no_traffic(folder: Path) -> None:
    where = folder / cascade_folder.FOLDER
    weights = (where / "model.safetensors").read_bytes()
    (where / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    for refused in (lambda: loaded(folder), lambda: lacking(Place.of(folder))):
        with pytest.raises(
            UserError, match=r"cascade is damaged \(model.safetensors has other bytes.*delete that folder"
        ):
            refused()
    assert loaded(folder, ServeConfig(engine="torch")).cascade is None  # nobody asked for it
    (where / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        loaded(folder)
    (where / cascade_folder.FILE).write_text('{"format": 1, "network": "x"}')
    with pytest.raises(UserError, match=r"cascade.json is damaged \(the file: it has either a threshold or a reason"):
        loaded(folder)


def resealed(folder: Path, **changes: Any) -> None:
    from pipeline.train import checkpoint

    where = folder / cascade_folder.FOLDER
    content = json.loads((where / cascade_folder.FILE).read_text()) | changes
    (where / cascade_folder.FILE).write_text(json.dumps(content))
    (where / checkpoint.SEAL).write_text(checkpoint.seal(where, {}))


def test_the_linear_model_must_answer_golden_rows_as_it_did(folder: Path) -> None:
    record = cascade_folder.read(Place.of(folder))
    assert record is not None
    resealed(folder, golden=(-np.array(record.golden)).tolist())
    with pytest.raises(UserError, match=r"cascade may not take traffic: it answers \d+ of 32 golden rows with another"):
        loaded(folder)
    resealed(folder, golden=[list(row) for row in record.golden], network="other")
    with pytest.raises(UserError, match="cascade is of another model"):
        loaded(folder)
    resealed(folder, network=record.network)
    (folder / "golden.parquet").unlink()  # deleted before publishing: nothing to check by
    assert loaded(folder).cascade is not None


def test_a_checkpoint_without_one_is_refused_where_a_person_asks_for_it(
    bert: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lacking(Place.of(folder)) is None
    assert loaded(bert).cascade is None  # a replica serves on with the network; its log says so
    monkeypatch.setattr(stage, "before_connecting", lambda *_, **__: None)
    config = Config().updated({"serve.cascade": True})
    never = re.escape(f"serve.cascade is on, and {bert} has no cascade: run 'broadsheet evaluate' on it; or leave")
    with pytest.raises(UserError, match=never):
        stage.serve(config, str(bert), None)
    record = policy.Record(network="v", reason="the linear model is too weak")
    cascade_folder.save(Place.of(folder), record, None, {}, None)
    with pytest.raises(UserError, match=r"has no cascade: the linear model is too weak; or leave serve\.cascade off"):
        stage.serve(config, str(folder), None)
    state = SimpleNamespace(config=SETTINGS, reports={})
    with pytest.raises(UserError, match=r"the endpoint serves cascades .* too weak; or say --unchecked"):
        _checked(str(folder), state, False, lambda _: None)  # type: ignore[arg-type, return-value]
