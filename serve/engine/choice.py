"""Which runtime serves, from what was measured. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FOLDER = "engines"  # of a checkpoint, with what was measured and the files of what was chosen
AGREEMENT = 0.995  # of best labels with the network as evaluated
ACCURACY_LOSS = 0.003
WORTH_IT = 1.05  # times as fast, or the network as evaluated goes on serving


@dataclass(frozen=True)
class Measured:
    """One runtime on one kind of machine.

    Attributes:
        name: of ``runtimes.NAMES``.
        single_ms: median milliseconds of one text alone.
        rows_per_s: texts a second in batches of like lengths, of the size that ``best_size`` picks.
        agreement: share of rows, 0 to 1, whose best label is that of the network as evaluated.
        accuracy_loss: accuracy of the network as evaluated less this one's, on the same rows.
        pass_tokens: what one forward pass costs whatever is in it, in tokens that the same time would do in a batch.
        failed: why it could not be made or run; the figures are 0 then.
        batch_tokens: the size of batch of ``rows_per_s``, rows x longest; 1: texts one by one.
        rates: texts a second by size, the smallest first.
    """

    name: str
    single_ms: float = 0.0
    rows_per_s: float = 0.0
    agreement: float = 0.0
    accuracy_loss: float = 0.0
    pass_tokens: float = 0.0
    failed: str | None = None
    batch_tokens: int = 0
    rates: tuple[tuple[int, float], ...] = ()

    @property
    def refusal(self) -> str | None:
        """Why it may not serve; None where it may."""
        if self.failed is not None:
            return self.failed
        if self.agreement < AGREEMENT:
            return f"agrees on {self.agreement:.2%} of the rows only ({AGREEMENT:.1%} asked)"
        if self.accuracy_loss > ACCURACY_LOSS:
            return f"loses {100 * self.accuracy_loss:.2f} points of accuracy ({100 * ACCURACY_LOSS:.1f} allowed)"
        return None


@dataclass(frozen=True)
class Choice:
    """What serves.

    Attributes:
        single: the runtime for texts alone and small batches.
        batch: the runtime for large ones.
        batch_tokens: the most of a batch, rows x longest; 0: as configured, as the largest tried is fastest.
        large_from: the size from which a batch is large; 0: all are.
    """

    single: str
    batch: str
    batch_tokens: int = 0
    large_from: int = 0


def best_size(rates: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The size of batch at which a runtime is fastest, and how fast: a smaller one only where that is ``WORTH_IT``.

    Larger is not always faster: what a batch holds no longer fits into a core's cache at some point.

    Args:
        rates: texts a second by size, at least one.
    """
    best, *smaller = sorted(rates, reverse=True)
    for one in smaller:
        if one[1] > best[1] * WORTH_IT:
            best = one
    return best


def choose(measured: Sequence[Measured]) -> Choice:
    """The fastest of those that may serve, for single texts and for batches.

    Args:
        measured: the network as evaluated first; it serves wherever nothing else is ``WORTH_IT``.
    """
    reference, *others = measured
    allowed = [m for m in others if m.refusal is None]
    single = min([reference, *allowed], key=lambda m: m.single_ms)
    if single.single_ms * WORTH_IT > reference.single_ms:
        single = reference
    batch = max([reference, *allowed], key=lambda m: m.rows_per_s)
    if batch.rows_per_s < reference.rows_per_s * WORTH_IT:
        batch = reference
    if batch.batch_tokens == 1:  # no batch is faster than one text after the other
        batch = single
    largest = max((size for size, _ in batch.rates), default=0)
    most = 0 if batch.batch_tokens == largest else batch.batch_tokens
    return Choice(single.name, batch.name, most, 0 if single is batch else _large_from(single, batch))


def _large_from(single: Measured, batch: Measured) -> int:
    """The smallest size of batch from which on the runtime for batches is no slower than the one for single texts."""
    small, large = dict(single.rates), dict(batch.rates)
    sizes = sorted(size for size in small.keys() & large.keys() if 1 < size <= batch.batch_tokens)
    slower = [size for size in sizes if large[size] < small[size]]
    return min((size for size in sizes if size > max(slower)), default=sizes[-1]) if slower else 0


def lines(measured: Sequence[Measured], choice: Choice) -> list[str]:
    """A table for people, one line per runtime."""
    table = []
    for one in measured:
        if one.failed is not None:
            table.append(f"{one.name:<10} {one.failed}")
            continue
        large = f"batches from {choice.large_from:,} tokens on" if choice.large_from else "batches"
        small = "single texts and small batches" if choice.large_from else "single texts"
        uses = [use for use, name in ((small, choice.single), (large, choice.batch)) if name == one.name]
        said = f"serves {' and '.join(uses)}" if uses else (one.refusal or "slower")
        size = "one by one" if one.batch_tokens == 1 else f"in batches of {one.batch_tokens:,} tokens"
        table.append(
            f"{one.name:<10} {one.single_ms:7.1f} ms a text  {one.rows_per_s:8.1f} texts/s {size:<26}  "
            f"agrees {one.agreement:7.2%}  {said}"
        )
    return table
