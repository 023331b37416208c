"""A teacher's answers: to the very rows that are trained on, in the order of the labels, each part made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bert
from preparing import prepared, write_csv

from pipeline import config as configuration
from pipeline import stages
from pipeline.config import Config
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier
from pipeline.train import batches, teacher, trainer


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of the labels that the small BERT knows."""
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    words = small_bert.WORDS
    texts = [
        (f"{a} {b} {i}", label) for label, w in words.items() for i, (a, b) in enumerate(zip(w, w[::-1], strict=True))
    ]
    write_csv(file, [(f"{text} {n}", label) for n in range(8) for text, label in texts])
    return file


def config(storage: Path, bert: Path, *sets: str) -> Config:
    return configuration.load(None, [f"train.teacher={bert}", *sets], {"storage": str(storage)})


@pytest.fixture
def data(tmp_path: Path, rows: Path) -> Prepared:
    return prepared(tmp_path, {"train": str(rows)}, "data.near_duplicates=keep")


def expected(bert: Path, data: Prepared, numbers: np.ndarray) -> np.ndarray:
    """The small BERT's own logits, in the order of the data's labels."""
    classifier = Classifier.load(str(bert))
    texts = data.table("train", ["text"])["text"].to_pylist()
    logits = classifier.all_logits(classifier.encode([texts[i] for i in numbers]).ids, 2048)
    return logits[:, [classifier.labels.index(label) for label in data.labels]]


@pytest.mark.parametrize("most", [None, 60])
def test_answers_to_the_rows_that_are_trained_on(
    ray_session: None, tmp_path: Path, bert: Path, data: Prepared, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "PART_ROWS", 25)
    asked = config(tmp_path, bert, f"train.max_rows={most or 'null'}")
    numbers = batches.sample(data.tokens("train").labels, most, asked.seed)
    place = teacher.place_of(asked, data)
    assert place is not None
    teacher.ask(asked, data, None)
    parts = {f.name: f.read_bytes() for f in place.files(".parquet")}
    assert len(parts) > 1
    found = teacher.read(place, numbers, 3)
    np.testing.assert_allclose(found, expected(bert, data, numbers), atol=0.05)  # other batches, perhaps in bf16
    assert (found.argmax(-1) == expected(bert, data, numbers).argmax(-1)).mean() > 0.95


def test_a_pass_that_was_cut_off_goes_on(
    ray_session: None,
    tmp_path: Path,
    bert: Path,
    data: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(teacher, "PART_ROWS", 25)
    asked = config(tmp_path, bert)
    teacher.ask(asked, data, None)
    place = teacher.place_of(asked, data)
    assert place is not None
    first, *others = place.files(".parquet")
    before = {f.name: Path(f.uri).stat().st_mtime_ns for f in others}
    first.delete()
    numbers = np.arange(data.rows("train"))
    with pytest.raises(WorkFailed, match=r"answers to .* of .* rows"):
        teacher.read(place, numbers, 3)
    teacher.ask(asked, data, None)
    assert {f.name: Path(f.uri).stat().st_mtime_ns for f in others} == before
    assert len(teacher.read(place, numbers, 3)) == data.rows("train")
    assert "going on with a pass that was cut off" in capfd.readouterr().out
    teacher.ask(asked, data, None)
    assert "unchanged, reusing" in capfd.readouterr().out
    with pytest.raises(WorkFailed, match="other rows than are trained on"):
        teacher.read(place, numbers[::2], 3)


def test_a_student_learns_and_says_from_whom(ray_session: None, tmp_path: Path, bert: Path, rows: Path) -> None:
    sets = ["model.name=lstm", "model.vocab_size=300", "model.hidden=[16]", "train.epochs=1", "train.workers=1"]
    flags: dict[str, Any] = {"storage": str(tmp_path), "name": "student", "data.train": (str(rows),)}
    marks = []
    for more in ([f"train.teacher={bert}"], [f"train.teacher={bert}", "train.teacher_weight=0.9"], []):
        job = stages.begin(configuration.load(None, [*sets, *more], flags), short=False)
        stages.make_prepared(job, None)
        assert job.prepared is not None
        marks.append(trainer.fingerprint(job.config, job.prepared, job.model))
        if not marks[1:]:
            trained = trainer.train(job.config, job.prepared, job.model, None, job.run)
            card = json.loads((trained.checkpoint / "broadsheet.json").read_text())
            assert card["config"]["train"]["teacher"] == str(bert)
            assert "learnt from the answers of" in (trained.checkpoint / "README.md").read_text()
    assert len(set(marks)) == 3


def test_other_labels_are_named(tmp_path: Path, bert: Path) -> None:
    file = write_csv(tmp_path / "other.csv", [(f"{w} {i}", w) for w in ("money", "weather") for i in range(20)])
    other = prepared(tmp_path, {"train": file})
    with pytest.raises(UserError, match=r"of 'sport' the training rows do not have it"):
        teacher.ask(config(tmp_path, bert), other, None)


def test_answers_that_would_not_fit_are_refused(
    tmp_path: Path, bert: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"lower train\.max_rows"):
        teacher.ask(config(tmp_path, bert), data, None)


def test_a_teacher_that_is_not_there(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(UserError, match=r"train\.teacher: no checkpoint in .*nowhere"):
        teacher.check(config(tmp_path, tmp_path / "nowhere"), "lstm")
    with pytest.raises(UserError, match="the linear model learns from labels alone"):
        teacher.check(config(tmp_path, bert), "linear")
    teacher.check(config(tmp_path, bert), "lstm")
    with pytest.raises(UserError, match="another --name"):
        teacher.check(config(bert.parent.parent, bert).updated({"name": bert.parent.name}), "lstm")
    assert teacher.place_of(configuration.load(None, [], {}), None) is None  # type: ignore[arg-type]
