"""The data version of a run, and what comes of it: without Ray, on runs of a linear model."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import mislabelled
import numpy as np
import pyarrow as pa
import pytest
from mislabelled import corrected, examined, rows, say, texts, trained
from preparing import write_csv

from pipeline import stages
from pipeline.config import load
from pipeline.data.shards import read_parquet, write_parquet
from pipeline.errors import UserError
from pipeline.retrain import base as bases
from pipeline.retrain import merge, stage
from pipeline.retrain.base import Run
from pipeline.storage import Place
from serve import succession
from serve.releases import version_of
from serve.succession import Endpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run, tested; in a folder of its own, which tests copy nothing from but read."""
    folder = tmp_path_factory.mktemp("base")
    examined(trained(mislabelled.config(folder, "base")), wrong=80)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation needs Ray: the tests write what it leaves."""
    monkeypatch.setattr(stages, "_evaluate", lambda job, address: None)


def again(made: Path, name: str, folder: Path, *sets: str, suspects: str = "ignore", base: str = "base") -> Any:
    """``run --from-feedback`` up to the evaluation: the job, or None."""
    run = Run.open(str(made / "runs" / base))
    config = stage.new_config(run, list(sets), {"name": name})
    return stage.train(run, config, str(folder), suspects, None)


def test_every_row_of_feedback_and_of_the_base_is_accounted_for(
    made: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Run.open(str(made / "runs" / "base"))
    before = {split: rows(base.prepared, split) for split in ("train", "validation", "test")}
    known = [(t, label) for t, label in corrected(120, 0) if t in before["train"]]
    held = [t for t, _ in corrected(120, 0) if t in before["validation"]]
    test_text, test_label = next(iter(before["test"].items()))
    other = mislabelled.OTHER
    say(folder, [*known[:40], *corrected(0, 30)])
    say(folder, [(held[0], "sport"), (test_text.upper(), test_label), (known[50][0], other[known[50][1]])], minutes=1)
    say(folder, [(f"  {known[0][0]}\n", known[0][1]), ("what is this", "politics"), ("x", "sport")], minutes=2)
    say(folder, [("of two minds", "sport"), ("of two minds", "money")], minutes=3)
    job = again(made, "counted", folder)
    ledger = bases.read_version(job.run)["ledger"]
    outcomes = ledger["outcomes"]
    assert ledger["feedback_rows"] == 78 == sum(outcomes.values())
    assert outcomes[merge.RELABELS] == 40
    assert outcomes[merge.NEW] == 30
    assert outcomes[merge.HELD_OUT] + outcomes[merge.DISPUTES] == 2
    assert (outcomes[merge.CONFIRMS], outcomes[merge.REPEATED], outcomes[merge.UNKNOWN]) == (1, 1, 1)
    assert (outcomes[merge.NO_TEXT], outcomes[merge.CONTRADICTORY]) == (1, 2)
    assert ledger["training_rows"] == ledger["kept"] == len(before["train"])
    assert ledger["changed"] == {merge.BY_FEEDBACK: 40}
    with (made / "runs" / "counted" / "version" / "feedback.csv").open(newline="", encoding="utf-8-sig") as f:
        told = list(csv.DictReader(f))
    assert len(told) == 78
    assert {row["id"].split(":")[0][:9] for row in told} == {"feedback-"}
    said = capsys.readouterr().out
    assert "78 rows in" in said
    assert "40 relabelled by feedback; 30 new" in said

    after = {split: rows(job.prepared, split) for split in ("train", "validation", "test")}
    assert after["test"] == before["test"]
    assert after["validation"] == before["validation"]
    assert set(after["train"]).isdisjoint({*before["test"], *before["validation"]})
    assert all(after["train"][text] == label for text, label in known[:40])
    assert len(after["train"]) == len(before["train"]) + 30
    assert job.config.data.text == base_config(made)["data"]["text"]


def base_config(made: Path) -> dict[str, Any]:
    return load(json.loads((made / "runs/base/checkpoint/broadsheet.json").read_text())["config"]).model_dump()


def test_rows_that_were_split_off_by_a_hash_stay_where_they_were(tmp_path: Path, folder: Path) -> None:
    """Relabelled and new rows would move the bounds of a draw (``data.split``): 300 rows and not one test file."""
    train = write_csv(tmp_path / "rows.csv", mislabelled.mistaken(texts(300, 1)))
    sets = ["model.name=linear", "data.profile_rows=0", "data.text=text"]
    flags = {"storage": str(tmp_path / "runs"), "name": "base", "data.train": (train,)}
    examined(trained(load(None, sets, flags)), wrong=10)
    base = Run.open(str(tmp_path / "runs" / "base"))
    say(folder, corrected(120, 60))
    job = again(tmp_path, "drawn", folder)
    for split in ("validation", "test"):
        assert rows(job.prepared, split) == rows(base.prepared, split)
    assert len(rows(job.prepared, "train")) > len(rows(base.prepared, "train"))
    origins = bases.origins(job.run)
    ids = [origins[name] for name in job.prepared.table("test", ["id"])["id"].to_pylist()]
    assert sorted(ids) == sorted(base.predictions().ids)
    assert all(name.startswith("rows.csv:") for name in ids)


def test_the_same_command_goes_on_and_another_one_is_refused(
    made: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(folder, corrected(10, 5))
    first = again(made, "resumed", folder)
    say(folder, corrected(0, 9)[5:], minutes=5)
    capsys.readouterr()
    second = again(made, "resumed", folder)
    said = capsys.readouterr().out
    assert first.prepared.fingerprint == second.prepared.fingerprint
    assert "going on with the data version" in said
    assert "1 file of feedback came later" in said
    assert said.count("unchanged, reusing") == 2
    shutil.rmtree(folder)  # and with the endpoint that told where it was
    base = Run.open(str(made / "runs" / "base"))
    third = stage.train(base, stage.new_config(base, [], {"name": "resumed"}), None, "ignore", None)
    assert third is not None
    assert third.prepared is not None
    assert third.prepared.fingerprint == first.prepared.fingerprint
    with pytest.raises(UserError, match=r"begun with another --suspects \(ignore before, drop now\): choose another"):
        again(made, "resumed", folder, suspects="drop")
    assert stage.begun(str(made / "runs"), "resumed") == stage.Begun(str(made / "runs"), str(base.place), 8000)
    assert stage.begun(str(made / "runs"), "never") is None


def test_nothing_new_makes_no_run(made: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = Run.open(str(made / "runs" / "base"))
    say(folder, [*list(rows(base.prepared, "train").items())[:3], *list(rows(base.prepared, "test").items())[:2]])
    assert again(made, "nothing", folder) is None
    said = capsys.readouterr().out
    assert "5 rows in" in said
    assert "confirms a training row 3" in said
    assert "no run was made" in said
    with (made / "runs" / "nothing" / "version" / "feedback.csv").open(newline="", encoding="utf-8-sig") as f:
        assert len(list(csv.DictReader(f))) == 5  # all are accounted for even so, and nothing else is left
    assert {p.name for p in (made / "runs" / "nothing" / "version").iterdir()} == {"feedback.csv", "changes.csv"}
    empty = folder.parent / "empty"
    empty.mkdir()
    assert again(made, "nothing", empty) is None


def test_corrections_and_suspects(made: Path, folder: Path, tmp_path: Path) -> None:
    base = Run.open(str(made / "runs" / "base"))
    table = base.prepared.table("train", ["id", "label"])
    ids = table["id"].to_pylist()
    names = [base.prepared.labels[i] for i in table["label"].to_pylist()]
    test_id = base.prepared.table("test", ["id"])["id"][0].as_py()
    lines = [f"{ids[0]},{mislabelled.OTHER[names[0]]}", f"{ids[1]},", f"{test_id},sport"]
    (tmp_path / "accepted.csv").write_text("\n".join(["id,suggested", *lines]) + "\n")
    report = Path(str(base.place)) / "report"
    report.mkdir(exist_ok=True)
    suspects = [{"id": ids[i], "split": "train", "label": names[i], "confidence": c} for i, c in
                ((0, 0.99), (2, 0.95), (3, 0.6))]  # fmt: skip
    with (report / "suspects.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(suspects[0]))
        writer.writeheader()
        writer.writerows(suspects)
    folder.mkdir()
    job = again(made, "corrected", folder, f"data.corrections={tmp_path / 'accepted.csv'}", suspects="drop")
    changed = bases.read_version(job.run)["ledger"]["changed"]
    assert changed == {merge.BY_CORRECTION: 1, merge.DROPPED: 1, merge.SUSPECT: 1}
    assert job.prepared.rows("train") == base.prepared.rows("train") - 2
    assert rows(job.prepared, "test") == rows(base.prepared, "test")
    assert job.config.data.corrections == ""
    with (Path(str(job.run)) / "version" / "changes.csv").open(newline="", encoding="utf-8-sig") as f:
        told = {row["id"]: row["new_label"] for row in csv.DictReader(f)}
    assert told == {ids[0]: mislabelled.OTHER[names[0]], ids[1]: "", ids[2]: ""}


def test_a_sample_of_the_base_takes_no_feedback_away(made: Path, folder: Path) -> None:
    say(folder, corrected(20, 25))
    job = again(made, "sampled", folder, "train.max_rows=60")
    ledger = bases.read_version(job.run)["ledger"]
    relabelled, left_out = ledger["changed"][merge.BY_FEEDBACK], ledger["changed"][merge.LEFT_OUT]
    assert ledger["outcomes"][merge.NEW] == 25
    assert 60 <= ledger["training_rows"] - left_out <= 60 + relabelled
    assert job.config.train.max_rows is None
    train = rows(job.prepared, "train")
    assert all(train.get(text) == label for text, label in corrected(0, 25))


def test_several_text_columns_and_what_the_base_filled_in(tmp_path: Path, folder: Path) -> None:
    lines = ["title,body,topic"]
    lines += [",".join([*text.split(" ", 1), label]) for text, label in mislabelled.mistaken(texts(120, 1))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    sets = ["model.name=linear", "data.profile_rows=0", "data.text=title,body", "data.label=topic"]
    flags = {"storage": str(tmp_path / "runs"), "name": "base", "data.train": (str(tmp_path / "rows.csv"),)}
    examined(trained(load(None, [*sets, "data.fill_from=body"], flags)), wrong=3)
    say(folder, corrected(10, 4))
    job = again(tmp_path, "columns", folder)
    assert job.config.data.text == ("title", "body")
    assert rows(job.prepared, "test") == rows(Run.open(str(tmp_path / "runs" / "base")).prepared, "test")


def test_nearly_equal_texts(made: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine of ten words are those of another row: 0.8 of the pairs of words."""
    base = Run.open(str(made / "runs" / "base"))
    held = next(iter(rows(base.prepared, "test")))
    (known, label), *_ = [pair for pair in corrected(120, 0) if pair[0] in rows(base.prepared, "train")]
    like_test, like_train = (f"{text.rsplit(' ', 1)[0]} other" for text in (held, known))
    say(folder, [(like_test, "sport"), (like_train, label)])
    job = again(made, "near", folder)
    train = rows(job.prepared, "train")
    assert train[like_train] == label
    assert known not in train  # it was labelled otherwise
    assert like_test not in train
    assert rows(job.prepared, "test") == rows(base.prepared, "test")
    said = capsys.readouterr()
    assert "new rows that are set aside: 1 near-duplicate " in said.out
    assert "1 training rows gave way to feedback that is nearly equal" in said.err + said.out


