"""Suspected wrong labels, by confident learning on probabilities that are out of sample.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021. A row is
suspect when the model is at least as sure of another class as it usually is of that class' own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import spreadsheet
from pipeline.data.prepared import Prepared, Tokens
from pipeline.evaluate import sample
from pipeline.train.linear import features

MAX_ROWS = 50_000  # training rows that are looked at
WORK = 2_000_000  # rows times classes: more classes, fewer rows
MAX_WORK = 8_000_000  # where so few rows would leave classes with fewer than there are folds
FOLDS = 5
NGRAMS = 2
COLUMNS = ("id", "split", "text", "label", "suggested", "confidence")
TEXT_CHARACTERS = 500

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Suspects among some rows.

    Attributes:
        rows: indices of the suspects, the most suspect first, [suspects].
        suggested: the class that is suggested for each, [suspects].
        margin: probability of the label less that of the most probable other class, [suspects]; -1..1.
        noise: estimated share of wrong labels among all rows; None where no rows were looked at.
    """

    rows: Ints
    suggested: Ints
    margin: Floats
    noise: float | None


def find(labels: Ints, probabilities: Floats) -> Found:
    """Suspects by the confident joint, ranked by normalised margin.

    The threshold of class j is the mean probability of j among the rows labelled j. A row labelled i counts for (i, j)
    with j the most probable of the classes whose threshold it reaches; off the diagonal it is suspect. The joint, its
    rows scaled to the rows with each label, estimates how many labels are wrong (sections 3.1 and 3.2 of the paper).

    Args:
        labels: class ids as given, [rows].
        probabilities: out of sample, [rows, classes].
    """
    rows, classes = probabilities.shape
    if not rows:
        return Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), None)
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(rows), labels]
    # A class without rows has no threshold, and cannot be suggested.
    threshold = np.where(counts > 0, np.bincount(labels, own, classes) / np.maximum(counts, 1), np.inf)
    reached = probabilities >= threshold
    confident = np.where(reached, probabilities, -1.0).argmax(axis=1)
    counted = reached.any(axis=1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[counted], confident[counted]), 1)
    sums = joint.sum(axis=1)
    right = np.divide(joint.diagonal(), sums, out=np.ones(classes), where=sums > 0)
    noise = float(((1 - right) * counts).sum() / rows)
    at = np.flatnonzero(counted & (confident != labels))
    others = probabilities[at].copy()
    others[np.arange(len(at)), labels[at]] = -1.0
    margin = own[at] - others.max(axis=1)
    by = np.argsort(margin, kind="stable")
    return Found(at[by], confident[at][by], margin[by], noise)


def cross_validated(tokens: Tokens, classes: int, seed: int) -> tuple[Ints, Floats]:
    """Out-of-sample probabilities of training rows from a linear model on n-grams of tokens, in five folds.

    Args:
        tokens: the rows.
        classes: how many there are.
        seed: of folds and fits.

    Returns:
        The rows that have some [rows], and their probabilities [rows, classes]. Classes of fewer rows than folds have
        none, nor do their rows.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    counts = np.bincount(tokens.labels, minlength=classes)
    known = counts >= FOLDS
    rows = np.flatnonzero(known[tokens.labels])
    if known.sum() < 2:
        return np.empty(0, np.int64), np.empty((0, classes))
    model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=6, tol=None, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    table = features(tokens, [], NGRAMS).matrix[rows]
    found = cross_val_predict(model, table, tokens.labels[rows], cv=folds, method="predict_proba", n_jobs=1)
    full = np.zeros((len(rows), classes))
    full[:, np.flatnonzero(known)] = found
    return rows, full


def of_train(prepared: Prepared, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Suspects among training rows (changed copies left out), and how many rows were looked at.

    Args:
        prepared: the data; of a large train split a stratified sample, see ``looked_at``.
        seed: of folds and fits.
    """
    classes = len(prepared.labels)
    table = sample.rows(prepared, "train", looked_at(classes), seed)
    lists = table["input_ids"].cast(pa.large_list(pa.int32())).combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else lists.chunk(0)
    offsets = lists.offsets.to_numpy()
    ids = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    tokens = Tokens(ids, offsets - offsets[0], table["label"].to_numpy().astype(np.int64))
    rows, scores = cross_validated(tokens, classes, seed)
    labels = tokens.labels[rows]
    found = find(labels, scores)
    texts, names = table["text"].take(pa.array(rows)), table["id"].take(pa.array(rows))
    return listed("train", names, texts, labels, scores, found, prepared.labels), facts(found, len(rows))


def looked_at(classes: int) -> int:
    """How many training rows are looked at: the work of the linear model grows with rows times classes.

    Classes of which the sample has fewer rows than there are folds are left out. With so many classes that
    ``MAX_WORK`` does not hold that many rows of each, most of them are.
    """
    return min(MAX_ROWS, max(WORK // classes, min(2 * FOLDS * classes, MAX_WORK // classes)))


def facts(found: Found, rows: int) -> dict[str, Any]:
    """For ``metrics.json``: rows looked at, suspects, estimated share of wrong labels."""
    noise = None if found.noise is None else round(found.noise, 6)
    return {"rows": rows, "suspects": len(found.rows), "noise": noise}


def listed(
    split: str,
    ids: Any,
    texts: pa.ChunkedArray,
    labels: Ints,
    probabilities: Floats,
    found: Found,
    label_names: Sequence[str],
) -> list[dict[str, Any]]:
    """The suspects of a split as rows of the csv, with ``margin`` to order those of several splits.

    Args:
        split: its name.
        ids, texts: of all rows looked at, [rows].
        labels, probabilities, found: as given to ``find`` and returned by it.
        label_names: the label id is the index.
    """
    return [
        {
            "id": str(ids[int(i)]),
            "split": split,
            "text": texts[int(i)].as_py()[:TEXT_CHARACTERS],
            "label": label_names[labels[i]],
            "suggested": label_names[to],
            "confidence": round(float(probabilities[i, to]), 4),
            "margin": float(margin),
        }
        for i, to, margin in zip(found.rows, found.suggested, found.margin, strict=True)
    ]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as csv with ``COLUMNS``, which ``data.corrections`` takes; it does not look at the text."""
    return spreadsheet.to_csv(COLUMNS, rows, ("text",))
