"""The training rows that a text is most like in the eyes of the network: evidence for a prediction, or against it.

Evaluation leaves an index of training rows with the checkpoint, ``evidence.parquet``: a sample with, of each row, the
vector that the network's last linear layer reads the label off, less the mean of all. Near means a large cosine. A vote
of the nearest rows (k-NN) is tried beside the classifier on validation rows, and the result written down.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate import sample
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.explain import BATCH_TOKENS
from pipeline.storage import Place

FILE = "evidence.parquet"
SHOWN = 300  # characters of a row that are kept
NEAREST = 3  # rows shown for a prediction
VOTERS = 10
VALIDATION_ROWS = 1_000
SHARES = tuple(i / 10 for i in range(10))  # of the vote in the mixture with the classifier's probabilities
BLOCK = 1_024  # rows compared with the index at a time

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """An index of training rows.

    Attributes:
        ids, texts: of the rows; texts are cut at ``SHOWN`` characters.
        labels: [rows] label ids.
        centre: [width] mean of the network's states over the rows: all texts share it, and it tells none apart.
        states: [rows, width] states less the centre, each of length 1.
    """

    ids: list[str]
    texts: list[str]
    labels: Ints
    centre: Floats
    states: Floats

    def nearest(self, states: Floats, count: int) -> tuple[Ints, Floats]:
        """The ``count`` nearest rows of each of the network's states, nearest first, and their cosines.

        Args:
            states: [texts, width] of ``Classifier.with_states``.
            count: how many are wanted; there may be fewer rows.

        Returns:
            Rows of the index and cosines around the centre, both [texts, count].
        """
        states = unit(states - self.centre)
        count = min(count, len(self.ids))
        found = np.empty((len(states), count), np.int64)
        near = np.empty((len(states), count), np.float32)
        for start in range(0, len(states), BLOCK):
            cosines = states[start : start + BLOCK] @ self.states.T
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
            found[start : start + BLOCK], near[start : start + BLOCK] = best, np.take_along_axis(cosines, best, 1)
        return found, near

    def vote(self, states: Floats, classes: int, voters: int = VOTERS) -> npt.NDArray[np.float64]:
        """The share of each label among the nearest rows, weighted by cosine, [states, classes]."""
        found, near = self.nearest(states, voters)
        weights = np.maximum(near.astype(np.float64), 1e-6)
        shares = np.zeros((len(states), classes))
        np.add.at(shares, (np.arange(len(states))[:, None], self.labels[found]), weights)
        return shares / shares.sum(1, keepdims=True)

    def save(self, folder: Place) -> None:
        """Write ``evidence.parquet``; cosines survive half precision to three digits."""
        flat = pa.array(self.states.astype(np.float16).ravel(), pa.float16())
        columns = [
            pa.array(self.ids, pa.string()), pa.array(self.labels, pa.int32()), pa.array(self.texts, pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, self.states.shape[1]),
        ]  # fmt: skip
        table = pa.table(columns, names=["id", "label", "text", "state"])
        table = table.replace_schema_metadata({"centre": json.dumps(self.centre.tolist())})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        (folder / FILE).write_bytes(sink.getvalue())

    @classmethod
    def load(cls, folder: Place) -> Evidence:
        """Read a checkpoint's index.

        Raises:
            UserError: it has none, or it is damaged.
        """
        file = folder / FILE
        if not file.exists():
            raise UserError(f"{folder} has no {FILE}: 'broadsheet evaluate' makes it")
        try:
            with file.open_random() as f:
                table = pq.ParquetFile(f).read()
            flat = pc.list_flatten(table["state"].combine_chunks()).to_numpy(zero_copy_only=False)
            states = flat.astype(np.float32).reshape(table.num_rows, -1)
            labels = table["label"].to_numpy().astype(np.int64)
            centre = np.array(json.loads(table.schema.metadata[b"centre"]), np.float32)
            return cls(table["id"].to_pylist(), table["text"].to_pylist(), labels, centre, states)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
            raise UserError(f"{file} is damaged: delete it and run 'broadsheet evaluate' again") from e


def unit(vectors: Floats) -> Floats:
    """Each row scaled to length 1; one without a direction stays as it is."""
    return vectors / np.maximum(1e-12, np.linalg.norm(vectors, axis=1, keepdims=True))


def nearest(classifier: Classifier, index: Evidence, texts: Sequence[str], count: int) -> list[list[dict[str, Any]]]:
    """The training rows nearest to raw texts: ``id, label, text, similarity`` (the cosine), nearest first."""
    done = classifier.with_states(classifier.encode(texts).ids, BATCH_TOKENS)
    return [[] for _ in texts] if done is None else shown(index, classifier.labels, done[1], count)


def shown(index: Evidence, labels: Sequence[str], states: Floats, count: int) -> list[list[dict[str, Any]]]:
    """What ``nearest`` returns, for states of the network, [texts, width]; ``labels`` are the names of label ids."""
    return [
        [
            {
                "id": index.ids[i],
                "label": labels[int(index.labels[i])],
                "text": index.texts[i],
                "similarity": round(float(cosine), 4),
            }
            for i, cosine in zip(rows, cosines, strict=True)
        ]
        for rows, cosines in zip(*index.nearest(states, count), strict=True)
    ]


def build(classifier: Classifier, prepared: Prepared, most: int, seed: int) -> Evidence | None:
    """An index of at most ``most`` training rows, every class with its share; None where the network has no states."""
    table = sample.rows(prepared, "train", most, seed)
    done = classifier.with_states(_ids(table), BATCH_TOKENS)
    if done is None:
        return None
    texts = [text[:SHOWN] for text in table["text"].to_pylist()]
    centre = done[1].mean(0)
    labels = table["label"].to_numpy().astype(np.int64)
    return Evidence(table["id"].to_pylist(), texts, labels, centre, unit(done[1] - centre))


def tried(labels: Ints, probabilities: npt.NDArray[np.float64], votes: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Whether a vote of neighbours helps a classifier.

    The share of the vote is chosen on every other row, and judged on the rest. It helps if more rows turn right than
    wrong by two standard errors of that difference (of b rows that turn right and c that turn wrong it is
    ``sqrt(b + c)``, as in McNemar's test, 1947).

    Args:
        labels: [rows] true label ids of validation rows.
        probabilities: the classifier's, [rows, labels].
        votes: of ``Evidence.vote``, [rows, labels].

    Returns:
        ``share`` of the vote, ``rows`` judged, ``accuracy`` without and ``accuracy_with_vote`` and
        ``accuracy_of_vote`` alone, ``turned_right``, ``turned_wrong``, ``helps``.
    """
    choose, judge = slice(0, None, 2), slice(1, None, 2)

    def right(share: float, rows: slice) -> npt.NDArray[np.bool_]:
        mixed = (1 - share) * probabilities[rows] + share * votes[rows]
        return mixed.argmax(1) == labels[rows]

    share = max(SHARES, key=lambda s: (right(s, choose).sum(), -s))
    before, after = right(0.0, judge), right(share, judge)
    turned_right, turned_wrong = int((after & ~before).sum()), int((before & ~after).sum())
    return {
        "share": share,
        "rows": len(before),
        "accuracy": float(before.mean()) if len(before) else 0.0,
        "accuracy_with_vote": float(after.mean()) if len(before) else 0.0,
        "accuracy_of_vote": float(right(1.0, judge).mean()) if len(before) else 0.0,
        "turned_right": turned_right,
        "turned_wrong": turned_wrong,
        "helps": turned_right - turned_wrong > 2 * (turned_right + turned_wrong) ** 0.5,
    }


