"""Drift: the window, the route and the series, around a fake engine and around a real checkpoint."""

from __future__ import annotations

import logging
import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serve_fakes import FakeEngine
from small_bert import WORDS

from pipeline.config import ServeConfig
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.reference import FILE, Reference, make
from pipeline.storage import Place
from serve.api import build_api
from serve.app import load_reference
from serve.drift import SLOTS, TOGETHER, Drift

UNKNOWN = 9  # FakeEngine's id of a word that is no label


def texts(count: int, seed: int, labels: Sequence[float] = (0.1, 0.2, 0.3, 0.4), words: int = 6) -> list[str]:
    """Up to ``words`` words that the fake engine does not know, and a label."""
    generator = np.random.default_rng(seed)
    ends = generator.choice(FakeEngine.labels, count, p=labels)
    return [" ".join(["x"] * int(generator.integers(0, words)) + [end]) for end in ends]


def answered(engine: Any, raw: list[str]) -> tuple[np.ndarray, Any, Any]:
    encoded = engine.encode(raw)
    return engine.probabilities(np.asarray(engine.logits(encoded.ids))), encoded.ids, encoded.truncated


def reference(engine: Any = None, raw: list[str] | None = None, unknown_id: int = UNKNOWN) -> Reference:
    engine = engine or FakeEngine()
    return make(engine.labels, *answered(engine, raw or texts(2_000, 1)), unknown_id)


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def rows(drift: Drift) -> int:
    return int(drift.window()["label"].sum())


@pytest.mark.parametrize("seed", range(20))
def test_the_same_kind_of_texts_is_ok_and_another_alarms(seed: int) -> None:
    drift = Drift(reference(), 3600)
    drift.add(*answered(FakeEngine(), texts(600, 100 + seed)))
    report = drift.report("v")
    assert {f.verdict for f in report.features.values()} == {"ok"}
    assert report.verdict == "ok"
    moved = Drift(reference(), 3600)
    moved.add(*answered(FakeEngine(), texts(600, 100 + seed, labels=(0.6, 0.2, 0.1, 0.1))))
    report = moved.report("v")
    assert report.features["label"].verdict == report.verdict == "alarm"
    assert report.features["tokens"].verdict == "ok"


def test_few_rows_have_no_verdict() -> None:
    drift = Drift(reference(), 3600)
    assert drift.report("v").verdict == "too few rows"
    drift.add(*answered(FakeEngine(), ["sport"] * 50))
    report = drift.report("v")
    assert report.verdict == "too few rows"
    assert report.features["label"].psi is not None
    assert report.features["label"].psi > 1
    assert report.features["label"].rows_needed is not None
    assert report.features["label"].rows_needed > 50


def test_the_window_slides() -> None:
    clock = Clock()
    drift = Drift(reference(), 600, clock)
    one = answered(FakeEngine(), ["sport"])
    for _ in range(3 * SLOTS):
        drift.add(*one)
        assert rows(drift) <= SLOTS
        clock.now += 10
    assert rows(drift) == SLOTS - 1  # the slot of now is empty yet
    clock.now += 300
    assert rows(drift) == SLOTS // 2 - 1
    clock.now += 300
    assert rows(drift) == 0
    drift.add(*one)
    clock.now += 1e7  # longer than the window, by far
    assert rows(drift) == 0
    drift.add(*one)
    assert rows(drift) == 1
    assert drift.totals()["label"].sum() == 3 * SLOTS + 2


def test_texts_that_wait_to_be_counted_belong_to_their_own_time() -> None:
    clock = Clock()
    drift = Drift(reference(), 600, clock)
    for _ in range(TOGETHER - 1):
        drift.add(*answered(FakeEngine(), ["sport"]))
    clock.now += 590
    drift.add(*answered(FakeEngine(), ["sport"]))
    assert rows(drift) == TOGETHER
    clock.now += 10
    assert rows(drift) == 1


def test_many_threads_lose_nothing() -> None:
    drift = Drift(reference(), 3600)
    one = answered(FakeEngine(), ["x sport", "world"])

    def work() -> None:
        for i in range(500):
            drift.add(*one)
            if i % 50 == 0:
                drift.report("v")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(counts.sum() == 8_000 for counts in drift.totals().values())
    assert rows(drift) == 8_000


def scraped(http: TestClient) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(s.name, *(s.labels[k] for k in sorted(s.labels))): s.value for f in families for s in f.samples}


