"""What the big model buys: the linear model on the same training rows, scored on the same test rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from pipeline.config import Config
from pipeline.data import tokenize
from pipeline.data.prepared import Prepared, Tokens
from pipeline.evaluate import metrics
from pipeline.model.source import LINEAR
from pipeline.storage import local_folder
from pipeline.train import batches, linear

MAX_TRUNCATED = 0.02  # share of rows; fewer make no difference
MAX_TEXTS = 1_000_000
MAX_UNKNOWN = 0.01  # share of tokens; beyond it the run's vocabulary is not one for these texts


def baseline(card: dict[str, Any], prepared: Prepared, split: str, address: str | None) -> dict[str, Any] | None:
    """Fit the linear model on a run's own training rows, and score it.

    Args:
        card: of the checkpoint that is evaluated: its sample of the rows, its seed.
        prepared: the data.
        split: whose rows are scored.
        address: the Ray cluster.

    Returns:
        ``metrics.summary`` without its figures by class, with ``trained_on`` (rows), ``seconds`` (of reading, fitting
        and scoring) and ``tokens`` (which it read); None where the checkpoint is a linear model itself.
    """
    if card["kind"] == "linear":
        return None
    return dict(linear.on_one_core(address, _work, card["config"], str(prepared.place), split))


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


def _work(settings: dict[str, Any], where: str, split: str) -> dict[str, Any]:
    began = time.monotonic()
    config, prepared = Config.model_validate(settings), Prepared.open(where)
    rows, test, excluded, how = _tokens(prepared, split, config)
    model = linear.fit(
        rows, None, prepared.labels, excluded, 0, config.model.ngrams, config.seed, config.train.class_weights
    ).model
    summary = metrics.summary(test.labels, softmax(linear.logits(model, test).astype(np.float64), 1), prepared.labels)
    kept = {k: v for k, v in summary.items() if k not in ("confusion", "per_class", "log_loss", "ece")}
    seconds = round(time.monotonic() - began, 3)
    return {**kept, "trained_on": len(rows), "seconds": seconds, "tokens": how}


def _tokens(prepared: Prepared, split: str, config: Config) -> tuple[Tokens, Tokens, list[int], str]:
    """Training and test rows, the ids that are no words, and which tokens they are.

    Those that were prepared, unless they end before the text does; words of the training rows, where the run's
    vocabulary does not have enough of them (Chinese texts for an English model).
    """
    profile = prepared.profile["tokens"]["train"]
    strange = profile.get("unknown_share", 0.0) > MAX_UNKNOWN and config.model.name != "lstm"
    rows = prepared.rows("train")
    short = profile["truncated"] > MAX_TRUNCATED * rows and rows <= MAX_TEXTS  # texts are held in memory
    with local_folder(prepared.place / "tokenizer") as folder, tempfile.TemporaryDirectory() as temporary:
        train = linear.take(prepared.tokens("train"), config.train.max_rows, config.seed)
        if not (strange or short):
            return train, prepared.tokens(split), tokenize.special_ids(folder), "as prepared"
        table = prepared.table("train", ["text", "label"])
        labels = table["label"].to_numpy().astype(np.int64)
        chosen = batches.sample(labels, len(train), config.seed)
        texts, held_out = table["text"].take(pa.array(chosen)), prepared.table(split, ["text", "label"])
        how = "whole texts"
        if strange:
            folder, how = Path(temporary), "words of the training rows"
            words = (t.as_py() for t in texts)
            tokenize.train_wordpiece(words, LINEAR["model.vocab_size"], folder, whole_words=True)
        tokenizer = tokenize.TextTokenizer(folder, LINEAR["model.max_tokens"])
        test = _encoded(tokenizer, held_out["text"], held_out["label"].to_numpy().astype(np.int64))
        return _encoded(tokenizer, texts, labels[chosen]), test, tokenize.special_ids(folder), how


def _encoded(tokenizer: tokenize.TextTokenizer, texts: pa.ChunkedArray, labels: np.ndarray) -> Tokens:
    parts = [tokenizer.encode_arrow(chunk)[0] for chunk in texts.chunks]
    ids = [np.asarray(part.flatten().to_numpy(), np.int32) for part in parts]
    lengths = [np.diff(part.offsets.to_numpy()) for part in parts]
    offsets = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return Tokens(np.concatenate(ids), offsets, labels)
