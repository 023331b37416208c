"""The whole loop on Ray, small but real: files in, prepared data, DDP training, evaluation, batch inference."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import config as configuration
from pipeline import stages
from pipeline.config import Config, ServeConfig
from pipeline.data import prepare as preparation
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.evaluate import calibration, cascade, cascade_folder
from pipeline.evaluate import evaluate as evaluation
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.golden import Golden
from pipeline.evaluate.predictions import Predictions
from pipeline.evaluate.reference import Reference
from pipeline.model import build
from pipeline.storage import Place
from pipeline.train import checkpoint
from serve.app import load_model
from serve.drift import Drift
from serve.releases import Release
from serve.stability import psi

WORDS = {
    "sport": ["match", "goal", "team", "coach", "season", "league", "player", "cup", "score", "win"],
    "money": ["bank", "market", "shares", "profit", "price", "trade", "oil", "stock", "fund", "growth"],
    "科技": ["软件", "芯片", "手机", "网络", "电脑", "数据", "科学", "卫星", "机器", "互联网"],
}


def write_rows(path: Path, rows: int, seed: int) -> None:
    generator = random.Random(seed)
    lines = ["title,topic"]
    for i in range(rows):
        label = list(WORDS)[i % 3]
        words = " ".join(generator.choices(WORDS[label], k=8))
        lines.append(f'"{words} {generator.randrange(10**6)}",{label}')
    lines += ['"match goal team cup",sport', '"Match  goal team cup",sport', '"",sport', '"no label here",']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("loop")
    write_rows(folder / "news.csv", 360, seed=1)
    return configuration.load(
        None,
        [
            "data.text=title", "data.label=topic", "model.name=lstm", "model.vocab_size=600", "model.embedding_dim=16",
            "model.hidden=[16]", "train.epochs=6", "train.batch_tokens=512", "train.evaluations=2", "train.workers=2",
            "data.shard_mb=1", "data.in_process_mb=0", "train.track=[tensorboard,mlflow]",
        ],
        {"storage": str(folder / "runs"), "name": "loop", "data.train": (str(folder / "news.csv"),)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(config: Config, ray_session: None) -> stages.Job:
    return stages.run(config, full=True, address=None)


@pytest.fixture(scope="module")
def prepared(done: stages.Job) -> Prepared:
    assert done.prepared is not None
    return done.prepared


def test_every_row_is_accounted_for(prepared: Prepared) -> None:
    ledger = prepared.ledger
    assert ledger["read"] == 364
    assert ledger["read"] == sum(ledger["kept"].values()) + sum(ledger["rejected"].values()) + ledger["duplicates"]
    assert ledger["rejected"] == {"missing label": 1, "missing text": 1}
    duplicates = pq.read_table(prepared.shards("duplicates")[0].uri).to_pylist()
    assert [(d["id"], d["kept_id"]) for d in duplicates] == [("news.csv:363", "news.csv:362")]


def test_splits_share_no_text(prepared: Prepared) -> None:
    texts = [set(prepared.table(s, ["text"])["text"].to_pylist()) for s in ("train", "validation", "test")]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert prepared.labels == sorted(WORDS)


def test_training_learns_and_evaluation_writes_its_files(done: stages.Job) -> None:
    figures = json.loads((done.run / "metrics.json").read_text())
    assert figures["test"]["accuracy"] > 0.9
    assert figures["test"]["rows"] == figures["rows"]["test"]
    page = (done.run / "report" / "index.html").read_text()
    assert "科技" in page
    assert (done.run / "config.yaml").exists()
    assert not (done.run / "train").exists()  # the state for resuming goes when training is over


def test_the_curves_are_kept_where_asked(done: stages.Job) -> None:
    from mlflow.tracking import MlflowClient

    history = checkpoint.read_card(done.run / "checkpoint")["training"]["history"]
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert [{k: line[k] for k in history[0]} for line in lines] == history
    assert [int(f.name.split(".")[3]) for f in (done.run / "tensorboard").files()] == [h["step"] for h in history]
    client = MlflowClient(tracking_uri=f"file://{done.run / 'mlflow'}")
    (run,) = client.search_runs([client.get_experiment_by_name("broadsheet").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation_macro_f1"] == pytest.approx(history[-1]["validation_macro_f1"])


def test_a_checkpoint_has_the_files_of_a_hugging_face_folder(done: stages.Job) -> None:
    from transformers import AutoTokenizer

    assert done.checkpoint is not None
    folder = done.checkpoint.uri
    names = {p.name for p in Path(folder).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "broadsheet.json"} <= names
    assert not names & {"optimizer.safetensors", "progress.json"}
    assert [build.load(folder).config.id2label[i] for i in range(3)] == sorted(WORDS)
    assert AutoTokenizer.from_pretrained(folder)("match goal")["input_ids"]


def test_the_classifier_says_what_evaluation_said(done: stages.Job, prepared: Prepared) -> None:
    classifier = Classifier.load(str(done.checkpoint))
    table = prepared.table("test", ["text", "label", "input_ids"])
    encoded = classifier.encode(table["text"].to_pylist())
    assert [list(i) for i in encoded.ids] == table["input_ids"].to_pylist()
    scores = classifier.probabilities(classifier.all_logits(encoded.ids, 1024))
    accuracy = float((scores.argmax(-1) == table["label"].to_numpy()).mean())
    figures = json.loads((done.run / "metrics.json").read_text())
    assert accuracy == pytest.approx(figures["test"]["accuracy"])
    alone = classifier.probabilities(classifier.logits(encoded.ids[:1]))
    assert alone[0] == pytest.approx(scores[0], abs=1e-4)  # padding and company change nothing


def test_evaluation_leaves_what_people_and_other_runs_need(
    done: stages.Job, prepared: Prepared, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert done.checkpoint is not None
    figures = json.loads((done.run / "metrics.json").read_text())
    low, high = figures["intervals"]["macro_f1"]
    assert low <= figures["test"]["macro_f1"] <= high
    assert figures["calibration"]["how"].startswith("not fitted: 36 validation rows")
    assert figures["cascade"]["reason"].startswith("36 validation rows, 500 are needed")
    assert set(figures["suspects"]) == {"test", "validation", "train"}
    header = (done.run / "report" / "suspects.csv").read_text().removeprefix("\ufeff").splitlines()[0]
    assert header == "id,split,text,label,suggested,confidence"
    model_card = (done.checkpoint / "README.md").read_text()
    assert model_card.startswith("---\n")
    assert "library_name" not in model_card  # transformers does not know this network
    saved = Predictions.load(str(done.run))
    assert saved.ids == prepared.table("test", ["id"])["id"].to_pylist()
    stages.compare(config, (str(done.run), str(done.checkpoint)), str(tmp_path))
    assert "no difference in accuracy, McNemar p=1" in capsys.readouterr().out
    assert json.loads((tmp_path / "comparison.json").read_text())["p"] == 1.0


def test_a_second_evaluation_sees_the_same_logits(
    done: stages.Job, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that have the checkpoint loaded must see the temperature that the first one left in it."""
    monkeypatch.setattr(calibration, "chosen_temperature", lambda *_: (2.0, "for the test"))
    monkeypatch.setattr(cascade, "MIN_ROWS", 20)
    shutil.copytree(str(done.checkpoint), tmp_path / "checkpoint")
    where = Place.of(tmp_path / "checkpoint")
    seen = []
    for out in ("first", "second"):
        evaluated = evaluation.evaluate(where, prepared, Place.of(tmp_path / out))
        assert not evaluated.reused
        assert checkpoint.read_card(where)["temperature"] == 2.0
        seen.append(evaluated.metrics["calibration"])
    for at in ("before", "after"):
        assert seen[0][at]["log_loss"] == pytest.approx(seen[1][at]["log_loss"], abs=1e-5)
    assert seen[0]["before"]["log_loss"] != pytest.approx(seen[0]["after"]["log_loss"], abs=1e-3)
    assert evaluation.evaluate(where, prepared, Place.of(tmp_path / "second")).reused
    before = (tmp_path / "checkpoint" / "reference.json").read_bytes()
    (tmp_path / "checkpoint" / "reference.json").unlink()  # as its error says where it is damaged
    assert not evaluation.evaluate(where, prepared, Place.of(tmp_path / "second")).reused
    assert (tmp_path / "checkpoint" / "reference.json").read_bytes() == before
    _serves_a_cascade(where, prepared)


