"""Samples of data that is sorted by class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.prepared import Prepared
from pipeline.data.second_pass import PREPARED
from pipeline.evaluate import sample, scored, suspects
from pipeline.storage import Place

CLASSES, EACH = 20, 60


def write(folder: Path, texts: list[str], labels: list[int], fingerprint: str = "one") -> Prepared:
    """Prepared data of one shard of training rows."""
    (folder / "train").mkdir(parents=True)
    rows = len(texts)
    columns = {field.name: pa.nulls(rows, field.type) for field in PREPARED} | {
        "id": pa.array([f"a.csv:{i}" for i in range(rows)]), "text": pa.array(texts),
        "label": pa.array(labels, PREPARED.field("label").type),
        "input_ids": pa.array([[2, 5 + label, 3] for label in labels], PREPARED.field("input_ids").type),
    }  # fmt: skip
    pq.write_table(pa.table(columns, schema=PREPARED), folder / "train" / "part-0.parquet")
    ledger = {"kept": {"train": rows, "validation": 0, "test": 0}, "augmented": {}}
    (folder / "manifest.json").write_text(json.dumps({"format": 3, "fingerprint": fingerprint, "ledger": ledger}))
    (folder / "labels.json").write_text(json.dumps([f"c{i}" for i in range(CLASSES)]))
    (folder / "profile.json").write_text("{}")
    return Prepared.open(folder)


@pytest.fixture
def by_class(tmp_path: Path) -> Prepared:
    labels = [c for c in range(CLASSES) for _ in range(EACH)]
    return write(tmp_path / "data", [f"text {i} of {c}" for i, c in enumerate(labels)], labels)


def test_a_sample_has_every_class_with_its_share(by_class: Prepared) -> None:
    found = sample.rows(by_class, "train", 200, 17)
    assert found.column_names == list(sample.COLUMNS)
    assert np.bincount(found["label"].to_numpy(), minlength=CLASSES).tolist() == [10] * CLASSES


def test_the_first_of_a_mixed_sample_are_one_too() -> None:
    labels = np.repeat(np.arange(CLASSES), EACH)
    few = sample.mixed(labels, 400, 17)
    assert len(set(few.tolist())) == 400
    assert len(set(labels[few[:32]].tolist())) > CLASSES / 2
    assert (sample.mixed(labels, 400, 17) == few).all()


def test_suspects_are_looked_for_in_all_classes(by_class: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "looked_at", lambda _: 400)
    _, facts = suspects.of_train(by_class, 17)
    assert facts["rows"] == 400  # the first 400 rows are of seven classes


@pytest.mark.parametrize(("classes", "rows"), [(2, 50_000), (100, 20_000), (1_000, 8_000), (5_000, 1_600)])
def test_rows_looked_at(classes: int, rows: int) -> None:
    assert suspects.looked_at(classes) == rows


def test_rows_that_a_checkpoint_has_learnt_are_counted(by_class: Prepared, tmp_path: Path) -> None:
    other = write(tmp_path / "other", ["text 0 of 0", "new", "text 61 of 1"], [0, 1, 1], "other")
    card = {"prepared": str(by_class.place), "data_fingerprint": "one"}
    assert scored.learnt(card, other, "train") == 2
    assert "2 of these 3 test rows have a text" in str(scored.learnt_warning(2, 3, "test"))
    assert scored.learnt_warning(0, 3, "test") is None
    Place.of(by_class.place / "manifest.json").delete()
    assert scored.learnt(card, other, "train") is None
    assert "not known" in str(scored.learnt_warning(None, 3, "test"))
