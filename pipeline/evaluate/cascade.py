"""Two models as one: the linear baseline answers where it is sure, the checkpoint's own network the rest.

How sure it must be is decided on validation rows. Sorted by confidence, the first k rows are answered by the linear
model; of those it loses l that the network gets right, and gains g the other way round. The k goes up in steps of a
twentieth of the rows, until accuracy might have fallen by more than ``BOUND``: until ``l - g + SURE * sqrt(l + g) >
BOUND * rows``. The square root is the standard error of the fall, in rows (McNemar 1947: l + g pairs that differ, signs
by chance), so each step is a test of "it falls by more" at 5%, and the first that is not passed ends them: in such a
sequence the 5% holds for whichever step is taken (Angelopoulos, Bates, Candes, Jordan and Lei, Learn then Test, 2021,
fixed sequence testing). The largest share that just fits, without a margin, cost more than that on other rows in half
of all draws of 2,000 rows; this one in 2% (``benchmarks/LOG.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.evaluate import calibration, metrics

if TYPE_CHECKING:  # see cascade_folder
    from pipeline.evaluate.baseline import Baseline

BOUND = 0.001  # by which accuracy may fall
SURE = 1.645  # standard errors: 95%, one-sided
STEPS = 20
MIN_ROWS = 500  # of validation; on fewer, not one row could be lost, and few would show it
MIN_SHARE = 0.1  # of the texts; below, the linear model costs more trouble than it saves time

Floats = npt.NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Point(_Part):
    """What one threshold does on validation rows.

    Attributes:
        threshold: the linear model answers where its confidence is this or more.
        share: of the rows that it answers.
        accuracy: of both together.
        lost: rows that the network alone would get right.
        gained: rows that it would get wrong.
    """

    threshold: Share
    share: Share
    accuracy: Share
    lost: Count
    gained: Count


class Figures(_Part):
    """The cascade on one split.

    Attributes:
        rows: of the split.
        share: of them that the linear model answers.
        accuracy: of both together.
        network: accuracy of the network alone.
        fall: of accuracy, 0 to 1.
        interval: of the fall, 95%, by the normal approximation for pairs.
        ece: calibration error of both together.
    """

    rows: Count
    share: Share
    accuracy: Share
    network: Share
    fall: float
    interval: tuple[float, float]
    ece: Share


class Record(_Part):
    """The content of ``cascade.json``.

    Attributes:
        format: of the file.
        network: version of the checkpoint that it belongs to.
        threshold: see ``Point``; None: there is no cascade.
        reason: why there is none.
        tokens: whether the linear model reads the network's token ids, or has a tokenizer of its own.
        temperature: of the linear model, fitted on the validation rows.
        validation, test: figures at the threshold; the test rows have chosen nothing.
        curve: shares rising.
        golden: logits of the linear model for the first golden rows of the checkpoint, [rows, labels].
    """

    format: Literal[1] = 1
    network: str
    threshold: Share | None = None
    reason: str | None = None
    tokens: Literal["shared", "own"] = "shared"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    validation: Figures | None = None
    test: Figures | None = None
    curve: tuple[Point, ...] = ()
    golden: tuple[tuple[float, ...], ...] = ()

    @model_validator(mode="after")
    def _one_of_two(self) -> Record:
        if (self.threshold is None) != (self.reason is not None):
            raise ValueError("it has either a threshold or a reason")
        if self.threshold is not None and self.validation is None:
            raise ValueError("it has a threshold and no figures")
        return self

    def figures(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {**self.model_dump(mode="json", exclude={"format", "network", "golden"}), "bound": BOUND}


@dataclass(frozen=True)
class Both:
    """Rows of a split with what both models say of them.

    Attributes:
        labels: true class ids, [rows].
        linear: logits of the linear model at temperature 1, [rows, labels].
        network: calibrated probabilities of the network, [rows, labels].
    """

    labels: npt.NDArray[np.int64]
    linear: Floats
    network: Floats

    def together(self, temperature: float, threshold: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Probabilities of the cascade, and which rows the linear model answers."""
        linear = calibration.probabilities_of(self.linear, temperature)
        sure = settled(linear, threshold)
        return np.where(sure[:, None], linear, self.network), sure


