"""Which words a prediction hangs on: leave one out, and see how much of the probability goes (occlusion).

The method of Li, Monroe and Jurafsky (2016, "Understanding Neural Networks through Representation Erasure") at the
level of words. It asks nothing of the network but its answers, so it is the same for every model, and it is what it
says: an effect of 0.3 means that without this word the probability falls by 0.3. Two words that say the same can
both seem idle, as each stands in for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.prepared import Prepared
from pipeline.evaluate.classifier import Classifier
from pipeline.train import batches

MOST = 200  # units of a text that are left out in turn; a longer text is cut into groups of words
BATCH_TOKENS = 2048
ROWS = 12  # shown in the report, half of them mistakes
SHOWN = 600  # characters of a row in the report


class Effect(NamedTuple):
    """A word, or a group of neighbours, of a cleaned text.

    Attributes:
        word: the characters ``start`` to ``end``.
        effect: how far the probability of the predicted label falls without it, -1..1; below 0 it speaks against it.
    """

    word: str
    start: int
    end: int
    effect: float


@dataclass(frozen=True)
class Explained:
    """A prediction with the effects of its words, in the order of the text.

    Attributes:
        text: after cleaning; what lies behind the last word, the network did not read.
        probability: of ``label``.
    """

    text: str
    label: str
    probability: float
    words: list[Effect]


class Variants(NamedTuple):
    """A cleaned text, and what the network is asked about it.

    Attributes:
        text: the cleaned text.
        spans: what is left out in turn.
        texts: [1 + spans] the text as far as the network reads it, then the same without each of the spans.
    """

    text: str
    spans: list[tuple[int, int]]
    texts: list[str]


def units(words: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Neighbouring words put together until there are at most ``most`` spans, all of about as many words."""
    size = max(1, -(-len(words) // most))
    return [(words[i][0], words[min(i + size, len(words)) - 1][1]) for i in range(0, len(words), size)]


def explain(classifier: Classifier, text: str, most: int = MOST) -> Explained:
    """The prediction for one raw text, and what each of its words has to do with it."""
    return explain_all(classifier, [text], most)[0]


def explain_all(classifier: Classifier, texts: Sequence[str], most: int = MOST) -> list[Explained]:
    """As ``explain``, for several texts at once: all that is left out of them goes through the network together.

    Args:
        classifier: the model.
        texts: raw.
        most: units of one text that are left out in turn: it costs as many forward passes of one row.
    """
    cleaned = classifier.encode(texts).cleaned
    asked = [variants(text, classifier.words(text), most) for text in cleaned]
    every = [text for one in asked for text in one.texts]
    scores = classifier.probabilities(classifier.all_logits(classifier.encode(every).ids, BATCH_TOKENS))
    done, at = [], 0
    for one in asked:
        done.append(effects(one, scores[at : at + len(one.texts)], classifier.labels))
        at += len(one.texts)
    return done


def variants(cleaned: str, words: Sequence[tuple[int, int]], most: int = MOST) -> Variants:
    """What the network must be asked to explain a cleaned text.

    Args:
        cleaned: the text.
        words: where its words begin and end, as far as the network reads it (``Classifier.words``).
        most: units that are left out in turn.
    """
    spans = units(words, most)
    seen = cleaned[: spans[-1][1]] if spans else cleaned  # else what is behind the cut would move up
    return Variants(cleaned, spans, [seen, *(seen[:start] + " " + seen[end:] for start, end in spans)])


def effects(asked: Variants, scores: npt.NDArray[np.float64], labels: Sequence[str]) -> Explained:
    """The explanation, once the network has answered.

    Args:
        asked: of ``variants``.
        scores: probabilities of ``asked.texts``, [texts, labels].
        labels: the names of the columns.
    """
    best = int(scores[0].argmax())
    whole = float(scores[0, best])
    falls = whole - scores[1:, best]
    words = [Effect(asked.text[s:e], s, e, float(fall)) for (s, e), fall in zip(asked.spans, falls, strict=True)]
    return Explained(asked.text, labels[best], whole, words)


def pieces(explained: Explained) -> list[tuple[str, float | None]]:
    """The text cut for display: each unit with its effect, what lies between with None."""
    cut: list[tuple[str, float | None]] = []
    at = 0
    for word in explained.words:
        if word.start > at:
            cut.append((explained.text[at : word.start], None))
        cut.append((word.word, word.effect))
        at = word.end
    return [*cut, (explained.text[at:], None)] if at < len(explained.text) else cut


def shown(cut: Sequence[tuple[str, float | None]], most: int = SHOWN) -> list[tuple[str, float | None]]:
    """The first pieces, of ``most`` characters together; an ellipsis where there were more."""
    kept: list[tuple[str, float | None]] = []
    for text, effect in cut:
        if len(text) > most:
            return [*kept, (text[:most] + "…", effect)]
        kept.append((text, effect))
        most -= len(text)
    return kept


def of_sample(
    classifier: Classifier,
    prepared: Prepared,
    split: str,
    ids: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> list[dict[str, Any]]:
    """Explanations of a few rows for the report: the most confident mistakes, then right ones of all classes.

    Args:
        classifier: the model that scored them.
        prepared, split: the rows that were scored.
        ids, labels, probabilities: of all of them, as of ``predict.predict_split``.

    Returns:
        Per row ``id, truth, predicted, confidence, pieces`` (see ``pieces``; cut at ``SHOWN`` characters) and ``top``,
        the largest effect in size.
    """
    predicted = probabilities.argmax(-1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(-1), kind="stable")][: ROWS // 2]
    right = np.flatnonzero(predicted == labels)
    rows = [*wrong.tolist(), *right[batches.sample(labels[right], ROWS - len(wrong), 0)].tolist()][:ROWS]
    if not rows:
        return []
    texts = prepared.table(split, ["text"])["text"].take(rows).to_pylist()
    done = explain_all(classifier, texts)
    return [
        {
            "id": ids[row],
            "truth": prepared.labels[int(labels[row])],
            "predicted": one.label,
            "confidence": one.probability,
            "pieces": shown(pieces(one)),
            "top": max((abs(word.effect) for word in one.words), default=0.0),
        }
        for row, one in zip(rows, done, strict=True)
    ]