def test_a_second_round_starts_from_the_first(made: Path, folder: Path) -> None:
    say(folder, corrected(10, 5))
    first = again(made, "first", folder)
    examined(Path(str(first.run)), wrong=40)
    say(folder, corrected(20, 10), minutes=5)
    second = again(made, "second", folder, base="first")
    examined(Path(str(second.run)), wrong=2)
    base, one, two = (Run.open(str(made / "runs" / name)) for name in ("base", "first", "second"))
    assert base.root == one.root == two.root
    assert sorted(base.predictions().ids) == sorted(one.predictions().ids) == sorted(two.predictions().ids)
    told = bases.read_version(second.run)["ledger"]["outcomes"]
    assert told[merge.EARLIER] == 15  # they have had their say
    assert again(made, "third", folder, base="second") is None  # nothing was said since
    for rival in (base, one):  # whichever of them serves by now
        decision, facts = stage.judge(Place.of(two.place), rival, 17)
        assert decision.promote
        assert facts["comparison"]["rows"] == 160


@pytest.mark.parametrize(
    ("sets", "name", "sentence"),
    [
        ((), "base", "is the run that it starts from: give the new one another --name"),
        (("data.train=other.csv",), "x", "--set data.train: the data is that of"),
        ((), "taken", "is a run already, and not one from feedback"),
        (("train.epoch=1",), "x", "did you mean 'train.epochs'"),
    ],
)
def test_what_does_not_fit_the_base(made: Path, sets: tuple[str, ...], name: str, sentence: str) -> None:
    (made / "runs" / "taken").mkdir(exist_ok=True)
    (made / "runs" / "taken" / "config.yaml").write_text("name: taken\n")
    with pytest.raises(UserError, match=re.escape(sentence)):
        stage.new_config(Run.open(str(made / "runs" / "base")), sets, {"name": name})


