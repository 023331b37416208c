"""What a search leaves behind: the best trial, the table, the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import Place
from tune.record import METRIC, Recorder, best_of, table

POINTS = [{"train.learning_rate": 1e-4, "train.batch_tokens": 2048} for _ in range(3)]


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    for i in (1, 2, 3):
        (tmp_path / "trials" / f"trial-{i:04d}").mkdir(parents=True)
    return Recorder(POINTS, Place.of(tmp_path), reports=2)


def report(score: float, step: int = 1) -> dict[str, Any]:
    return {METRIC: score, "step": step, "seconds": 1.5, "checkpoint_path": f"/c{step}", "other": object()}


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "trials").iterdir())


def test_best_is_the_earlier_of_equals() -> None:
    rows = [{"trial": t, "best": b} for t, b in [(3, 0.5), (1, None), (2, 0.5), (4, 0.4)]]
    best = best_of(rows)
    assert best is not None
    assert best["trial"] == 2
    assert best_of([{"trial": 1, "best": None}]) is None
    assert best_of([]) is None


def test_best_report_of_a_trial_keeps_its_checkpoint(recorder: Recorder) -> None:
    for step, score in enumerate([0.5, 0.7, 0.7, 0.6], 1):
        recorder.reported(0, report(score, step))
    row = recorder.rows[0]
    assert (row["best"], row["checkpoint"], len(row["history"]), row["status"]) == (0.7, "/c2", 4, "running")
    assert row["history"][0] == {"step": 1, METRIC: 0.5, "seconds": 1.5}


def test_ended_trials_free_their_disk_but_the_best(recorder: Recorder, tmp_path: Path) -> None:
    for step in (1, 2):
        recorder.reported(0, report(0.5, step))
    recorder.ended(0)
    assert kept(tmp_path) == ["trial-0001", "trial-0002", "trial-0003"]
    recorder.reported(1, report(0.9))
    recorder.ended(1)
    assert kept(tmp_path) == ["trial-0002", "trial-0003"]
    recorder.ended(2, "out of memory [gpu]")
    assert kept(tmp_path) == ["trial-0002"]
    assert [r["status"] for r in recorder.rows] == ["finished", "stopped early", "failed"]
    written = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert written == recorder.finish()


def test_table_is_sorted_best_first(recorder: Recorder) -> None:
    recorder.reported(1, report(0.9))
    recorder.reported(0, report(0.9))
    recorder.ended(2, "boom")
    header, lines = table(recorder.rows)
    assert header == ("trial", "learning_rate", "batch_tokens", "reports", "macro F1", "status")
    assert [line[0] for line in lines] == ["1 (default)", "2", "3"]
    assert lines[0][1:5] == ("0.0001", "2048", 1, "0.9000")
    assert lines[2][-2:] == ("-", "failed: boom")
    assert table([]) == (("trial", "reports", "macro F1", "status"), [])
