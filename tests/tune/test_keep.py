"""The checkpoints that outlive a search are those that it announced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from searching import trial

from pipeline.storage import Place
from pipeline.train import trainer
from pipeline.train.store import Store
from tune import keep
from tune.journal import Trial


def exported(source: Path, out: Path, training: dict[str, Any]) -> None:
    """As ``trainer.export``, for a checkpoint that is one file."""
    out.mkdir()
    (out / "weights").write_text((source / "weights").read_text())
    (out / "broadsheet.json").write_text(json.dumps({"training": training}))


def test_a_trial_that_went_on_is_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "export", exported)

    def at(scores: list[float]) -> Trial:
        one = trial(2, scores)
        store = Store(Place.of(tmp_path / "trials" / one.folder), 1)
        step = one.steps
        store.write(step, scores[-1], lambda folder: (folder / "weights").write_text(f"of step {step}"))
        return one

    keep.keep(at([0.5]), [], Place.of(tmp_path))  # cut off
    assert (tmp_path / "best/weights").read_text() == "of step 10"
    keep.keep(at([0.5, 0.6, 0.8]), [], Place.of(tmp_path))
    assert (tmp_path / "best/weights").read_text() == "of step 30"
    card = json.loads((tmp_path / "best/broadsheet.json").read_text())["training"]
    assert (card["trial"], card["steps"]) == (2, 30)
    assert card["fingerprint"]  # by which 'evaluate' and a retraining know it
    before = (tmp_path / "best/broadsheet.json").stat().st_mtime_ns
    keep.keep(at([0.5, 0.6, 0.8]), [], Place.of(tmp_path))
    assert (tmp_path / "best/broadsheet.json").stat().st_mtime_ns == before