def examine(
    classifier: Classifier, where: Place, prepared: Prepared, found: Sequence[dict[str, Any]], most: int
) -> dict[str, Any] | None:
    """Leave the index with the checkpoint, try the vote, and add ``nearest`` rows to what evaluation has found.

    Args:
        classifier: the checkpoint, loaded.
        where: its folder.
        prepared: the data that it was trained on.
        found: dicts with a ``text``, for the report; each gets ``nearest``.
        most: training rows in the index; 0 for none.

    Returns:
        Facts for ``metrics.json``: ``rows`` of the index, ``voters``, ``used`` (never), and ``vote`` (see ``tried``;
        None without validation rows). None where there is no index: it is not wanted, or the network has no states.
    """
    seed = int(classifier.card["config"]["seed"])
    index = build(classifier, prepared, most, seed) if most else None
    if index is None:
        (where / FILE).delete()  # of an evaluation that wanted one: it holds texts, and serving would show them
        return None
    index.save(where)
    for one, rows in zip(found, nearest(classifier, index, [f["text"] for f in found], NEAREST), strict=True):
        one["nearest"] = rows
    vote = None
    if prepared.rows("validation"):
        table = sample.rows(prepared, "validation", VALIDATION_ROWS, seed)
        done = classifier.with_states(_ids(table), BATCH_TOKENS)
        assert done is not None
        votes = index.vote(done[1], len(classifier.labels))
        vote = tried(table["label"].to_numpy().astype(np.int64), classifier.probabilities(done[0]), votes)
    return {"rows": len(index.ids), "voters": VOTERS, "vote": vote, "used": False}


def _ids(table: pa.Table) -> list[npt.NDArray[np.int32]]:
    return [np.asarray(v.values.to_numpy(), np.int32) for v in table["input_ids"].combine_chunks()]