def _serves_a_cascade(where: Place, prepared: Prepared) -> None:
    """What evaluation left is loaded by a replica, and says of the validation rows what was written down."""
    record = cascade_folder.read(where)
    assert record is not None
    assert record.validation is not None
    model = load_model(Release(str(where)), ServeConfig(cascade=True, engine="torch"))
    assert model.cascade is not None
    table = prepared.table("validation", ["text", "label"])
    texts = table["text"].to_pylist()
    encoded = model.engine.encode(texts)
    settled = model.cascade.settle(texts, encoded)
    assert settled.sure.mean() == pytest.approx(record.validation.share)
    left = settled.left(encoded.ids)
    network = model.engine.probabilities(model.engine.all_logits(left, 512)) if left else None
    together = settled.completed(network)
    assert (together.argmax(1) == table["label"].to_numpy()).mean() == pytest.approx(record.validation.accuracy)
    assert model.reference is not None
    drift = Drift(model.reference, 3600)
    drift.add(together, encoded.ids, encoded.truncated)
    for name, counts in drift.window().items():
        assert psi(model.reference.features[name].shares, counts / len(texts)) == pytest.approx(0, abs=1e-3)


def test_the_checkpoint_answers_its_golden_rows_as_when_it_was_evaluated(done: stages.Job) -> None:
    assert done.checkpoint is not None
    rows = Golden.load(done.checkpoint)
    assert rows is not None
    assert len(rows.texts) == len(rows.labels) == len(rows.logits) > 30
    assert (rows.logits.argmax(1) == rows.labels).mean() > 0.8
    classifier = Classifier.load(str(done.checkpoint))
    assert rows.failure(lambda texts: classifier.logits(classifier.encode(texts).ids)) is None


