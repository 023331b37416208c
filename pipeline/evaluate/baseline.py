"""What the big model buys: the linear model on the same training rows, scored on the same test rows.

It may also answer before the big one, see ``pipeline.evaluate.cascade``.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import softmax

from pipeline.config import Config
from pipeline.data import tokenize
from pipeline.data.prepared import Head, Prepared, Tokens
from pipeline.evaluate import metrics
from pipeline.folders import local_folder
from pipeline.model.linear import LinearForSequenceClassification
from pipeline.model.source import LINEAR
from pipeline.train import batches, linear

MAX_TRUNCATED = 0.02  # share of rows; fewer make no difference
MAX_TEXTS = 1_000_000
SHARED = "as prepared"
MAX_UNKNOWN = 0.01  # share of tokens; beyond it the run's vocabulary is not one for these texts


@dataclass(frozen=True)
class Baseline:
    """A fitted linear model, and what it says.

    Attributes:
        figures: ``metrics.summary`` of the test rows without its figures by class, with ``trained_on`` (rows),
            ``seconds`` (of reading, fitting and scoring) and ``tokens`` (which it read, see ``SHARED``).
        test: logits of the test rows, [rows, labels].
        validation: the same of validation rows; None where none were asked for.
        model: the network.
        tokenizer: the files of its tokenizer, by name.
        max_tokens: it reads of a text.
    """

    figures: dict[str, Any]
    test: npt.NDArray[np.float32]
    validation: npt.NDArray[np.float32] | None
    model: LinearForSequenceClassification
    tokenizer: dict[str, bytes]
    max_tokens: int

    @property
    def shares_tokens(self) -> bool:
        """Whether it reads the very tokens that the checkpoint's own network reads."""
        return bool(self.figures["tokens"] == SHARED)


def baseline(
    card: dict[str, Any], prepared: Prepared, split: str, address: str | None, validation_rows: int = 0
) -> Baseline | None:
    """Fit the linear model on a run's own training rows, and score it.

    Args:
        card: of the checkpoint that is evaluated: its sample of the rows, its seed.
        prepared: the data.
        split: whose rows are scored.
        address: the Ray cluster.
        validation_rows: that are scored besides, of the first shards that hold them; 0: none.

    Returns:
        The model and its figures; None where the checkpoint is a linear model itself.
    """
    if card["kind"] == "linear":
        return None
    found: Baseline = linear.on_one_core(address, _work, card["config"], str(prepared.place), split, validation_rows)
    return found


def line(figures: dict[str, Any], accuracy: float) -> str:
    """For a person: what it reaches, how fast, and what the model adds."""
    gain = 100 * (accuracy - figures["accuracy"])
    return (
        f"linear baseline {figures['accuracy']:.4f} in {figures['seconds']:.0f} s; "
        f"this model {accuracy:.4f} ({gain:+.1f} points)"
    )


def warning(figures: dict[str, Any] | None, accuracy: float) -> str | None:
    """A sentence, if the model is not worth its training."""
    if figures is None or accuracy > figures["accuracy"]:
        return None
    return (
        f"WARN the linear baseline, fitted in {figures['seconds']:.0f} s on the same rows, is as good or better "
        f"({figures['accuracy']:.4f} against {accuracy:.4f}): train longer or on more rows, or take --model linear"
    )


@dataclass(frozen=True)
class _Read:
    """Rows as the linear model reads them, the ids that are no words, and which tokens these are."""

    train: Tokens
    held_out: list[Tokens]
    excluded: list[int]
    how: str
    tokenizer: dict[str, bytes]
    max_tokens: int


def _work(settings: dict[str, Any], where: str, split: str, validation_rows: int) -> Baseline:
    began = time.monotonic()
    config, prepared = Config.model_validate(settings), Prepared.open(where)
    held_out = [(prepared, split)]
    if validation_rows:
        held_out.append((Head.of(prepared, validation_rows), "validation"))
    rows = _read(prepared, held_out, config)
    model = linear.fit(
        rows.train, None, prepared.labels, rows.excluded, 0, config.model.ngrams, config.seed,
        config.train.class_weights,
    ).model  # fmt: skip
    test, *validation = (linear.logits(model, tokens) for tokens in rows.held_out)
    summary = metrics.summary(rows.held_out[0].labels, softmax(test.astype(np.float64), 1), prepared.labels)
    kept = {k: v for k, v in summary.items() if k not in ("confusion", "per_class", "log_loss", "ece")}
    seconds = round(time.monotonic() - began, 3)
    figures = {**kept, "trained_on": len(rows.train), "seconds": seconds, "tokens": rows.how}
    return Baseline(figures, test, validation[0] if validation else None, model, rows.tokenizer, rows.max_tokens)


def _read(prepared: Prepared, held_out: list[tuple[Prepared, str]], config: Config) -> _Read:
    """Training rows, and the held-out ones: a split of each view of the data.

    They are tokens as prepared, unless they end before the text does; words of the training rows, where the run's
    vocabulary does not have enough of them (Chinese texts for an English model).
    """
    profile = prepared.profile["tokens"]["train"]
    strange = profile.get("unknown_share", 0.0) > MAX_UNKNOWN and config.model.name != "lstm"
    rows = prepared.rows("train")
    short = profile["truncated"] > MAX_TRUNCATED * rows and rows <= MAX_TEXTS  # texts are held in memory
    with local_folder(prepared.place / "tokenizer") as folder, tempfile.TemporaryDirectory() as temporary:
        train = linear.take(prepared.tokens("train"), config.train.max_rows, config.seed)
        if not (strange or short):
            return _Read(
                train, [data.tokens(split) for data, split in held_out], tokenize.special_ids(folder), SHARED,
                _files(folder), config.model.max_tokens,
            )  # fmt: skip
        table = prepared.table("train", ["text", "label"])
        labels = table["label"].to_numpy().astype(np.int64)
        chosen = batches.sample(labels, len(train), config.seed)
        texts, how = table["text"].take(pa.array(chosen)), "whole texts"
        if strange:
            folder, how = Path(temporary), "words of the training rows"
            words = (t.as_py() for t in texts)
            tokenize.train_wordpiece(words, LINEAR["model.vocab_size"], folder, whole_words=True)
        tokenizer = tokenize.TextTokenizer(folder, LINEAR["model.max_tokens"])
        others = []
        for data, split in held_out:
            part = data.table(split, ["text", "label"])
            others.append(_encoded(tokenizer, part["text"], part["label"].to_numpy().astype(np.int64)))
        return _Read(
            _encoded(tokenizer, texts, labels[chosen]), others, tokenize.special_ids(folder), how,
            _files(folder), LINEAR["model.max_tokens"],
        )  # fmt: skip


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def _encoded(tokenizer: tokenize.TextTokenizer, texts: pa.ChunkedArray, labels: np.ndarray) -> Tokens:
    parts = [tokenizer.encode_arrow(chunk)[0] for chunk in texts.chunks]
    ids = [np.asarray(part.flatten().to_numpy(), np.int32) for part in parts]
    lengths = [np.diff(part.offsets.to_numpy()) for part in parts]
    offsets = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return Tokens(np.concatenate(ids), offsets, labels)
