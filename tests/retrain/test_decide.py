"""The rule of promotion, on figures of two sides."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.retrain.decide import decide


def result(value: float, p: float, macro: tuple[float, float] = (0.0, 0.1), split: str = "test") -> dict[str, Any]:
    return {
        "p": p,
        "split": split,
        "difference": {"value": value, "interval": [value - 0.01, value + 0.01]},
        "difference_macro_f1": {"value": sum(macro) / 2, "interval": list(macro)},
    }


@pytest.mark.parametrize(
    ("figures", "promote", "said"),
    [
        (result(0.05, 0.001), True, "new is better: +5.00 points"),
        (result(0.05, 0.05), False, "no significant difference: new +5.00"),
        (result(-0.05, 0.001), False, "old is better: +5.00"),
        (result(0.0, 1.0), False, "no difference in accuracy"),
        (result(0.05, 0.001, macro=(-0.2, -0.01)), False, "its macro F1 is lower (95% -0.2000 to -0.0100)"),
        (result(0.05, 0.001, macro=(-0.2, 0.01)), True, "new is better"),
        (result(0.05, 0.001, split="validation"), False, "these are validation rows, which chose the new model"),
    ],
)
def test_only_what_is_significantly_better(figures: dict[str, Any], promote: bool, said: str) -> None:
    decision = decide(figures, ("new", "old"))
    assert decision.promote is promote
    assert said in decision.reason
