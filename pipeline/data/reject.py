"""Why a row does not reach the prepared data. Every rejected row is written out with one of these reasons."""

from __future__ import annotations

UNREADABLE = "unreadable row"
MISSING_TEXT = "missing text"
MISSING_LABEL = "missing label"
UNKNOWN_LABEL = "unknown label"
EMPTY = "empty after cleaning"
TOO_SHORT = "too short"
NOT_IN_TRAIN = "label not in train"

REASONS = {
    UNREADABLE: "the parser could not read the row; 'detail' says why",
    MISSING_TEXT: "every text column is null or blank",
    MISSING_LABEL: "the label column is null or blank",
    UNKNOWN_LABEL: "the label is not among data.labels",
    EMPTY: "nothing was left after the cleaning rules",
    TOO_SHORT: "fewer characters than data.min_chars after cleaning",
    NOT_IN_TRAIN: "the label occurs in validation or test only: no model could learn it",
}


def reason_for(text: str, raw: str | None, label: str | None, min_chars: int) -> str | None:
    """The reason to reject a cleaned row, or None to keep it.

    Args:
        text: the cleaned text.
        raw: the text as read; None or blank where it was missing.
        label: the label as read and named; None where it was missing.
        min_chars: the shortest text kept.
    """
    if raw is None or not raw.strip():
        return MISSING_TEXT
    if label is None:
        return MISSING_LABEL
    if not text:
        return EMPTY
    if len(text) < min_chars:
        return TOO_SHORT
    return None