def test_feedback_that_cannot_be_read_or_is_nowhere(made: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"serve\.feedback: no such folder"):
        again(made, "unread", folder)
    folder.mkdir()
    (folder / "feedback-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"feedback-1\.parquet is no feedback, or damaged \(.*move it out"):
        again(made, "unread", folder)
    write_parquet(pa.table({"text": ["x"]}), Place.of(folder / "feedback-1.parquet"))
    with pytest.raises(UserError, match='Field "label" does not exist'):
        again(made, "unread", folder)
    assert not (made / "runs" / "unread").exists()
    base = Run.open(str(made / "runs" / "base"))
    with pytest.raises(UserError, match=r"--set serve\.feedback=FOLDER"):
        stage.train(base, stage.new_config(base, [], {"name": "unread"}), None, "ignore", None)


def test_other_test_rows_are_refused_before_training(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "learn", lambda *_: pytest.fail("trained"))
    say(folder, corrected(60, 5))
    shortest = min(map(len, rows(Run.open(str(made / "runs" / "base")).prepared, "test")))
    with pytest.raises(UserError, match=r"has other test rows .* is missing\), so the two models cannot be compared"):
        again(made, "moved", folder, f"data.min_chars={shortest + 1}")


def test_a_run_that_was_not_tested_cannot_be_beaten(made: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs" / "base", tmp_path / "base")
    metrics = tmp_path / "base" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"data": "', '"data": "0'))
    with pytest.raises(UserError, match=r"since its test: evaluate it first, with 'broadsheet evaluate .*/base'"):
        Run.open(str(tmp_path / "base")).predictions()
    metrics.unlink()
    with pytest.raises(UserError, match=r"has no figures of its test rows: evaluate it first"):
        Run.open(str(tmp_path / "base")).predictions()


@pytest.fixture
def concluded(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Any:
    """The end of the loop where the new run has so many wrong rows, the base 80 of 160, and an endpoint serves."""

    def end(wrong: int, endpoint: Endpoint | None, promote: Any = None) -> dict[str, Any]:
        base = Run.open(str(made / "runs" / "base"))
        if not folder.exists():
            say(folder, corrected(30, 10))
        job = again(made, "rival", folder, f"serve.port={free_port}")
        examined(Path(str(job.run)), wrong)
        if endpoint is not None:
            monkeypatch.setattr(succession, "serving", lambda *_: endpoint)
        monkeypatch.setattr(succession, "_promote", promote or (lambda *_: pytest.fail("promoted")))
        succession.conclude(job.config, base, None)
        return dict(json.loads((Path(str(job.run)) / "decision.json").read_text()))

    yield end
    shutil.rmtree(made / "runs" / "rival")


def serving(made: Path, name: str = "base", version: str | None = None, on_trial: str | None = None) -> Endpoint:
    checkpoint = Place.of(made / "runs" / name / "checkpoint")
    return Endpoint(str(checkpoint), version or version_of(checkpoint), on_trial)


@pytest.mark.parametrize(("wrong", "why"), [(80, "no difference"), (78, "no significant"), (130, "base is better")])
def test_what_is_not_significantly_better_is_not_promoted(concluded: Any, made: Path, wrong: int, why: str) -> None:
    decision = concluded(wrong, serving(made))
    assert why in decision["reason"]
    assert (decision["better"], decision["promoted"]) == (False, False)
    assert decision["end"].endswith("runs/base goes on serving")
    assert decision["comparison"]["rows"] == 160


def test_what_is_better_is_promoted_once(concluded: Any, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[str] = []
    decision = concluded(20, serving(made), lambda config, run, endpoint, address: called.append(str(run)))
    assert called == [str(made / "runs" / "rival")]
    assert (decision["better"], decision["promoted"]) == (True, True)
    assert decision["comparison"]["only_a"] == 60
    decision = concluded(20, serving(made, "rival"))
    assert decision["promoted"]
    assert "serves already" in capsys.readouterr().out
    decision = concluded(20, serving(made))  # somebody has rolled it back: that stands
    assert called == [str(made / "runs" / "rival")]
    assert "was promoted before, and taken back since" in decision["end"]
    assert decision["promoted"]


def test_where_nothing_can_be_promoted_the_command_is_told(
    concluded: Any, made: Path, capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    decision = concluded(20, None)
    assert (decision["better"], decision["promoted"]) == (True, False)
    assert decision["end"] == f"nothing was promoted: no endpoint runs here on port {free_port}"
    assert f"broadsheet serve {made}/runs/rival" in capsys.readouterr().out
    decision = concluded(20, serving(made, on_trial="/runs/other"))
    assert "not promoted: /runs/other is on trial" in decision["end"]
    assert f"broadsheet serve --update {made}/runs/rival" in capsys.readouterr().out


def test_a_promotion_that_fails_is_written_down(concluded: Any, made: Path) -> None:
    def refuse(*_: object) -> None:
        raise UserError("a replica refused")

    with pytest.raises(UserError, match="a replica refused"):
        concluded(20, serving(made), refuse)
    decision = json.loads((made / "runs" / "rival" / "decision.json").read_text())
    assert (decision["promoted"], decision["end"]) == (False, "not promoted: a replica refused")


def test_what_serves_must_be_what_was_tested_and_of_the_same_data(made: Path, tmp_path: Path) -> None:
    base = Run.open(str(made / "runs" / "base"))
    config = stage.new_config(base, [], {"name": "new"})
    assert succession.rival(None, base, config) == base
    with pytest.raises(UserError, match=r"was trained again since the endpoint took it \(it serves 0123\)"):
        succession.rival(serving(made, version="0123"), base, config)
    train = write_csv(tmp_path / "rows.csv", mislabelled.mistaken(texts(100, 5)))
    flags = {"storage": str(tmp_path / "runs"), "name": "other", "data.train": (train,)}
    examined(trained(load(None, ["model.name=linear", "data.profile_rows=0"], flags)), wrong=1)
    other = succession.rival(serving(tmp_path, "other"), base, config)
    with pytest.raises(UserError, match=r"made from other data than .*--from-feedback .*/other"):
        stage.check_rival(other, base)


def test_the_rows_lie_in_files_that_name_where_they_come_from(made: Path, folder: Path) -> None:
    say(folder, corrected(0, 3))
    job = again(made, "files", folder)
    train = Place.of(job.run) / "version" / "train"
    names = [file.name for file in train.files(".parquet")]
    assert names[0] == "feedback.parquet"  # of nearly equal texts the first is kept
    origin = read_parquet(train / names[0])[bases.ORIGIN].to_pylist()
    assert [re.sub(r"-.*\.parquet", "", name) for name in origin] == ["feedback:1", "feedback:2", "feedback:3"]
    assert np.all([name.startswith("rows.csv:") for name in read_parquet(train / names[1])[bases.ORIGIN].to_pylist()])
