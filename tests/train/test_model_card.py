"""The model card reads back as the Hugging Face hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pipeline.config import load
from pipeline.data.prepared import Prepared
from pipeline.evaluate import intervals, metrics
from pipeline.storage import Place
from pipeline.train import model_card

NAMES = ["a|b", "體育", "c"]
GUESSES = np.array([0, 1, 2, 0, 1, 1])
TEST = metrics.summary(np.arange(6) % 3, np.full((6, 3), 0.1) + 0.7 * np.eye(3)[GUESSES], NAMES)


LEDGER = {
    "read": 1000,
    "kept": {"train": 800, "validation": 50, "test": 50},
    "rejected": {"x": 50},
    "duplicates": 50,
    "augmented": {},
}


def facts(model: str = "minilm", kind: str = "transformer", dataset: str = "ag_news") -> dict[str, Any]:
    sets = [f"model.name={model}", f"data.dataset={dataset}", "name=mine", "train.max_rows=750"]
    return {
        "labels": NAMES, "kind": kind, "text": ["title"], "max_tokens": 128, "data_fingerprint": "ff00",
        "config": load(None, sets).model_dump(mode="json"), "versions": {"python": "3.11", "torch": "2.6"},
        "training": {"fingerprint": "x", "layout": "2 workers", "steps": 10, "seconds": 3.5, "history": [{"step": 1}]},
        "metrics": {"validation": metrics.from_confusion(np.eye(3, dtype=int) * 4 + 1, NAMES)},
    }  # fmt: skip


def made(model: str = "minilm", kind: str = "transformer", dataset: str = "ag_news", split: str = "test") -> str:
    figures: dict[str, Any] = {
        "test": TEST, "split": split, "rows": {"trained_on": 750},
        "intervals": intervals.of_confusion(TEST["confusion"], NAMES, 1),
        "calibration": {"temperature": 1.25, "how": "fitted on 500 validation rows"},
    }  # fmt: skip
    return model_card.model_card(facts(model, kind, dataset), figures, LEDGER)


def test_the_front_matter_is_what_the_hub_expects() -> None:
    data = ModelCard(made()).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.datasets == ["fancyzhx/ag_news"]
    assert data.license is None
    assert data.language is None
    results = {r.metric_name: r for r in data.eval_results or []}
    assert results["accuracy"].metric_value == pytest.approx(5 / 6, abs=1e-6)
    assert results["macro F1"].metric_type == "f1"
    assert results["accuracy"].dataset_split == "test"


@pytest.mark.parametrize(
    ("model", "kind", "base"),
    [("lstm", "lstm", None), ("org/bert", "transformer", "org/bert"), ("./models/bert", "transformer", None)],
)
def test_what_is_not_known_is_left_out(model: str, kind: str, base: str | None) -> None:
    data = ModelCard(made(model, kind, "files")).data
    assert data.base_model == base
    assert data.datasets is None
    assert (data.eval_results or [])[0].dataset_name == "mine"


def test_the_text_says_what_a_reader_needs() -> None:
    text = made()
    for said in (
        "`a|b`, `體育`, `c`", "| a\\|b | ", "1,000 rows read = 900 kept", "Divide the logits by 1.25", "seed: 17",
        "trained on 750", "python 3.11, torch 2.6", "## Intended use", "## Limits",
    ):  # fmt: skip
        assert said in text
    assert "history" not in text
    assert "which chose the checkpoint" in made(split="validation")


def test_before_evaluation_the_figures_are_those_that_chose_the_checkpoint() -> None:
    prepared = Prepared(Place.of("nowhere"), {"ledger": LEDGER}, NAMES, {})
    text = model_card.of_training(facts(), prepared)
    assert "On 21 validation rows, which chose the checkpoint: expect a little less: accuracy 0.7143, macro F1" in text
    assert "trained on 750" in text
    assert "Divide the logits" not in text
    assert (ModelCard(text).data.eval_results or [])[0].dataset_split == "validation"


def test_a_label_is_no_markup() -> None:
    assert model_card._cell("<img src=x>\n|a") == "&lt;img src=x&gt; \\|a"
    assert model_card._code("a`b\nc") == "`` a`b c ``"


def test_a_folder_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "bert").mkdir(parents=True)
    assert ModelCard(made("org/bert")).data.base_model is None


def test_copies_are_counted_as_such() -> None:
    figures = {"rows": {"trained_on": 1_600}}
    assert model_card._trained_on(figures, {"train": 800}) == "trained on 1,600, changed copies among them"
    prepared = Prepared(Place.of("nowhere"), {"ledger": LEDGER}, NAMES, {})
    assert model_card.trained_rows(facts(), prepared) == 750
    known = {**facts(), "training": {"rows": 200}}
    assert model_card.trained_rows(known, prepared) == 200
