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
        rows_per_s: texts a second in batches of like lengths.
        agreement: share of rows, 0 to 1, whose best label is that of the network as evaluated.
        accuracy_loss: accuracy of the network as evaluated less this one's, on the same rows.
        pass_tokens: what one forward pass costs whatever is in it, in tokens that the same time would do in a batch.
        failed: why it could not be made or run; the figures are 0 then.
    """

    name: str
    single_ms: float = 0.0
    rows_per_s: float = 0.0
    agreement: float = 0.0
    accuracy_loss: float = 0.0
    pass_tokens: float = 0.0
    failed: str | None = None

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
    """The runtime for single texts and the one for batches."""

    single: str
    batch: str


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
    return Choice(single.name, batch.name)


def lines(measured: Sequence[Measured], choice: Choice) -> list[str]:
    """A table for people, one line per runtime."""
    table = []
    for one in measured:
        if one.failed is not None:
            table.append(f"{one.name:<10} {one.failed}")
            continue
        uses = [use for use, name in (("single texts", choice.single), ("batches", choice.batch)) if name == one.name]
        said = f"serves {' and '.join(uses)}" if uses else (one.refusal or "slower")
        table.append(
            f"{one.name:<10} {one.single_ms:7.1f} ms a text  {one.rows_per_s:8.1f} texts/s in batches  "
            f"agrees {one.agreement:7.2%}  {said}"
        )
    return table
