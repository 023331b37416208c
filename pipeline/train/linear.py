"""Fit the linear model (``pipeline.model.linear``): no gradient steps, one pass of counting and scikit-learn's solver.

scikit-learn's ``LinearSVC`` (liblinear's dual coordinate descent on one thread, squared hinge loss, one label against
the rest) was both faster and more accurate on short texts than logistic regression. Its margins become logits by one
factor, fitted on validation rows.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from scipy.special import log_softmax

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data.prepared import Prepared, Tokens
from pipeline.data.tokenize import special_ids
from pipeline.errors import WorkFailed
from pipeline.evaluate import calibration, metrics
from pipeline.folders import local_folder, put_folder
from pipeline.model import build
from pipeline.model.linear import LinearConfig, LinearForSequenceClassification, lookup, ngrams, weighed
from pipeline.storage import Place
from pipeline.train import checkpoint, recipe
from pipeline.train.worker import sampled

MAX_TOKENS = 10_000_000  # of all rows: about 2 GB and two minutes; AG News has 3 million
MAX_WEIGHTS = 50_000_000  # n-grams x labels: 200 MB
MIN_ROWS = 2  # n-grams of a single row have no weight
PENALTY = 1.0  # C of LinearSVC: loss against the weights' squares
TOLERANCE = 0.01
_NOTHING = "the linear model has nothing to learn from: the training rows hold no words, or one label only"
MARGIN_SCALE = 3.0  # logits per margin where validation rows are too few to tell


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes:
        model: ready to be saved.
        passes: of the solver over the rows.
        loss: mean negative log likelihood of the training rows.
        left_out: n-grams of two rows or more that had to go, or there would be more than ``MAX_WEIGHTS`` weights.
    """

    model: LinearForSequenceClassification
    passes: int
    loss: float
    left_out: int


