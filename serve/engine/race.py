"""Every runtime of a network on the same rows, in turn: how fast each is, and how often it answers alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import first_line
from pipeline.evaluate.classifier import Classifier, Runtime
from pipeline.evaluate.golden import Golden
from pipeline.train import batches
from serve.engine import runtimes
from serve.engine.choice import Measured, best_size

MIN_ROWS = 200  # golden rows; one in 200 is what may differ
MAX_ROWS = 1_000
SINGLES, LEAST_SINGLES = 100, 40  # texts that are run alone
CACHED_TOKENS = 512  # a larger batch takes long enough to fetch what it needs
TOGETHER = 8  # of them that a runtime takes in a row
SIZES = (256, 512, 1_024)  # of batches that are tried beside the largest, in tokens
BUDGET_S = 90.0  # of measuring; MIN_ROWS are run in the largest batches even so


class Race:
    """Runtimes that take a few batches in turn, how often each answered as the first of them did, and how often right.

    Attributes:
        seen: rows run, each as often as it was.
        same, right: of them, by runtime.
        failed: why a runtime is out of it.
    """

    def __init__(
        self,
        every: dict[str, Runtime],
        classifier: Classifier,
        ids: Sequence[Any],
        labels: Any,
        clock: Callable[[], float],
    ) -> None:
        self.runtimes = every
        self._classifier, self._ids, self._labels, self._clock = classifier, ids, labels, clock
        self.seen = 0
        self.same, self.right = dict.fromkeys(every, 0), dict.fromkeys(every, 0)
        self.failed: dict[str, str] = {}

    def run(self, some: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        """Seconds of each of some batches by runtime, of those that fail no longer.

        A runtime takes all of them before the next one does, and the first of them once more beforehand if it is small:
        in a replica it is alone, and finds its weights in the processor's caches where the one before left its own.
        """
        padded = [self._classifier.padded([self._ids[i] for i in rows]) for rows in some]
        seconds: dict[str, list[float]] = {}
        said: dict[str, list[Any]] = {}
        for name, runtime in self.runtimes.items():
            if name in self.failed:
                continue
            took, found = [], []
            try:
                if padded[0][0].size <= CACHED_TOKENS:
                    runtime(*padded[0])
                for inputs, mask in padded:
                    began = self._clock()
                    found.append(runtime(inputs, mask).argmax(1))
                    took.append(self._clock() - began)
            except Exception as e:  # a runtime may raise anything; then it does not serve
                if name == runtimes.TORCH:
                    raise
                self.failed[name] = f"cannot run: {first_line(e)[:200]}"
                continue
            seconds[name], said[name] = took, found
        for at, rows in enumerate(some):
            self.seen += len(rows)
            for name, found in said.items():
                self.same[name] += int((found[at] == said[runtimes.TORCH][at]).sum())
                self.right[name] += int((found[at] == self._labels[list(rows)]).sum())
        return seconds


def measure(
    classifier: Classifier,
    golden: Golden,
    made: dict[str, Runtime],
    batch_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measured]:
    """Time each runtime on golden rows, alone and in batches of several sizes, and compare its answers.

    Args:
        classifier: the network as evaluated, which comes first.
        golden: the rows.
        made: the other runtimes.
        batch_tokens: the largest batch, rows x longest.
        clock: seconds.
    """
    golden = golden.head(MAX_ROWS)
    ids = classifier.encode(golden.texts).ids
    lengths = np.array([len(i) for i in ids])
    order = np.argsort(-lengths, kind="stable")
    mix = np.random.default_rng(0)
    race = Race({runtimes.TORCH: classifier.as_evaluated, **made}, classifier, ids, golden.labels, clock)
    began = clock()
    alone: dict[str, list[float]] = {}
    spaced = mix.permutation(order[:: max(1, len(order) // SINGLES)])
    for start in range(0, len(spaced), TOGETHER):
        for name, took in race.run([[int(i)] for i in spaced[start : start + TOGETHER]]).items():
            alone.setdefault(name, []).extend(took)
        if len(alone[runtimes.TORCH]) >= LEAST_SINGLES and clock() - began > BUDGET_S / 4:
            break
    rates: dict[str, list[tuple[int, float]]] = {n: [(1, len(s) / max(sum(s), 1e-9))] for n, s in alone.items()}
    each: dict[str, list[float]] = {name: [] for name in alone}  # seconds of a token in batches of a size
    sizes = [*(size for size in SIZES if size < batch_tokens), batch_tokens]
    for size in reversed(sizes):
        # Batches from all over the range of lengths first: the time may end before all have had their turn.
        cut = list(batches.cut(order, lengths[order], size))
        cut = [cut[at] for at in mix.permutation(len(cut))]
        until = clock() + BUDGET_S * (0.75 / len(sizes))
        rows_done, tokens, spent = 0, 0, dict.fromkeys(alone, 0.0)
        together = max(1, TOGETHER * SIZES[0] // (4 * size))
        for start in range(0, len(cut), together):
            some = [[int(i) for i in rows] for rows in cut[start : start + together]]
            for name, took in race.run(some).items():
                spent[name] += sum(took)
            rows_done += sum(map(len, some))
            tokens += sum(len(rows) * int(lengths[rows].max()) for rows in some)  # padding included
            # Agreement is looked at in the largest ones; a rate needs fewer rows.
            enough, late = rows_done >= MIN_ROWS, clock() > until
            if (enough and late) or (size < batch_tokens and (enough or late)):
                break
        for name, seconds in spent.items():
            rates[name].append((size, rows_done / max(seconds, 1e-9)))
            each[name].append(seconds / max(1, tokens))
    middle = float(lengths[spaced].mean())
    return [
        Measured(name, failed=race.failed[name])
        if name in race.failed
        else _measured(name, race, alone[name], rates[name], min(each[name]), middle)
        for name in race.runtimes
    ]


def _measured(
    name: str, race: Race, alone: list[float], rates: list[tuple[int, float]], each: float, middle: float
) -> Measured:
    size, rate = best_size(rates)
    single = statistics.median(alone)
    right = {one: race.right[one] / max(1, race.seen) for one in (runtimes.TORCH, name)}
    return Measured(
        name,
        single_ms=1_000 * single,
        rows_per_s=rate,
        agreement=race.same[name] / max(1, race.seen),
        accuracy_loss=right[runtimes.TORCH] - right[name],
        pass_tokens=max(0.0, statistics.mean(alone) / max(each, 1e-12) - middle),
        batch_tokens=size,
        rates=tuple(sorted(rates)),
    )
