"""Curves in JSON lines, TensorBoard and MLflow: each step once, whatever was resumed or away for a while."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from pipeline.config import Config, load
from pipeline.errors import UserError
from pipeline.storage import Place
from pipeline.train import track


def report(step: int) -> list[dict[str, Any]]:
    """What two workers report."""
    return [{"step": float(step), "epoch": step / 10, "loss": 1 / step, "validation_macro_f1": 0.5, "seconds": 1.5}] * 2


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of event files: records of length [8], its checksum [4], data and its checksum [4]."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        raw = file.read_bytes()
        while raw:
            size = int.from_bytes(raw[:8], "little")
            event = Event.FromString(raw[12 : 12 + size])
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {})
                found[value.tag][event.step] = value.simple_value
            raw = raw[16 + size :]
    return found


def begun(folder: Path, *stores: str, training: str = "abc", resumed: bool = False) -> track.Tracking:
    config = load(None, [f"train.track=[{','.join(stores)}]"])
    return track.begin(config, Place.of(folder), training, resumed)


def test_a_line_per_evaluation_and_none_twice(tmp_path: Path) -> None:
    first = begun(tmp_path)
    for step in (10, 20, 30):
        first.after_report(None, report(step), None)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert lines(tmp_path)[0] == {"training": "abc", "time": lines(tmp_path)[0]["time"], **report(10)[0]}
    again = pickle.loads(pickle.dumps(begun(tmp_path, resumed=True)))  # as Ray sends it to its controller
    for step in (20, 30, 40):  # the last checkpoint was that of step 10
        again.after_report(None, report(step), None)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]
    other = begun(tmp_path, training="other", resumed=True)
    other.after_report(None, report(10), None)
    assert [(line["training"], line["step"]) for line in lines(tmp_path)] == [("other", 10)]
    begun(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    tracking = begun(tmp_path, "tensorboard")
    for step in (10, 20):
        tracking.after_report(None, report(step), None)
    (tmp_path / "tensorboard" / "events.out.tfevents.0000000010.broadsheet").unlink()  # as if the disk had been full
    tracking.end([])
    found = scalars(tmp_path / "tensorboard")
    assert found.keys() == {"epoch", "loss", "validation_macro_f1", "seconds"}
    assert found["loss"] == {10: pytest.approx(0.1), 20: pytest.approx(0.05)}
    begun(tmp_path, "tensorboard")
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_itself_agrees(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = begun(tmp_path, "tensorboard")
    for step in (10, 20):
        tracking.after_report(None, report(step), None)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("loss")] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]


def test_mlflow_keeps_one_run_per_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking_client = pytest.importorskip("mlflow.tracking")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")
    first = begun(tmp_path, "mlflow")
    first.after_report(None, report(10), None)
    again = begun(tmp_path, "mlflow", resumed=True)
    with monkeypatch.context() as away:
        away.setattr(track.Mlflow, "log", lambda *_: 1 / 0)
        again.after_report(None, report(20), None)  # the store is away: training goes on
    again.after_report(None, report(30), None)
    again.end([])
    client = tracking_client.MlflowClient(tracking_uri=f"file://{tmp_path / 'mlflow'}")
    experiment = client.get_experiment_by_name("broadsheet").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2.0"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(s, pytest.approx(1 / s)) for s in (10, 20, 30)]
    begun(tmp_path, "mlflow")
    assert len(client.search_runs([experiment])) == 2


def test_a_store_that_fails_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = begun(tmp_path, "tensorboard")
    tracking.after_report(None, report(10), None)
    (tmp_path / "tensorboard" / "events.out.tfevents.0000000010.broadsheet").unlink()
    (tmp_path / "tensorboard").rmdir()
    (tmp_path / "tensorboard").touch()  # no folder can be made here
    tracking.end([])
    said = capsys.readouterr()
    assert "TensorBoard did not take all curves" in " ".join((said.out + said.err).split())


def test_what_cannot_work_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="must name an MLflow server"):
        track.Mlflow.open(Config(), Place("s3://bucket/run"), "abc", False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(UserError, match=r"the store nonsense://x cannot be used.*MLFLOW_TRACKING_URI names another"):
        begun(tmp_path, "mlflow")
    real = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name.startswith("mlflow"):
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'broadsheet\[mlflow\]'"):
        begun(tmp_path, "mlflow")
    with pytest.raises(UserError, match=r"train\.track"):
        begun(tmp_path, "wandb")


def test_what_no_report_told_of_is_in_the_last_checkpoint(tmp_path: Path) -> None:
    tracking = begun(tmp_path, "tensorboard")
    tracking.after_report(None, report(10), None)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write("half a li")
    tracking.end([report(step)[0] for step in (10, 20)])  # killed between the checkpoint of step 20 and its report
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    assert scalars(tmp_path / "tensorboard")["loss"].keys() == {10, 20}