def settled(probabilities: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """Which rows the linear model answers, by its calibrated probabilities [rows, labels]."""
    return np.asarray(probabilities.max(1) >= threshold)


def curve(labels: npt.NDArray[np.int64], linear: Floats, network: Floats) -> tuple[Point, ...]:
    """Thresholds for each twentieth of the rows, the strictest first; rows of one confidence go together.

    Args:
        labels: true class ids, [rows], at least one.
        linear: calibrated probabilities of the linear model, [rows, labels].
        network: those of the network.
    """
    rows = len(labels)
    confidence = linear.max(1)
    order = np.argsort(-confidence, kind="stable")
    ours, theirs = (linear.argmax(1) == labels)[order], (network.argmax(1) == labels)[order]
    lost, gained = np.cumsum(theirs & ~ours), np.cumsum(ours & ~theirs)
    falling = confidence[order]
    last = np.flatnonzero(np.append(falling[1:] < falling[:-1], True))  # of the rows of each confidence
    wanted = -(-np.arange(1, STEPS + 1) * rows // STEPS) - 1
    points = []
    for end in np.unique(last[np.searchsorted(last, wanted)]).tolist():
        threshold = 0.0
        if end + 1 < rows:  # between two confidences: another machine does not give the same to the last digit
            middle = (falling[end] + falling[end + 1]) / 2
            threshold = float(max(middle, np.nextafter(falling[end + 1], 1.0)))
        right = int(theirs.sum() - lost[end] + gained[end])
        points.append(
            Point(threshold=min(1.0, threshold), share=(end + 1) / rows, accuracy=right / rows,
                  lost=int(lost[end]), gained=int(gained[end]))
        )  # fmt: skip
    return tuple(points)


def chosen(points: tuple[Point, ...], rows: int) -> Point | None:
    """The last point before accuracy might have fallen by more than ``BOUND``, see above; None where none is."""
    best = None
    for point in points:
        if point.lost - point.gained + SURE * math.sqrt(point.lost + point.gained) > BOUND * rows + 1e-9:
            break
        best = point
    return best


def measured(both: Both, temperature: float, threshold: float) -> Figures:
    """The figures of rows, at least one."""
    together, sure = both.together(temperature, threshold)
    ours, theirs = together.argmax(1) == both.labels, both.network.argmax(1) == both.labels
    difference = theirs.astype(float) - ours
    fall, spread = float(difference.mean()), 1.96 * float(difference.std()) / math.sqrt(len(ours))
    return Figures(
        rows=len(ours), share=float(sure.mean()), accuracy=float(ours.mean()), network=float(theirs.mean()), fall=fall,
        interval=(fall - spread, fall + spread), ece=metrics.expected_calibration_error(both.labels, together),
    )  # fmt: skip


def judge(
    network: str, base: Baseline | None, validation: Both | None, test: Both | None, checked: Sequence[int]
) -> Record:
    """Whether the linear model may answer first, and from which confidence on.

    Args:
        network: version of the checkpoint.
        base: the linear model; None: there is none.
        validation: rows that decide; None: there are none.
        test: rows that are looked at once, when all is decided.
        checked: validation rows that are the first golden ones; the linear model's answers to them are kept.
    """
    if base is None:
        return Record(network=network, reason="there is no linear model beside this one")
    rows = 0 if validation is None else len(validation.labels)
    if validation is None or rows < MIN_ROWS:
        return Record(
            network=network, reason=f"{rows:,} validation rows, {MIN_ROWS} are needed to decide on a threshold"
        )
    temperature, _ = calibration.chosen_temperature(validation.labels, validation.linear, 1.0)
    points = curve(validation.labels, calibration.probabilities_of(validation.linear, temperature), validation.network)
    facts: dict[str, Any] = {"network": network, "temperature": temperature, "curve": points}
    facts["tokens"] = "shared" if base.shares_tokens else "own"
    best = chosen(points, rows)
    if best is None or best.share < MIN_SHARE:
        share = 0.0 if best is None else best.share
        short = f"the linear model could answer {share:.0%} of the validation rows, under {MIN_SHARE:.0%}"
        return Record(**facts, reason=f"{short}, before accuracy might fall by more than {100 * BOUND:g} points")
    return Record(
        **facts,
        threshold=best.threshold,
        validation=measured(validation, temperature, best.threshold),
        test=measured(test, temperature, best.threshold) if test is not None and len(test.labels) else None,
        golden=tuple(tuple(row) for row in validation.linear[np.asarray(checked, np.int64)].tolist()),
    )


def line(figures: Mapping[str, Any]) -> str:
    """For a person: what the cascade does, by ``Record.figures``."""
    if figures["threshold"] is None:
        return f"no cascade: {figures['reason']}"
    said = ", ".join(
        f"{split} accuracy {of['accuracy']:.4f} ({-100 * of['fall']:+.2f} points, {of['share']:.0%} of the rows)"
        for split in ("validation", "test") if (of := figures[split])
    )  # fmt: skip
    return f"cascade: the linear model answers where its confidence is {figures['threshold']:.3f} or more; {said}"
