"""A teacher's answers: to the very rows that are trained on, in the order of the labels, each part made once."""

from __future__ import annotations

import contextlib
import json
import shutil
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
from pipeline.storage import Place
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
    assert len(place.files(".parquet")) > 1
    with pytest.raises(WorkFailed, match=r"answers to .* of .* rows") if most else contextlib.nullcontext():
        teacher.read(place, np.arange(data.rows("train")), 3)
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
    known = data.rows("train") - len(numbers[:25])
    assert f"classifies 25 training rows; its answers to {known} are there" in capfd.readouterr().out
    teacher.ask(asked, data, None)
    assert "unchanged, reusing" in capfd.readouterr().out
    np.testing.assert_array_equal(teacher.read(place, numbers[::2], 3), teacher.read(place, numbers, 3)[::2])


def test_tasks_are_of_one_shard_and_hold_every_row_once() -> None:
    rows = np.array([0, 1, 4, 5, 6, 11, 12, 29])
    tasks = teacher.cut([("a", 5), ("b", 0), ("c", 8), ("d", 20)], rows, 2)
    found = [(t["shard"], t["first"], np.frombuffer(t["rows"], np.int64).tolist()) for t in tasks]
    assert found == [
        ("a", 0, [0, 1]), ("a", 0, [4]), ("c", 5, [5, 6]), ("c", 5, [11, 12]), ("d", 13, [29]),
    ]  # fmt: skip


def test_a_teacher_that_changes_while_it_is_asked_is_not_believed(
    ray_session: None, tmp_path: Path, bert: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(bert, tmp_path / "own")
    asked = config(tmp_path, own)
    place = teacher.place_of(asked, data)
    assert place is not None
    now, wrote = teacher._missing, []

    def swapped(*given: Any) -> Any:
        (own / "config.json").write_text((own / "config.json").read_text() + "\n")
        wrote.append(True)
        return now(*given)

    monkeypatch.setattr(teacher, "_missing", swapped)
    with pytest.raises(WorkFailed, match="changed while it was asked"):
        teacher.ask(asked, data, None)
    assert wrote
    assert not place.exists()


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
            assert card["training"]["teacher"] == teacher.identity_of(job.config)
            assert "learnt from the answers of" in (trained.checkpoint / "README.md").read_text()
    assert len(set(marks)) == 3


def test_a_finished_student_needs_its_teacher_no_more(tmp_path: Path, bert: Path) -> None:
    gone = tmp_path / "gone"
    asked = config(tmp_path, gone).updated({"name": "student"})
    with pytest.raises(UserError, match=r"no checkpoint in .*gone.*without a teacher: --set train\.teacher=null"):
        teacher.check(asked, "lstm")
    final = tmp_path / "student/checkpoint"
    shutil.copytree(bert, final)
    card = json.loads((final / "broadsheet.json").read_text())
    card["config"]["train"]["teacher"] = str(gone)
    (final / "broadsheet.json").write_text(json.dumps({**card, "training": {"teacher": "abc"}}))
    assert teacher.check(asked, "lstm") == asked
    assert teacher.identity_of(asked) == "abc"
    other = config(tmp_path, tmp_path / "other").updated({"name": "student"})
    with pytest.raises(UserError, match="no checkpoint"):
        teacher.identity_of(other)


def test_where_the_teacher_learnt_what_it_is_tested_on_is_said(
    tmp_path: Path, bert: Path, rows: Path, data: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((bert / "broadsheet.json").read_text())
    where = Place.of(bert)
    teacher._warn_of_leaks(card, data, where)
    assert "is no longer where it was" in " ".join(capsys.readouterr().out.split())
    own = {**card, "prepared": str(data.place), "data_fingerprint": data.fingerprint}
    teacher._warn_of_leaks(own, data, where)
    assert not capsys.readouterr().out
    files = {"train": str(rows)}
    for split in ("test", "validation"):
        other = [(f"{split} {i}", label) for i in range(9) for label in data.labels]
        files[split] = write_csv(tmp_path / f"{split}.csv", other)
    all_of_it = prepared(tmp_path, files, "data.near_duplicates=keep")  # what is test here is training there
    capsys.readouterr()
    leaky = {**card, "prepared": str(all_of_it.place), "data_fingerprint": all_of_it.fingerprint}
    teacher._warn_of_leaks(leaky, data, where)
    count = data.rows("test")
    assert f"{count} of {count} test rows are among those that" in " ".join(capsys.readouterr().out.split())


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


def test_a_teacher_that_is_not_there(tmp_path: Path, bert: Path, data: Prepared) -> None:
    with pytest.raises(UserError, match=r"train\.teacher: no checkpoint in .*nowhere"):
        teacher.check(config(tmp_path, tmp_path / "nowhere"), "lstm")
    with pytest.raises(UserError, match="the linear model learns from labels alone"):
        teacher.check(config(tmp_path, bert), "linear")
    teacher.check(config(tmp_path, bert), "lstm")
    with pytest.raises(UserError, match="another --name"):
        teacher.check(config(bert.parent.parent, bert).updated({"name": bert.parent.name}), "lstm")
    assert teacher.place_of(configuration.load(None, [], {}), data) is None
