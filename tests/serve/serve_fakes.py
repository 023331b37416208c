"""A stand-in for the engine: word counts instead of a network, so that answers can be predicted."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from pipeline.evaluate.passes import ANY


class FakeEngine:
    """Tokens are words; the label is the last word if it is one of ``labels``, else the first label."""

    labels = ["business", "science", "sport", "world"]  # noqa: RUF012
    version = "fake-1"
    max_tokens = 16
    passes = ANY
    runs = {"single": "fake", "batch": "fake"}  # noqa: RUF012

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.entered = 0
        self.gate = threading.Event()
        self.gate.set()

    def as_it_is(self) -> None:
        self.runs = {"single": "torch", "batch": "torch"}

    def encode(self, texts: Sequence[str]) -> SimpleNamespace:
        words = [t.split() or [""] for t in texts]
        ids = [np.array([self.labels.index(w) if w in self.labels else 9 for w in ws], np.int32) for ws in words]
        return SimpleNamespace(
            ids=[row[-self.max_tokens :] for row in ids],
            truncated=[len(row) > self.max_tokens for row in ids],
            cleaned=list(texts),
        )

    def all_logits(self, ids: Sequence[np.ndarray], batch_tokens: int, large: bool = False) -> np.ndarray:
        return self.logits(ids)

    def length(self, text: str) -> int:
        return len(text.split())

    def words(self, cleaned: str) -> list[tuple[int, int]]:
        return [m.span() for m in re.finditer(r"\S+", cleaned)][: self.max_tokens]

    def with_states(self, ids: Sequence[np.ndarray], batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """A state is which labels occur in the text."""
        states = np.array([[float((row == i).any()) for i in range(len(self.labels))] for row in ids], np.float32)
        return self.logits(ids), states

    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        self.entered += 1
        self.gate.wait(20)
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread().name)
        self.batches.append([len(row) for row in ids])
        if any((row == self.labels.index("sport")).sum() > 1 for row in ids):
            raise RuntimeError("sport twice breaks this model")
        out = np.zeros((len(ids), len(self.labels)), np.float32)
        for i, row in enumerate(ids):
            out[i, row[-1] if row[-1] < len(self.labels) else 0] = 3.0
        return out

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits)
        return e / e.sum(axis=1, keepdims=True)
