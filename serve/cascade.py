"""The linear model in front of the network (``serve.cascade``): which texts it settles, and the way to get it.

It runs where texts are tokenized, not in the queue: what it settles never waits for the network, and takes nothing from
those who do. ``pipeline.evaluate.cascade`` says from which confidence on it may answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluate import cascade_folder
from pipeline.evaluate.cascade import Record, settled
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place

if TYPE_CHECKING:
    from serve.service import Encoded, Engine

log = logging.getLogger("ray.serve")

BATCH_TOKENS = 16_384  # of one pass of the linear model, for which padding is nearly free


class Settled(NamedTuple):
    """What the linear model says of the texts of a request.

    Attributes:
        probabilities: calibrated, [texts, labels].
        sure: of which texts it is sure enough, [texts].
        seconds: it took.
    """

    probabilities: np.ndarray
    sure: np.ndarray
    seconds: float

    def left(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tokens of the texts that the network must answer."""
        return [row for row, sure in zip(ids, self.sure, strict=True) if not sure]

    def completed(self, network: np.ndarray | None) -> np.ndarray:
        """Probabilities of all texts, in the order of the request; ``network`` are those of ``left``, None of none."""
        if network is None:
            return self.probabilities
        probabilities = self.probabilities.copy()
        probabilities[~self.sure] = network
        return probabilities


@dataclass(frozen=True)
class Cascade:
    """A linear model, and how sure it must be.

    Attributes:
        linear: the model.
        threshold: it answers where its confidence is this or more.
        shares_tokens: whether it reads the network's tokens, or has a tokenizer of its own.
    """

    linear: Engine
    threshold: float
    shares_tokens: bool

    def logits(self, texts: Sequence[str], encoded: Encoded) -> np.ndarray:
        """Of raw texts that were encoded for the network, [texts, labels]."""
        ids = encoded.ids if self.shares_tokens else self.linear.encode(texts).ids
        return self.linear.all_logits(ids, BATCH_TOKENS)

    def settle(self, texts: Sequence[str], encoded: Encoded) -> Settled:
        """Answer the texts, and say which of the answers count. A score that is no number is not sure."""
        began = time.monotonic()
        probabilities = self.linear.probabilities(self.logits(texts, encoded))
        return Settled(probabilities, settled(probabilities, self.threshold), time.monotonic() - began)


def lacking(folder: Place) -> str | None:
    """Why a checkpoint has no cascade to serve, with the way out; None if it has.

    Raises:
        UserError: it has one that is damaged.
    """
    record = cascade_folder.read(folder)
    if record is None:
        return f"{folder} has no cascade: run 'broadsheet evaluate' on it"
    if record.threshold is None:
        return f"{folder} has no cascade: {record.reason}"
    cascade_folder.check(folder)
    return None


def load(folder: Place, engine: Engine, golden: Golden | None) -> Cascade | None:
    """The cascade of a checkpoint, checked; None where it has none: its network answers all, and the log says why.

    Args:
        folder: the checkpoint.
        engine: loaded from it.
        golden: of the checkpoint.

    Raises:
        UserError: it is damaged, belongs to another model, or does not answer golden rows as it did.
    """
    record = cascade_folder.read(folder)
    if record is None or record.threshold is None:
        log.warning("the network answers all texts: %s", lacking(folder))
        return None
    where = folder / cascade_folder.FOLDER
    linear = cascade_folder.load(folder)
    if record.network != engine.version or linear.labels != engine.labels:
        raise UserError(f"{where} is of another model: {cascade_folder.AGAIN}")
    cascade = Cascade(linear, record.threshold, record.tokens == "shared")
    failure = refusal(cascade, engine, record, golden)
    if failure is not None:
        raise UserError(f"{where} may not take traffic: {failure}: {cascade_folder.AGAIN}")
    return cascade


def refusal(cascade: Cascade, engine: Engine, record: Record, golden: Golden | None) -> str | None:
    """Why the linear model may not answer, by the golden rows of the checkpoint; None where it may."""
    if golden is None:
        return None
    rows = min(len(golden.texts), len(record.golden))
    known = Golden(golden.texts[:rows], golden.labels[:rows], np.array(record.golden[:rows], np.float32))
    return known.failure(lambda texts: cascade.logits(texts, engine.encode(texts)))
