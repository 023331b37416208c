"""Engines measured, kept with the checkpoint, and loaded again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_bert import LABELS, WORDS

from pipeline.config import ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place
from serve.engine import export, load, runtimes
from serve.engine.choice import Choice, Measured

ROWS = 240


@pytest.fixture
def folder(bert: Path, bert_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with golden rows."""
    monkeypatch.setattr(export.onnx_file, "write", lambda _, file: shutil.copy(bert_onnx, file))
    where = tmp_path / "checkpoint"
    shutil.copytree(bert, where)
    classifier = Classifier.load(str(where))
    generator = np.random.default_rng(3)
    words = [w for label in LABELS for w in WORDS[label]]
    texts = [" ".join(generator.choice(words, generator.integers(1, 12))) for _ in range(ROWS)]
    logits = classifier.all_logits(classifier.encode(texts).ids, 1024)
    Golden(texts, logits.argmax(1).astype(np.int64), logits).save(Place.of(where))
    return where


@pytest.fixture
def fast_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network is no faster in 8 bits; what follows from figures is tested with figures."""

    def measured(classifier: Any, golden: Golden, made: dict[str, Any], *_: Any) -> list[Measured]:
        assert runtimes.TORCH_INT8 in made
        return [Measured("torch", 9, 9, 1, 0), Measured("torch-int8", 1, 99, 1, 0), Measured("onnx", 1.5, 120, 1, 0)]

    monkeypatch.setattr(export, "measure", measured)


def test_measuring_runs_every_engine_on_the_same_rows(folder: Path) -> None:
    torch.set_num_threads(1)
    classifier = Classifier.load(str(folder))
    golden = Golden.load(Place.of(folder))
    assert golden is not None
    sizes: list[int] = []

    def wrong(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        sizes.append(len(ids))
        return -classifier.as_evaluated(ids, mask)

    def broken(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        raise RuntimeError("no kernel\nand more")

    found = {m.name: m for m in export.measure(classifier, golden, {"wrong": wrong, "broken": broken}, 512)}
    assert list(found) == ["torch", "wrong", "broken"]
    assert found["torch"].agreement == 1.0
    assert found["torch"].accuracy_loss == 0.0
    assert found["torch"].rows_per_s > 0 < found["torch"].single_ms
    assert found["wrong"].agreement < 0.5 < found["wrong"].accuracy_loss
    assert found["broken"].failed == "cannot run: no kernel"
    assert (
        sum(s for s in sizes if s > 1) >= ROWS - 1 + export.MIN_ROWS - 1
    )  # all in the largest batches, fewer in others
    assert [size for size, _ in found["torch"].rates] == [1, 256, 512]
    assert found["torch"].batch_tokens in (1, 256, 512)


def test_the_choice_is_made_once_and_kept_with_the_checkpoint(folder: Path, fast_int8: None) -> None:
    said: list[str] = []
    classifier, record = load.load(str(folder), ServeConfig(), said.append)
    assert record.choice == Choice("torch-int8", "onnx")
    assert classifier.runs == {"single": "torch-int8", "batch": "onnx"}
    assert len(said) == 1
    again, known = load.load(str(folder), ServeConfig(), said.append)
    assert known == record
    assert len(said) == 1
    ids = again.encode(["goal team", "bank market oil"]).ids
    exact = Classifier.load(str(folder), "fp32").logits(ids)
    np.testing.assert_allclose(again.logits(ids), exact, atol=1e-4)  # a batch: by ONNX Runtime
    assert (again.logits(ids[:1]) != exact[:1]).any()  # alone: in 8 bits


def test_a_record_of_other_weights_or_a_damaged_one_is_not_believed(folder: Path, fast_int8: None) -> None:
    load.load(str(folder), ServeConfig())
    (file,) = (folder / export.FOLDER).glob("*.json")
    classifier = Classifier.load(str(folder))
    content = json.loads(file.read_text())
    assert export.known(Place.of(folder), classifier) is not None
    damages = {
        "model": "other",
        "single": "rm -rf",
        "version": 0,
        "measured": 3,
        "digests": [],
        "batch_tokens": -1,
        "large_from": -1,
    }
    for damage in ({key: value} for key, value in damages.items()):
        file.write_text(json.dumps({**content, **damage}))
        assert export.known(Place.of(folder), classifier) is None
    file.write_text("{")
    assert export.known(Place.of(folder), classifier) is None


def test_a_changed_onnx_file_does_not_serve(folder: Path, fast_int8: None) -> None:
    load.load(str(folder), ServeConfig())
    (file,) = (folder / export.FOLDER).glob("*.onnx")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    classifier, record = load.load(str(folder), ServeConfig())
    assert record.choice == Choice("torch", "torch")
    assert "not the file that was measured" in str(record.reason)
    assert classifier.batch is None


def test_without_golden_rows_torch_serves_and_says_why(bert: Path) -> None:
    classifier, record = load.load(str(bert), ServeConfig())
    assert classifier.single is classifier.batch is None
    assert "broadsheet evaluate" in str(record.reason)


def test_an_engine_by_name(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, _ = load.load(str(bert), ServeConfig(engine="torch-int8"))
    assert classifier.runs == {"single": "torch-int8", "batch": "torch-int8"}
    assert load.load(str(bert), ServeConfig(engine="torch"))[0].single is None

    def missing(*_: Any) -> None:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(load.onnx_file, "write", missing)
    with pytest.raises(UserError, match=r"pip install broadsheet\[onnx\]"):
        load.load(str(bert), ServeConfig(engine="onnx"))


def test_a_network_too_slow_to_measure_is_served_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_S", 0.0)
    _, record = load.load(str(folder), ServeConfig())
    assert record.choice == Choice("torch", "torch")
    assert "name an engine with serve.engine" in str(record.reason)


def test_beside_a_model_that_answers_nothing_is_measured(folder: Path, fast_int8: None) -> None:
    classifier, record = load.load(str(folder), ServeConfig(), measure=False)
    assert classifier.single is None
    assert "broadsheet export" in str(record.reason)
    load.load(str(folder), ServeConfig())
    assert load.load(str(folder), ServeConfig(), measure=False)[1].choice.single == "torch-int8"


def test_a_folder_that_cannot_be_written_costs_the_record_only(
    folder: Path, fast_int8: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise WorkFailed("the store answered 503")

    monkeypatch.setattr(Place, "write_bytes", full)
    classifier, record = load.load(str(folder), ServeConfig())
    assert record.choice.single == classifier.runs["single"] == "torch-int8"
    assert not list((folder / export.FOLDER).glob("*.json"))


def test_what_a_full_disk_kept_from_being_made_is_made_next_time(
    folder: Path, fast_int8: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(export.onnx_file, "quantize", full)
        _, record = load.load(str(folder), ServeConfig())
    assert "no space left" in str(next(m for m in record.measured if m.failed).failed)
    assert export.known(Place.of(folder), Classifier.load(str(folder))) is None
