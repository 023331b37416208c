"""The curves of a training: ``metrics.jsonl`` always, TensorBoard and MLflow on demand, through a Ray Train callback.

The callback runs in Ray Train's controller, on whatever node that is. The JSON lines are the record: a step stands in
them once, whatever was resumed, and the other stores are brought up to them at the end, so that a store that was away
for a while costs no training and misses nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ray.train import UserCallback

from pipeline import console
from pipeline.config import Config
from pipeline.errors import UserError, first_line
from pipeline.storage import Place

EXPERIMENT = "broadsheet"
TAG = "broadsheet.training"  # on an MLflow run: which training it belongs to
Entry = dict[str, Any]


class Store(Protocol):
    """Where curves go besides the JSON lines."""

    name: str

    def steps(self) -> set[int]:
        """The steps it has."""

    def log(self, entry: Entry) -> None:
        """Take the figures of one evaluation."""

    def end(self) -> None:
        """No more will come."""


class Tracking(UserCallback):
    """Follows one training.

    Args:
        file: the JSON lines.
        training: fingerprint of the training; lines of another one are dropped.
        stores: where the figures go besides.
    """

    def __init__(self, file: Place, training: str, stores: list[Store]) -> None:
        self.file = file
        self.training = training
        self.stores = stores

    def entries(self) -> list[Entry]:
        """The lines so far."""
        if not self.file.exists():
            return []
        lines: list[Entry] = []
        for line in self.file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a person may have been at it
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and line.get("training") == self.training]

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Ray Train calls this when all workers have reported; all of them report the same figures."""
        for entry in self._add(metrics[:1]):
            for store in self.stores:
                with contextlib.suppress(Exception):  # ``end`` makes up for it, and tells
                    store.log(entry)

    def _add(self, history: Sequence[dict[str, Any]]) -> list[Entry]:
        """Write the evaluations that have no line yet; returns those."""
        known = self.entries()
        there = {line["step"] for line in known}  # a resumed training comes past a step once more
        now = datetime.now(timezone.utc).isoformat()
        new = [
            {"training": self.training, "time": now, **entry, "step": int(entry["step"])}
            for entry in history
            if int(entry["step"]) not in there
        ]
        if new:
            lines = sorted([*known, *new], key=lambda line: line["step"])
            # The whole file anew: it is small, and appears at once on object stores, too.
            self.file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return new

    def end(self, history: Sequence[dict[str, Any]]) -> None:
        """Bring file and stores up to the history in the last checkpoint; a store that fails costs a warning.

        A command that was killed between a checkpoint and its report has left a gap.
        """
        self._add(history)
        for store in self.stores:
            try:
                there = store.steps()
                for entry in self.entries():
                    if entry["step"] not in there:
                        store.log(entry)
                store.end()
            except Exception as e:
                first = first_line(e)
                console.warn("train", f"{store.name} did not take all curves ({first}); they are in {self.file}")


def begin(config: Config, run: Place, training: str, resumed: bool) -> Tracking:
    """Open what ``train.track`` names, before any work.

    Args:
        config: of the run.
        run: its folder: ``metrics.jsonl`` and ``tensorboard/`` or ``mlflow/`` go there.
        training: fingerprint of the training.
        resumed: whether it goes on with one that was cut off; else earlier curves make room.

    Raises:
        UserError: an extra is not installed, or MLflow's store cannot be used.
    """
    stores: list[Store] = []
    if "tensorboard" in config.train.track:
        stores.append(TensorBoard(run / "tensorboard"))
    if "mlflow" in config.train.track:
        stores.append(Mlflow.open(config, run, training, resumed))
    if not resumed:
        (run / "metrics.jsonl").delete()
        (run / "tensorboard").delete()
    return Tracking(run / "metrics.jsonl", training, stores)


