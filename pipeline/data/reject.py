"""Why a row does not reach the prepared data. Every rejected row is written out with one of these reasons."""

from __future__ import annotations

UNREADABLE = "unreadable row"
MISSING_TEXT = "missing text"
MISSING_LABEL = "missing label"
UNKNOWN_LABEL = "unknown label"
EMPTY = "empty after cleaning"
TOO_SHORT = "too short"
NOT_IN_TRAIN = "label not in train"
DISPUTED = "conflicting labels"
DROPPED = "dropped by correction"

REASONS = {
    UNREADABLE: "the parser could not read the row; 'detail' says why",
    MISSING_TEXT: "every text column is null or blank",
    MISSING_LABEL: "the label column is null or blank",
    UNKNOWN_LABEL: "the label is not among data.labels",
    EMPTY: "nothing was left after the cleaning rules",
    TOO_SHORT: "fewer characters than data.min_chars after cleaning",
    NOT_IN_TRAIN: "the label occurs in validation or test only: no model could learn it",
    DISPUTED: "the same text stands under several labels, and data.conflicts says to drop it",
    DROPPED: "data.corrections lists the row without a label",
}

# The stage that found each reason.
STAGES = {reason: "label" if "label" in reason else "read" for reason in REASONS}
STAGES |= {EMPTY: "clean", TOO_SHORT: "clean", DISPUTED: "duplicates", DROPPED: "label"}