def test_drift_is_measured_from_the_validation_rows(done: stages.Job, prepared: Prepared) -> None:
    assert done.checkpoint is not None
    reference = Reference.load(done.checkpoint)
    assert reference is not None
    assert reference.rows == prepared.rows("validation")
    assert reference.unknown_id is not None
    classifier = Classifier.load(str(done.checkpoint))
    encoded = classifier.encode(prepared.table("validation", ["text"])["text"].to_pylist())
    drift = Drift(reference, 3600)
    drift.add(classifier.probabilities(classifier.logits(encoded.ids)), encoded.ids, encoded.truncated)
    for name, counts in drift.window().items():
        assert psi(reference.features[name].shares, counts / reference.rows) == pytest.approx(0, abs=1e-3)


def test_other_data_leaves_a_checkpoint_as_it_is(done: stages.Job, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(str(done.checkpoint), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "README.md").unlink()
    other = replace(prepared, manifest={**prepared.manifest, "fingerprint": "other"})
    where, before = Place.of(tmp_path / "checkpoint"), (tmp_path / "checkpoint" / "broadsheet.json").read_text()
    evaluated = evaluation.evaluate(where, other, Place.of(tmp_path / "out"))
    assert evaluated.metrics["calibration"]["how"].startswith("as the checkpoint says")
    assert evaluated.metrics["cascade"] is None
    assert (where / "broadsheet.json").read_text() == before
    assert not (where / "README.md").exists()
    assert (where / "reference.json").read_bytes() == (done.checkpoint / "reference.json").read_bytes()


def test_data_of_another_tokenizer_is_read_with_the_checkpoints_own(
    done: stages.Job, config: Config, tmp_path: Path
) -> None:
    smaller, _ = preparation.prepare(config.updated({"model.vocab_size": 100}), done.model, None)
    assert done.checkpoint is not None
    with pytest.raises(UserError, match=r"is not what .* was trained on: name a folder for these figures with --out"):
        stages.evaluate(config, str(done.run), str(smaller.place), None, None)
    found = evaluation.evaluate(done.checkpoint, smaller, Place.of(tmp_path / "out"))
    own = json.loads((done.run / "metrics.json").read_text())
    assert found.metrics["test"]["accuracy"] == own["test"]["accuracy"]  # the same texts
    assert found.metrics["baseline"] is None
    assert found.metrics["rows"]["trained_on"] is None


def test_a_second_run_reuses_everything(done: stages.Job, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    stages.run(config, full=True, address=None)
    said = capsys.readouterr().out
    assert said.count("unchanged, reusing") == 3


@pytest.mark.parametrize("megabytes", [0, 64], ids=["on Ray", "in process"])
def test_prepared_bytes_do_not_depend_on_block_sizes_or_layout(
    megabytes: int,
    done: stages.Job,
    prepared: Prepared,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.data import layout, lines, prepare

    monkeypatch.setattr(layout, "BLOCK_BYTES", (2_000, 2_000))
    monkeypatch.setattr(lines, "BLOCK_CHARS", 500)
    again, reused = prepare.prepare(
        done.config.updated({"storage": str(tmp_path), "data.in_process_mb": megabytes}), done.model
    )
    assert not reused

    def content(place: Place) -> dict[str, bytes]:
        root = Path(place.uri)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert content(again.place) == content(prepared.place)


def test_the_global_batch_gives_the_same_training_on_one_worker(done: stages.Job, config: Config) -> None:
    one = stages.begin(config.updated({"train.workers": 1, "name": "one"}), short=False)
    stages.make_prepared(one, None)
    from pipeline.train import trainer

    assert one.prepared is not None
    assert trainer.fingerprint(one.config, one.prepared, one.model) == trainer.fingerprint(
        done.config, one.prepared, done.model
    )


def test_the_linear_baseline_and_the_linear_model(done: stages.Job, config: Config) -> None:
    figures = json.loads((done.run / "metrics.json").read_text())["baseline"]
    assert figures["trained_on"] > 200
    assert figures["accuracy"] > 0.9
    assert "linear baseline" in (done.run / "report" / "index.html").read_text()
    linear = stages.run(config.updated({"name": "linear", "model.name": "linear"}), full=True, address=None)
    figures = json.loads((linear.run / "metrics.json").read_text())
    assert figures["test"]["accuracy"] > 0.9
    assert figures["baseline"] is None


def test_predict_keeps_every_row(
    done: stages.Job, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "new.csv"
    texts = ['"goal match player team cup score win league"', '""', "软件 芯片 数据 手机 网络 电脑 科学 卫星"]
    texts.append('"bank shares, profit market price trade oil fund"')
    rows.write_text("\n".join(["title", *texts]) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    stages.predict(config, (str(rows),), str(done.run), str(out), None)
    table = pq.read_table(out).to_pylist()
    assert [r["label"] for r in table] == ["sport", None, "科技", "money"]
    assert [r["error"] for r in table] == [None, "missing text", None, None]
    assert json.loads((out / "_SUCCESS.json").read_text())["rows"] == 4
    stages.predict(config, (str(rows),), str(done.run), str(out), None)
    assert "unchanged" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        stages.predict(config, (str(rows),), str(done.run), str(tmp_path / "other"), None)


def test_resources_are_free_again(done: stages.Job) -> None:
    import time

    import ray

    until = time.monotonic() + 30
    while time.monotonic() < until:
        free, all_ = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
        if free == all_:
            return
        time.sleep(0.5)
    pytest.fail(f"{all_ - free:g} CPUs are still held")
