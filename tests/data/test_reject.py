"""Which reason a cleaned row is rejected for."""

from __future__ import annotations

import pytest

from pipeline.data import reject


@pytest.mark.parametrize(
    ("text", "raw", "label", "reason"),
    [
        ("ab", "ab", "x", None),
        ("", None, None, reject.MISSING_TEXT),
        ("", " \n", "x", reject.MISSING_TEXT),
        ("ab", "ab", None, reject.MISSING_LABEL),
        ("", "<br>", "x", reject.EMPTY),
        ("a", "a", "x", reject.TOO_SHORT),
    ],
)
def test_reason(text: str, raw: str | None, label: str | None, reason: str | None) -> None:
    assert reject.reason_for(text, raw, label, 2) == reason
