"""The rules: what becomes of feedback, and of the training rows that it speaks of."""

from __future__ import annotations

import pytest

from pipeline.retrain import merge
from pipeline.retrain.merge import Change, Merge, Said, settle, suspects_to_drop

LABELS = ["a", "b"]


def said(*rows: tuple[str, str, int]) -> list[Said]:
    return [Said(text.encode(), label, when) for text, label, when in rows]


def test_of_one_text_the_latest_counts() -> None:
    outcomes, counts = settle(said(("x", "a", 2), ("x", "b", 1), ("x", "a", 0), ("y", "b", 5)), LABELS)
    assert outcomes == [None, merge.SUPERSEDED, merge.REPEATED, None]
    assert counts == {b"x": 0, b"y": 3}


def test_without_a_time_what_is_said_is_older_than_all_else_and_the_last_of_equals_counts() -> None:
    outcomes, counts = settle(said(("x", "a", -1), ("x", "b", 0), ("x", "b", 0)), LABELS)
    assert outcomes == [merge.SUPERSEDED, merge.REPEATED, None]
    assert counts == {b"x": 2}


def test_what_contradicts_itself_at_one_time_counts_for_nothing() -> None:
    outcomes, counts = settle(said(("x", "a", 3), ("x", "b", 3), ("x", "a", 1)), LABELS)
    assert outcomes == [merge.CONTRADICTORY, merge.CONTRADICTORY, merge.SUPERSEDED]
    assert counts == {}


def test_unknown_labels_and_rows_without_a_text_are_told_apart() -> None:
    rows = [*said(("x", "c", 1)), Said(b"", "a", 1, usable=False), Said(b"y", "", 1, usable=False)]
    assert settle(rows, LABELS) == ([merge.UNKNOWN, merge.NO_TEXT, merge.NO_TEXT], {})


def test_held_out_rows_are_never_changed_nor_trained_on() -> None:
    job = Merge(said(("v", "a", 1), ("t", "b", 1), ("n", "a", 1)), LABELS, {"t:1": ("b", None)})
    job.held_out(["v:1", "t:1"], [b"v", b"t"], ["a", "a"])
    assert job.train(["r:1"], [b"r"], ["a"]) == []
    outcomes, new = job.finish()
    assert outcomes == [merge.HELD_OUT, merge.DISPUTES, merge.NEW]
    assert new == [2]
    assert job.corrections_held_out == ["t:1"]
    assert job.corrections_unmet == []


def test_training_rows_are_relabelled_and_what_is_known_is_confirmed() -> None:
    job = Merge(said(("p", "b", 1), ("q", "a", 1)), LABELS)
    assert job.train(["r:1", "r:2", "r:3"], [b"p", b"q", b"r"], ["a", "a", "a"]) == [Change(0, "b", merge.BY_FEEDBACK)]
    assert job.finish() == ([merge.RELABELS, merge.CONFIRMS], [])
    assert (job.read, dict(job.rows)) == (3, {merge.BY_FEEDBACK: 1})


def test_a_correction_counts_before_feedback_and_feedback_before_a_suspicion() -> None:
    job = Merge(
        said(("p", "b", 1), ("q", "a", 1), ("s", "b", 1)),
        LABELS,
        {"r:1": ("a", None), "r:2": ("", "a"), "r:4": ("b", "b"), "r:9": ("b", None), "r:5": ("b", "a")},
        suspects={"r:2", "r:3", "r:4", "r:6"},
    )
    ids = [f"r:{i}" for i in range(1, 7)]
    changes = job.train(ids, [b"p", b"q", b"s", b"t", b"u", b"w"], ["a", "a", "b", "a", "a", "a"])
    assert changes == [
        Change(1, "", merge.DROPPED),
        Change(3, "", merge.SUSPECT),  # its correction is about another label
        Change(4, "b", merge.BY_CORRECTION),
        Change(5, "", merge.SUSPECT),
    ]
    assert job.finish() == ([merge.OVERRULED, merge.OVERRULED, merge.CONFIRMS], [])
    assert job.corrections_stale == ["r:4"]
    assert job.corrections_unmet == ["r:9"]


def test_a_sample_keeps_what_somebody_has_spoken_of() -> None:
    job = Merge(said(("p", "b", 1), ("q", "a", 1)), LABELS, {"r:3": ("a", None)})
    ids, keys = ["r:1", "r:2", "r:3", "r:4", "r:5"], [b"p", b"q", b"r", b"s", b"t"]
    changes = job.train(ids, keys, ["a"] * 5, sampled=[False, False, False, False, True])
    assert changes == [Change(0, "b", merge.BY_FEEDBACK), Change(3, "", merge.LEFT_OUT)]


def test_suspects_are_dropped_only_where_sure_and_few_of_a_class() -> None:
    rows = [
        {"id": f"r:{i}", "split": split, "label": label, "confidence": sure}
        for i, (split, label, sure) in enumerate(
            [("test", "a", "0.99"), ("train", "a", "0.95"), ("train", "a", "0.5"), ("train", "a", "0.9"),
             ("train", "a", "0.99"), ("train", "b", "0.99")]
        )
    ]  # fmt: skip
    assert suspects_to_drop(rows, {"a": 40, "b": 19}, sure=0.9, most=0.05) == ["r:1", "r:3"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_order_of_blocks_does_not_matter(order: tuple[int, ...]) -> None:
    job = Merge(said(("p", "b", 1), ("t", "a", 1), ("n", "a", 1)), LABELS)
    for step in order:
        if step == 0:
            job.train(["r:1"], [b"p"], ["a"])
        elif step == 1:
            job.held_out(["t:1"], [b"t"], ["a"])
        else:
            job.train(["r:2"], [b"q"], ["b"])
    assert job.finish() == ([merge.RELABELS, merge.HELD_OUT, merge.NEW], [2])


def test_what_had_its_say_in_an_earlier_round_says_nothing_more() -> None:
    """A correction overruled it then, or prepare set it aside: else it would come back in every round."""
    rows = [Said(b"p", "b", 1, earlier=True), Said(b"n", "a", 1, earlier=True), Said(b"q", "b", 2)]
    job = Merge(rows, LABELS)
    assert job.train(["r:1", "r:2"], [b"p", b"q"], ["a", "a"]) == [Change(1, "b", merge.BY_FEEDBACK)]
    assert job.finish() == ([merge.EARLIER, merge.EARLIER, merge.RELABELS], [])
