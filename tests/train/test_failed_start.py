"""A group of workers that failed to start gives its CPUs back: the next one needs them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.train.failed_start import RAY_TRAIN_CALLBACKS_ENV_VAR, FreeFailedStart, freed


class State:
    def __init__(self) -> None:
        self.ended = 0

    def shutdown(self) -> None:
        self.ended += 1

    def get_worker_group_state(self) -> State:
        return self


def test_only_what_nobody_else_frees_is_freed() -> None:
    callback, good, failed = FreeFailedStart(), State(), State()
    with callback.on_worker_group_start():
        callback.after_worker_group_start(good)
    callback.after_worker_group_shutdown(None)
    with contextlib.suppress(RuntimeError), callback.on_worker_group_start():
        callback.after_worker_group_start(failed)
        raise RuntimeError
    with contextlib.suppress(RuntimeError), callback.on_worker_group_start():
        raise RuntimeError
    assert (good.ended, failed.ended) == (0, 1)


def test_the_variable_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "other.Callback"):
        monkeypatch.delenv(RAY_TRAIN_CALLBACKS_ENV_VAR, raising=False)
        if before:
            monkeypatch.setenv(RAY_TRAIN_CALLBACKS_ENV_VAR, before)
        with freed():
            named = os.environ[RAY_TRAIN_CALLBACKS_ENV_VAR].split(",")
            assert named[0] == "pipeline.train.failed_start.FreeFailedStart"
            assert named[1:] == ([before] if before else [])
        assert os.environ.get(RAY_TRAIN_CALLBACKS_ENV_VAR) == before


def test_the_next_group_finds_room(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsOnce(Backend):  # here: Ray's processes cannot import this file
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            marker = Path(backend_config.marker)
            if not marker.exists():
                marker.touch()
                raise RayActorError  # as where a node is lost meanwhile

    @dataclass
    class Config(BackendConfig):
        marker: str = ""

        @property
        def backend_cls(self) -> type[Backend]:
            return FailsOnce

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    total = int(ray.cluster_resources()["CPU"])
    run: dict[str, Any] = {"failure_config": ray.train.FailureConfig(max_failures=1, controller_failure_limit=1)}
    with freed():
        DataParallelTrainer(
            lambda: None,
            backend_config=Config(str(tmp_path / "failed")),
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": total}),
            run_config=ray.train.RunConfig(storage_path=str(tmp_path), **run),
        ).fit()
    assert (tmp_path / "failed").exists()
