"""The effect of a word is what the probability loses without it: by hand, and with a real network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate import explain, report
from pipeline.evaluate.classifier import Classifier, Encoded
from pipeline.evaluate.metrics import summary

WEIGHTS = {"goal": 2.0, "team": 1.0, "bank": -1.5}


class Linear:
    """Two labels and a weight per word: what each word does can be worked out by hand."""

    labels = ("money", "sport")
    reads = 6  # words

    def encode(self, texts: Sequence[str]) -> Encoded:
        cleaned = [" ".join(text.split()) for text in texts]
        ids = [np.array([sum(WEIGHTS.get(w, 0.0) for w in t.split()[: self.reads])]) for t in cleaned]
        return Encoded(ids, [len(t.split()) > self.reads for t in cleaned], cleaned)  # type: ignore[arg-type]

    def words(self, cleaned: str) -> list[tuple[int, int]]:
        return [m.span() for m in re.finditer(r"\S+", cleaned)][: self.reads]

    def all_logits(self, ids: Sequence[Any], batch_tokens: int) -> np.ndarray:
        return np.array([[0.0, float(i[0])] for i in ids])

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits)
        return e / e.sum(-1, keepdims=True)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_effects_by_hand() -> None:
    text = "the  goal of the team bank goal goal"  # the last two are behind the cut
    got = explain.explain(Linear(), text)  # type: ignore[arg-type]
    assert got.text == "the goal of the team bank goal goal"
    assert (got.label, got.probability) == ("sport", pytest.approx(sigmoid(1.5)))
    assert [w.word for w in got.words] == ["the", "goal", "of", "the", "team", "bank"]
    assert [got.text[w.start : w.end] for w in got.words] == [w.word for w in got.words]
    wanted = [0, sigmoid(1.5) - sigmoid(-0.5), 0, 0, sigmoid(1.5) - sigmoid(0.5), sigmoid(1.5) - sigmoid(3.0)]
    assert [w.effect for w in got.words] == pytest.approx(wanted)
    assert "".join(piece for piece, _ in explain.pieces(got)) == got.text
    assert explain.pieces(got)[-1] == (" goal goal", None)


def test_a_long_text_is_left_out_in_groups() -> None:
    assert explain.units([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], 2) == [(0, 5), (6, 9)]
    assert explain.units([(0, 1), (2, 3)], 2) == [(0, 1), (2, 3)]
    assert explain.units([], 2) == []
    got = explain.explain(Linear(), "goal team bank", most=2)  # type: ignore[arg-type]
    assert [w.word for w in got.words] == ["goal team", "bank"]
    assert got.words[0].effect == pytest.approx(sigmoid(1.5) - sigmoid(-1.5))


def test_texts_without_words() -> None:
    for text in ("", "   "):
        got = explain.explain(Linear(), text)  # type: ignore[arg-type]
        assert (got.words, got.probability) == ([], 0.5)
        assert explain.pieces(got) == []


def test_a_network(bert: Path) -> None:
    classifier = Classifier.load(str(bert))
    texts = ["Bank shares rise, oil falls!", "软件芯片 goal", "match " * 60]
    many = explain.explain_all(classifier, texts)
    assert [w.word for w in many[0].words] == ["Bank", "shares", "rise", ",", "oil", "falls", "!"]
    assert [w.word for w in many[1].words] == ["软", "件", "芯", "片", "goal"]
    assert len(many[2].words) == 30  # of 32 tokens, two frame the text

    def probability(text: str, label: str) -> float:
        scores = classifier.probabilities(classifier.all_logits(classifier.encode([text]).ids, 1024))
        return float(scores[0, classifier.labels.index(label)])

    for text, got in zip(texts[:2], many, strict=False):
        assert got.probability == pytest.approx(probability(text, got.label), abs=1e-5)
        for word in got.words:
            without = text[: word.start] + " " + text[word.end :]
            assert word.effect == pytest.approx(got.probability - probability(without, got.label), abs=1e-5)
        assert max(abs(w.effect) for w in got.words) > 0.01
        again = explain.explain(classifier, text)
        assert [w.effect for w in again.words] == pytest.approx([w.effect for w in got.words], abs=1e-5)


def test_the_report_shows_them() -> None:
    got = explain.explain(Linear(), "goal <b> of bank")  # type: ignore[arg-type]
    row = {"id": "a:1", "truth": "money", "predicted": got.label, "confidence": got.probability}
    row |= {"pieces": explain.pieces(got), "top": max(abs(w.effect) for w in got.words)}
    test = summary(np.array([0, 1]), np.array([[0.6, 0.4], [0.2, 0.8]]), ["money", "sport"])
    html = report.write_html({"title": "t", "test": test, "explained": [row]})
    assert '<section id="explained">' in html
    assert f'title="{got.words[0].effect:+.2g}">goal</span>' in html
    assert "rgba(var(--wrong),0.32)" in html
    assert "&lt;b&gt;" in html


def test_what_is_asked_and_what_the_answers_mean() -> None:
    asked = explain.variants("a goal bank gone", [(0, 1), (2, 6), (7, 11)], most=3)
    assert asked.texts == ["a goal bank", "  goal bank", "a   bank", "a goal  "]
    scores = np.array([[0.3, 0.7], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    got = explain.effects(asked, scores, ["money", "sport"])
    assert (got.text, got.label, got.probability) == ("a goal bank gone", "sport", 0.7)
    assert [(w.word, round(w.effect, 6)) for w in got.words] == [("a", 0.0), ("goal", 0.3), ("bank", -0.2)]


def test_the_length_of_a_text_that_is_cut(bert: Path) -> None:
    classifier = Classifier.load(str(bert))
    for words in (1, 29, 30, 31, 200):
        text = "goal " * words
        assert classifier.length(text) == words + 2  # with [CLS] and [SEP]
        assert classifier.encode([text]).truncated == [words > 30]
