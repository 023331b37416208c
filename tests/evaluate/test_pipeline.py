"""A checkpoint is a Hugging Face model: ``transformers.pipeline`` opens the folder, and says what Broadsheet says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from small_bert import LABELS, WORDS

from pipeline.evaluate.classifier import Classifier


def texts() -> list[str]:
    """Clean already: ``pipeline`` knows nothing of cleaning rules. Some are longer than the model reads."""
    generator = random.Random(4)
    words = [w for of_label in WORDS.values() for w in of_label] + ["unheard", "of"]
    return [" ".join(generator.choices(words, k=generator.choice([1, 4, 12, 60]))) for _ in range(60)]


def test_pipeline_gives_the_same_labels(bert: Path) -> None:
    from transformers import pipeline

    classifier = Classifier.load(str(bert), "fp32")
    encoded = classifier.encode(texts())
    assert encoded.cleaned == texts()
    scores = classifier.probabilities(classifier.all_logits(encoded.ids, 1024))
    assert len(set(scores.argmax(-1))) == len(LABELS)  # else equal labels would prove little
    assert any(encoded.truncated)

    theirs = pipeline("text-classification", str(bert), top_k=None)(texts(), batch_size=8, truncation=True)
    for said, row in zip(theirs, scores, strict=True):
        assert said[0]["label"] == LABELS[int(row.argmax())]
        assert [s["score"] for s in said] == pytest.approx(sorted(row, reverse=True), abs=1e-4)
    short = next(i for i, cut in enumerate(encoded.truncated) if not cut)
    (plain,) = pipeline("text-classification", str(bert))(texts()[short])
    assert plain["label"] == LABELS[int(scores[short].argmax())]


def test_the_folder_says_all_that_it_takes(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(LABELS)}
    assert config["label2id"] == {name: i for i, name in enumerate(LABELS)}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert json.loads((bert / "tokenizer_config.json").read_text())["model_max_length"] == 32
