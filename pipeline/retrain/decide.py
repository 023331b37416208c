"""Whether the new model takes the place of the serving one: a rule over the figures of ``evaluate.compare``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate import compare


@dataclass(frozen=True)
class Decision:
    """The decision.

    Attributes:
        promote: whether the new model should serve.
        reason: a sentence with the figures.
    """

    promote: bool
    reason: str


def decide(result: Mapping[str, Any], names: tuple[str, str]) -> Decision:
    """Promote only what is significantly more accurate on test rows, and not at the cost of the small classes.

    Args:
        result: of ``compare.compare(new, serving)``.
        names: of the two.
    """
    said = compare.verdict(result, names)
    if result["split"] != "test":
        return Decision(False, f"{said}; but these are {result['split']} rows, which chose the new model")
    if result["p"] >= compare.ALPHA or result["difference"]["value"] <= 0:
        return Decision(False, said)
    low, high = result["difference_macro_f1"]["interval"]
    if high < 0:
        return Decision(
            False, f"{said}; but its macro F1 is lower (95% {low:+.4f} to {high:+.4f}): a class pays for it"
        )
    return Decision(True, said)
