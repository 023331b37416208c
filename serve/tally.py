"""What a model did since the lineup last changed, in numbers that add up over replicas. Plain values."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np

BOUNDS = tuple(0.001 * 1.25**i for i in range(48))  # seconds, 1 ms to 36 s; the last count is of what took longer


@dataclass
class Tally:
    """Counts of one model. ``compared`` and what follows are of a model that shadows another.

    Attributes:
        requests: that it was asked to answer.
        failed: of them, those it did not.
        texts: that it classified.
        confidence: sum over texts of the probability of their best label.
        labels: texts by best label.
        seconds: answered requests by duration, see ``BOUNDS``.
        compared: texts that both models classified.
        agreed: of them, those with the same best label.
        skipped: requests that were not copied, because texts were waiting.
    """

    requests: int = 0
    failed: int = 0
    texts: int = 0
    confidence: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)
    seconds: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    compared: int = 0
    agreed: int = 0
    skipped: int = 0

    def answered(self, probabilities: np.ndarray, names: list[str], seconds: float) -> None:
        """Count an answer: probabilities [texts, labels]."""
        self.requests += 1
        self.texts += len(probabilities)
        self.confidence += float(probabilities.max(1).sum())
        counts = np.bincount(probabilities.argmax(1)).tolist()
        for name, count in zip(names, counts, strict=False):  # no counts behind the last label that was found
            if count:
                self.labels[name] = self.labels.get(name, 0) + count
        self.seconds[bisect.bisect_left(BOUNDS, seconds)] += 1

    def refused(self) -> None:
        """Count a request that it did not answer."""
        self.requests += 1
        self.failed += 1

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        labels = dict(self.labels)
        for label, count in other.labels.items():
            labels[label] = labels.get(label, 0) + count
        return Tally(
            self.requests + other.requests, self.failed + other.failed, self.texts + other.texts,
            self.confidence + other.confidence, labels,
            [a + b for a, b in zip(self.seconds, other.seconds, strict=True)],
            self.compared + other.compared, self.agreed + other.agreed, self.skipped + other.skipped,
        )  # fmt: skip

    def quantile(self, q: float) -> float | None:
        """Seconds within which a share ``q`` of the answers came, rounded up to a bound; None where there are none."""
        rank = q * sum(self.seconds)
        running = 0
        for i, count in enumerate(self.seconds):
            running += count
            if count and running >= rank:
                return BOUNDS[min(i, len(BOUNDS) - 1)]
        return None