def rows_taken(rows: int, tokens: int, max_rows: int | None) -> int:
    """How many rows are used: ``train.max_rows``, and no more than hold ``MAX_TOKENS`` tokens on the average."""
    return min(rows, max_rows or rows, max(8, rows * MAX_TOKENS // max(1, tokens)))


def take(tokens: Tokens, max_rows: int | None, seed: int) -> Tokens:
    """The training rows or a fixed, stratified sample of them; see ``rows_taken``."""
    return sampled(tokens, rows_taken(len(tokens), len(tokens.ids), max_rows), seed)


def fit(
    train: Tokens,
    validation: Tokens | None,
    names: list[str],
    excluded: list[int],
    pad_id: int,
    longest: int,
    seed: int,
    class_weights: str | dict[str, float] = "none",
) -> Fitted:
    """Fit the model; the same weights every time.

    Args:
        train: the rows.
        validation: rows that say how sure a margin is; None or few: a usual value.
        names: of the labels; the id is the index.
        excluded: token ids that are no words.
        pad_id: the token that pads.
        longest: n of the n-grams.
        seed: of the solver's order of rows.
        class_weights: as in ``train.class_weights``.

    Raises:
        WorkFailed: there is nothing to learn from.
    """
    from sklearn.svm import LinearSVC

    classes = np.unique(train.labels)
    if len(classes) < 2 or not len(train.ids):
        raise WorkFailed(_NOTHING)
    found = features(train, excluded, longest, MAX_WEIGHTS // len(names))
    if not len(found.hashes):
        raise WorkFailed(_NOTHING)
    weights = recipe.class_weights(class_weights, names, train.labels)
    each = None if weights is None else {int(c): float(weights[c]) for c in classes}
    solver = LinearSVC(C=PENALTY, tol=TOLERANCE, dual=True, random_state=seed, class_weight=each)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after 1,000 passes: the weights are good enough
        solver.fit(found.matrix, train.labels)
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(classes) == 2:  # one separating plane for two labels
        coefficients, intercepts = np.concatenate([-coefficients, coefficients]), np.append(-intercepts, intercepts)
    weight = np.zeros((len(found.hashes), len(names)), np.float32)
    bias = np.full(len(names), -1.0 + min(0.0, float(intercepts.min())), np.float32)  # labels without a row
    weight[:, classes], bias[classes] = coefficients.T, intercepts
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    model = LinearForSequenceClassification(
        LinearConfig(
            ngrams=longest, features=len(found.hashes), excluded=excluded, pad_token_id=pad_id,
            problem_type="single_label_classification", **labels,
        )
    )  # fmt: skip
    model.hashes.copy_(found.hashes)
    model.idf.copy_(found.idf)
    _set(model, weight, bias)
    scale = _scale(model, validation) if validation is not None else MARGIN_SCALE
    _set(model, weight * scale, bias * scale)
    model.train(False)
    loss = _loss(found.matrix @ model.weight.numpy() + bias * scale, train.labels)
    return Fitted(model, int(np.max(solver.n_iter_)), loss, found.left_out)


@dataclass(frozen=True)
class Features:
    """Rows as weighed n-grams.

    Attributes:
        hashes: of the n-grams that have a column, sorted, [n-grams].
        idf: [n-grams].
        matrix: [rows, n-grams], each row of length 1 (or empty).
        left_out: n-grams of two rows or more that have none, or there would be too many.
    """

    hashes: torch.Tensor
    idf: torch.Tensor
    matrix: scipy.sparse.csr_matrix
    left_out: int


def features(tokens: Tokens, excluded: list[int], longest: int, most: int = MAX_WEIGHTS) -> Features:
    """TF-IDF of the n-grams that occur in two rows or more (in any, where none does).

    Args:
        tokens: the rows.
        excluded: token ids that are no words.
        longest: n of the n-grams.
        most: columns; the most frequent n-grams get them.
    """
    row, hashed = _ngrams(tokens, excluded, longest)
    unique, inverse = torch.unique(hashed, return_inverse=True)
    counts = _counts(row, inverse, len(tokens), len(unique))
    in_rows = np.bincount(counts.indices, minlength=len(unique))
    kept = _kept(in_rows, most)
    idf = torch.from_numpy(np.log((1 + len(tokens)) / (1 + in_rows[kept])) + 1).float()
    left_out = max(0, int((in_rows >= MIN_ROWS).sum()) - len(kept))
    return Features(unique[torch.from_numpy(kept)], idf, _weighed(counts[:, kept], idf), left_out)


def logits(model: LinearForSequenceClassification, tokens: Tokens) -> npt.NDArray[np.float32]:
    """What ``model`` says of many rows, [rows, labels]: as its ``forward``, by one sparse product."""
    config = model.config
    row, hashed = _ngrams(tokens, config.excluded, config.ngrams)
    at, known = lookup(model.hashes, hashed)
    matrix = _weighed(_counts(row[known], at[known], len(tokens), len(model.hashes)), model.idf)
    return np.asarray(matrix @ model.weight.detach().numpy() + model.bias.detach().numpy(), np.float32)


def _set(model: LinearForSequenceClassification, weight: Any, bias: Any) -> None:
    model.weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)))
    model.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))


def _ngrams(tokens: Tokens, excluded: list[int], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.repeat_interleave(torch.arange(len(tokens)), torch.from_numpy(tokens.lengths))
    return ngrams(torch.from_numpy(np.array(tokens.ids)), rows, longest, excluded)


def _counts(row: torch.Tensor, at: torch.Tensor, rows: int, features: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(row), np.float32)
    counts = scipy.sparse.csr_matrix((ones, (row.numpy(), at.numpy())), shape=(rows, features))
    counts.sum_duplicates()
    return counts


def _kept(in_rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """The n-grams that get weights, rising: those of two rows or more, the most frequent where they are too many."""
    kept = np.flatnonzero(in_rows >= MIN_ROWS)
    if not len(kept):
        kept = np.flatnonzero(in_rows)
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-in_rows[kept], kind="stable")[:most]])
    return kept


def _weighed(counts: scipy.sparse.csr_matrix, idf: torch.Tensor) -> scipy.sparse.csr_matrix:
    row = torch.from_numpy(np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr)))
    at = torch.from_numpy(counts.indices)
    counts.data = weighed(row, torch.from_numpy(counts.data), idf[at], counts.shape[0]).numpy()
    return counts


def _scale(model: LinearForSequenceClassification, validation: Tokens) -> float:
    temperature, _how = calibration.chosen_temperature(
        validation.labels, logits(model, validation).astype(np.float64), 1 / MARGIN_SCALE
    )
    return 1 / temperature