def test_route_and_series() -> None:
    app = build_api(FakeEngine(), ServeConfig(), None, reference())
    with TestClient(app, raise_server_exceptions=False) as http:
        assert http.get("/v1/drift").json()["rows"] == 0  # the warm-up is no traffic
        raw = texts(250, 3)
        http.post("/v1/classify", json={"inputs": raw})
        http.post("/v1/classify", json={"inputs": raw[0]})
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [raw[1]]}
        assert http.post("/v2/models/broadsheet/infer", json={"inputs": [tensor]}).status_code == 200
        assert http.post("/v1/explain", json={"inputs": "x sport"}).status_code == 200
        assert http.post("/v1/classify", json={"inputs": "sport sport"}).status_code == 500
        report, series = http.get("/v1/drift").json(), scraped(http)
    assert (report["model_version"], report["scope"], report["window_s"]) == ("fake-1", "replica", 3600)
    assert (report["rows"], report["reference_rows"], report["verdict"]) == (252, 2_000, "ok")
    assert list(report["features"]) == ["label", "confidence", "tokens", "truncated", "unknown"]
    label = report["features"]["label"]
    assert [row["bin"] for row in label["bins"]] == FakeEngine.labels
    live = np.bincount([FakeEngine.labels.index(t.split()[-1]) for t in [*raw, raw[0], raw[1]]]) / 252
    assert [row["live"] for row in label["bins"]] == pytest.approx(live)
    for name, feature in report["features"].items():
        assert series[("broadsheet_drift_psi", name, "fake-1")] == pytest.approx(feature["psi"])
        assert series[("broadsheet_drift_rows_needed", name, "fake-1")] == feature["rows_needed"]
        for row in feature["bins"]:
            key = row["bin"], name, "fake-1"
            assert series[("broadsheet_drift_reference", *key)] == pytest.approx(row["reference"])
            assert series[("broadsheet_drift_bin_total", *key)] == pytest.approx(252 * row["live"])
    assert series[("broadsheet_drift_rows", "fake-1")] == 252
    assert series[("broadsheet_drift_reference_rows", "fake-1")] == 2_000


def test_without_a_reference() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        http.post("/v1/classify", json={"inputs": "sport"})
        answer = http.get("/v1/drift")
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
        assert "'broadsheet evaluate' makes it" in answer.json()["error"]
        assert "broadsheet_drift" not in http.get("/metrics").text


def test_a_reference_too_small_to_say_anything() -> None:
    small = reference(raw=texts(20, 1))
    with TestClient(build_api(FakeEngine(), ServeConfig(), None, small)) as http:
        http.post("/v1/classify", json={"inputs": ["sport"] * 200})
        report, series = http.get("/v1/drift").json(), scraped(http)
    assert report["verdict"] == "too few rows"
    assert report["features"]["label"]["rows_needed"] is None
    assert series[("broadsheet_drift_rows_needed", "label", "fake-1")] == float("inf")


@pytest.fixture
def served(bert: Path, tmp_path: Path) -> tuple[Path, Classifier]:
    """A checkpoint with a reference, as ``evaluate`` would leave it."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(bert, folder)
    classifier = Classifier.load(str(folder))
    reference(classifier, english(1_500, 1), classifier.unknown_id or 0).save(Place.of(folder))
    return folder, classifier


def english(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    words = [*WORDS["money"], *WORDS["sport"]]
    return [" ".join(generator.choices(words, k=generator.randint(3, 24))) for _ in range(count)]


def russian(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    words = ["банк", "рынок", "акции", "цена", "нефть", "матч", "гол", "команда", "тренер", "сезон"]
    return [" ".join(generator.choices(words, k=generator.randint(3, 24))) for _ in range(count)]


def test_a_real_checkpoint_sees_another_language(served: tuple[Path, Classifier]) -> None:
    folder, classifier = served
    known = load_reference(str(folder), classifier)
    assert known is not None
    with TestClient(build_api(classifier, ServeConfig(max_texts=500), None, known)) as http:
        for seed in range(2, 5):
            assert http.post("/v1/classify", json={"inputs": english(200, seed)}).status_code == 200
        same = http.get("/v1/drift").json()
        assert same["rows"] == 600
        assert {f["verdict"] for f in same["features"].values()} == {"ok"}
        for seed in range(2, 5):
            assert http.post("/v1/classify", json={"inputs": russian(200, seed)}).status_code == 200
        other = http.get("/v1/drift").json()
    assert other["verdict"] == "alarm"
    assert other["features"]["unknown"]["verdict"] == "alarm"
    assert other["features"]["unknown"]["psi"] > 1


def test_a_reference_that_does_not_fit_costs_no_answer(
    served: tuple[Path, Classifier], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, classifier = served
    monkeypatch.setattr("serve.app.log", logging.getLogger("drift"))  # Ray may have taken its own out of the tree
    with caplog.at_level(logging.INFO, "drift"):
        reference().save(Place.of(folder))  # FakeEngine's labels
        assert load_reference(str(folder), classifier) is None
        (folder / FILE).write_text("{}")
        assert load_reference(str(folder), classifier) is None
        (folder / FILE).unlink()
        assert load_reference(str(folder), classifier) is None
    said = [record.getMessage() for record in caplog.records]
    for line, part in zip(said, ["of another model", "is damaged", "'broadsheet evaluate' makes it"], strict=True):
        assert line.startswith("drift will not be measured: ")
        assert part in line
