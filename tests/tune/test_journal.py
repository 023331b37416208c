"""What a search leaves behind: the best trial, the table, the files that it goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from searching import entry, trial

from pipeline.errors import UserError
from pipeline.storage import Place
from tune.journal import Journal, best_of, table


def test_best_is_the_earlier_of_equals_and_never_a_failed_one() -> None:
    trials = [trial(1, [0.2]), trial(2, [0.5, 0.4]), trial(3, [0.5]), trial(4, [0.9], "failed"), trial(5)]
    best = best_of(trials)
    assert best is not None
    assert best.trial == 2
    assert best_of([trial(1)]) is None
    assert best_of([]) is None


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    trials = [trial(1, [0.2, 0.3]), trial(2, [0.1], "failed", error="no memory"), trial(3, arm="winner", phase="final")]
    trials[1].lineage.append({"round": 1, "from": 1})
    journal = Journal(Place.of(tmp_path), {"format": 2, "searched": {"seed": 1}}, trials)
    journal.write()
    again = Journal.load(Place.of(tmp_path))
    assert again is not None
    assert again.trials == trials
    assert again.facts == journal.facts
    assert Journal.load(Place.of(tmp_path / "other")) is None


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', "[]"])
def test_a_damaged_journal_is_told(damage: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(damage)
    with pytest.raises(UserError, match="another --name"):
        Journal.load(Place.of(tmp_path))


def test_a_score_from_before_a_crash_counts_once(tmp_path: Path) -> None:
    journal = Journal(Place.of(tmp_path), {}, [trial(1, status="waiting")])
    assert journal.reported(1, {**entry(1, 0.5), "config": {"a": 1}})
    assert not journal.reported(1, entry(1, 0.5))
    assert journal.reported(1, entry(2, 0.7))
    first = journal.get(1)
    assert (first.status, first.best, first.steps, first.seconds) == ("running", 0.7, 20, 1.5)
    assert "config" not in first.history[0]


def test_table_is_sorted_best_first_and_finals_last() -> None:
    trials = [trial(1, [0.9]), trial(2, [0.95, 0.9]), trial(3, status="failed", error="boom")]
    trials.append(trial(4, [0.99], phase="final", arm="winner", seed=5))
    header, lines = table(trials)
    assert header == ("trial", "learning_rate", "weight_decay", "scores", "steps", "macro F1", "status")
    assert [line[0] for line in lines] == ["2", "1\u00a0(default)", "3", "winner\u00a05"]
    assert lines[0][1:] == ("0.002", "0.01", 2, "20", "0.9500", "finished")
    assert lines[2][-2:] == ("-", "failed: boom")
    assert table([]) == (("trial", "scores", "steps", "macro F1", "status"), [])