def _loss(scores: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    return -float(log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def train(
    config: Config, prepared: Prepared, card: dict[str, Any], mark: str, final: Place, address: str | None = None
) -> None:
    """Fit and leave the checkpoint in ``final``.

    Args:
        config: the resolved configuration.
        prepared: the data.
        card: the content of ``broadsheet.json``, metrics and training aside.
        mark: the training's fingerprint.
        final: where the checkpoint goes.
        address: the Ray cluster.

    Raises:
        WorkFailed: there is nothing to learn from.
    """
    rows = prepared.rows("train")
    tokens = round(prepared.profile["tokens"]["train"]["mean"] * rows)
    used = rows_taken(rows, tokens, config.train.max_rows)
    console.say("train", f"one process of one thread, {used:,} rows, words and runs of up to {config.model.ngrams}")
    if used < min(rows, config.train.max_rows or rows):
        console.warn("train", f"the linear model takes {MAX_TOKENS:,} tokens at most: "
                     f"{used:,} of {rows:,} rows are used, a stratified sample")  # fmt: skip
    left_out = on_one_core(address, _work, config.model_dump(mode="json"), str(prepared.place), card, mark, str(final))
    if left_out:
        console.warn("train", f"{left_out:,} of the rarer n-grams have no weight: with {len(prepared.labels):,} labels "
                     f"there would be over {MAX_WEIGHTS:,} weights")  # fmt: skip


def on_one_core(address: str | None, function: Any, *arguments: Any) -> Any:
    """Call a function on one thread: as a task of the cluster where one is named, else here, without starting Ray.

    Raises:
        UserError, WorkFailed: it raised one, or its process was lost.
    """
    if not cluster.is_named(address):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(threads)
    cluster.connect(address)
    import ray

    try:
        return ray.get(ray.remote(num_cpus=1, max_retries=2)(function).remote(*arguments))
    except Exception as e:
        ours = cluster.our_error(e)
        if ours is not None:
            raise ours from None
        last = (str(e).strip().splitlines() or [type(e).__name__])[-1]
        raise WorkFailed(f"fitting the linear model stopped: {last}") from e


def _work(settings: dict[str, Any], where: str, card: dict[str, Any], mark: str, final: str) -> int:
    began = time.monotonic()
    config, prepared = Config.model_validate(settings), Prepared.open(where)
    rows = take(prepared.tokens("train"), config.train.max_rows, config.seed)
    held_out = prepared.tokens("validation") if prepared.rows("validation") else rows
    validation = sampled(held_out, config.train.validation_rows, config.seed)
    with local_folder(prepared.place / "tokenizer") as tokenizer, tempfile.TemporaryDirectory() as temporary:
        fitted = fit(
            rows, validation if held_out is not rows else None, prepared.labels, special_ids(tokenizer),
            card["pad_id"], config.model.ngrams, config.seed, config.train.class_weights,
        )  # fmt: skip
        scores = logits(fitted.model, validation)
        figures = metrics.summary(validation.labels, np.exp(log_softmax(scores, axis=1)), prepared.labels)
        seconds = round(time.monotonic() - began, 3)
        entry = {
            "step": fitted.passes,
            "epoch": fitted.passes,
            "loss": round(fitted.loss, 6),
            "validation_loss": round(_loss(scores, validation.labels), 6),
            "validation_accuracy": figures["accuracy"],
            "validation_macro_f1": figures["macro_f1"],
            "learning_rate": None,
            "seconds": seconds,
        }
        facts = {
            "fingerprint": mark, "layout": "1 process x 1 CPU", "cluster": {"cpus": 1, "gpus": 0},
            "steps": fitted.passes, "rows": len(rows),
            "features": fitted.model.config.features, "ngrams_left_out": fitted.left_out,
            "seconds": seconds, "history": [entry],
        }  # fmt: skip
        build.quiet()
        folder = Path(temporary) / "checkpoint"
        told = {k: v for k, v in figures.items() if k != "confusion"}  # it grows with the square of the classes
        full = {**card, "metrics": {"validation": told}, "training": facts}
        checkpoint.save_model(fitted.model, tokenizer, full, folder)
        put_folder(folder, Place.of(final), checkpoint.CARD)
    return fitted.left_out