class TensorBoard:
    """Event files, one per evaluation: each is written whole, under a name that its step decides."""

    name = "TensorBoard"

    def __init__(self, folder: Place) -> None:
        self._folder = folder

    def steps(self) -> set[int]:
        """As of ``Store``."""
        return {int(f.name.split(".")[3]) for f in self._folder.files() if f.name.startswith("events.out.tfevents.")}

    def log(self, entry: Entry) -> None:
        """As of ``Store``."""
        from tensorboardX import SummaryWriter

        with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
            writer = SummaryWriter(logdir=temporary)
            at = datetime.fromisoformat(entry["time"]).timestamp()
            for name, value in figures(entry).items():
                writer.add_scalar(name, value, global_step=entry["step"], walltime=at)
            writer.close()
            (file,) = Path(temporary).glob("events.out.tfevents.*")
            # TensorBoard reads the files of a folder in the order of their names.
            (self._folder / f"events.out.tfevents.{entry['step']:010d}.broadsheet").write_bytes(file.read_bytes())

    def end(self) -> None:
        """As of ``Store``."""


class Mlflow:
    """A run in an MLflow store: a server's (MLFLOW_TRACKING_URI), else the folder ``mlflow`` of the run.

    Args:
        uri: of the store.
        run: id of the MLflow run.
        environment: the variables that MLflow needs, for the process that Ray Train's controller is.
    """

    name = "MLflow"

    def __init__(self, uri: str, run: str, environment: dict[str, str]) -> None:
        self._uri = uri
        self._run = run
        self._environment = environment

    @classmethod
    def open(cls, config: Config, run: Place, training: str, resumed: bool) -> Mlflow:
        """Begin an MLflow run, or find the one that a training which was cut off had begun.

        Raises:
            UserError: MLflow is not installed, or its store cannot be used.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"file://{run / 'mlflow'}"
        if not os.environ.get("MLFLOW_TRACKING_URI") and not run.is_local:
            raise UserError(
                f"train.track=mlflow: {run} is no local folder, so MLFLOW_TRACKING_URI must name an MLflow server"
            )
        # MLflow 3 wants a database where there is no server; its small client can write none, but reads plain files.
        environment = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment |= {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
        os.environ.update(environment)
        try:
            from mlflow.entities import Param
            from mlflow.tracking import MlflowClient
        except ImportError as e:
            raise UserError("train.track=mlflow needs MLflow: pip install 'broadsheet[mlflow]'") from e
        try:
            client: Any = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            wanted = f"tags.`{TAG}` = '{training}'"
            runs = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"]) if resumed else []
            if not runs:
                runs = [client.create_run(experiment, run_name=config.name, tags={TAG: training})]
                settings = {**config.train.model_dump(mode="json"), "model": config.model.name, "seed": config.seed}
                params = [Param(key, str(value)) for key, value in settings.items() if value is not None]
                client.log_batch(runs[0].info.run_id, params=params)
        except Exception as e:  # MLflow's own kinds, and those of its HTTP client
            first = first_line(e)
            raise UserError(
                f"train.track=mlflow: the store {uri} cannot be used: {first} (MLFLOW_TRACKING_URI names another)"
            ) from e
        return cls(uri, runs[0].info.run_id, environment)

    def _client(self) -> Any:
        os.environ.update(self._environment)
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self._uri)

    def steps(self) -> set[int]:
        """As of ``Store``."""
        return {point.step for point in self._client().get_metric_history(self._run, "loss")}

    def log(self, entry: Entry) -> None:
        """As of ``Store``."""
        client = self._client()
        from mlflow.entities import Metric

        at = int(1000 * datetime.fromisoformat(entry["time"]).timestamp())
        client.log_batch(self._run, [Metric(k, v, at, entry["step"]) for k, v in figures(entry).items()])

    def end(self) -> None:
        """As of ``Store``."""
        self._client().set_terminated(self._run, end_time=int(1000 * time.time()))


def figures(entry: Entry) -> dict[str, float]:
    """The curves in a line: every number but the step."""
    return {k: float(v) for k, v in entry.items() if isinstance(v, (int, float)) and k != "step"}
