"""The last stage of ``run`` and what ``serve --stop`` ends, as far as no Ray is needed."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Config, ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.stages import Job
from pipeline.storage import Place
from serve import deploy, release_stage, stage
from serve.capacity import Rates


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for how in ("say", "warn"):
        monkeypatch.setattr(stage.console, how, lambda tag, text: lines.append(f"{tag}: {text}"))
    return lines


def test_an_endpoint_that_the_cluster_keeps_is_left_alone(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(stage.cluster, "connect", lambda *_: None)
    monkeypatch.setattr(deploy, "runs", lambda: True)
    monkeypatch.setattr(deploy, "ours", lambda: ["broadsheet"])
    for touched in ("deploy", "end", "shutdown"):
        monkeypatch.setattr(deploy, touched, lambda *_, **__: pytest.fail("the endpoint was touched"))
    config = Config().updated({"storage": "/data/runs", "name": "new", "serve.port": 8001})
    job = Job(config, None, "", checkpoint=Place.of("/data/runs/new"))  # type: ignore[arg-type]
    stage.answer_and_stop(job, "head:6379", keep_serving=False)
    assert said[0].endswith("broadsheet serve --port 8001 --address head:6379 --update /data/runs/new")
    assert said[1:] == ["done: everything is under /data/runs/new", "next: open /data/runs/new/report/index.html"]


def test_what_is_free_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [{"CPU": 1.0}]
    monkeypatch.setattr(deploy.ray, "available_resources", lambda: free[0])
    config = ServeConfig(cpus_per_replica=2)
    assert deploy.taken(config) == "1 CPUs are free of the 2 that a replica needs"
    free[0] = {"CPU": 2.0}
    assert deploy.taken(config) is None
    assert deploy.taken(config.model_copy(update={"gpus_per_replica": 1})) == (
        "0 GPUs are free of the 1 that a replica needs"
    )


def test_a_goal_that_nothing_can_be_measured_for(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """``serve`` refuses it, ``run`` has trained by then, and a cluster that is busy keeps what is configured."""
    deployed: list[Config] = []

    def no_golden_rows(*_: object) -> None:
        raise UserError("no golden rows")

    def deploys(checkpoint: str, config: Config, **_: object) -> str:
        deployed.append(config)
        return "http://127.0.0.1:1"

    monkeypatch.setattr(deploy, "taken", lambda *_: None)
    monkeypatch.setattr(deploy, "in_a_replica", no_golden_rows)
    monkeypatch.setattr(deploy, "deploy", deploys)
    config = Config().updated({"serve.latency_goal_ms": 100, "serve.cascade": True})
    with pytest.raises(UserError, match="no golden rows"):
        stage._deploy(Place.of("/x"), config)
    stage._deploy(Place.of("/x"), config, strict=False)
    assert "serve: no golden rows. What is configured is kept" in said
    monkeypatch.setattr(deploy, "taken", lambda *_: "0 CPUs are free")
    stage._deploy(Place.of("/x"), config)
    assert any("nothing is measured, as 0 CPUs are free" in line for line in said)
    assert deployed == [config, config]
    monkeypatch.setattr(deploy, "taken", lambda *_: None)
    monkeypatch.setattr(deploy, "in_a_replica", lambda *_: (Rates(10, 100, 16, 50), 128))
    stage._deploy(Place.of("/x"), config)
    assert deployed[-1].serve.max_queue != config.serve.max_queue
    assert any("the network alone" in line for line in said)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is ended; Serve has an endpoint under its own name, one that was declared under another, and a stranger."""
    lines: list[str] = []
    there = {name: SimpleNamespace(deployments=d) for name, d in
             {"broadsheet": [], "declared": ["broadsheet"], "other": ["Other"]}.items()}  # fmt: skip
    monkeypatch.setattr(deploy.serve, "status", lambda: SimpleNamespace(applications=there))
    monkeypatch.setattr(deploy.serve, "delete", lambda name: (lines.append(name), there.pop(name)))
    monkeypatch.setattr(deploy, "shutdown", lambda: lines.append("Serve"))
    monkeypatch.setattr(deploy.desk, "names", lambda: ["d1", "d2"])
    monkeypatch.setattr(deploy.desk, "stop", lambda *names: lines.extend(names))
    monkeypatch.setattr(deploy.endpoints, "forget", lambda _: None)
    context: Any = SimpleNamespace(gcs_address="head:6379")
    monkeypatch.setattr(deploy.ray, "get_runtime_context", lambda: context)
    return lines


def test_only_the_endpoint_is_ended(ended: list[str]) -> None:
    assert deploy.end() == ["other"]
    assert ended == ["broadsheet", "declared", "d1", "d2"]
    deploy.serve.status().applications.clear()
    assert deploy.end(whole=False) == []  # of a command that did not start Serve
    assert "Serve" not in ended
    assert deploy.end() == []
    assert ended[-1] == "Serve"


def test_stop_needs_no_desk_and_minds_no_second_one(
    ended: list[str], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(release_stage.cluster, "connect", lambda *_: None)
    stop = partial(release_stage.run, Config(), release_stage.Wanted(stop=True), None, "head:6379")
    stop()  # with two desks
    assert said == ["serve: endpoint stopped; other goes on in the same Ray Serve"]
    monkeypatch.setattr(deploy.desk, "names", list)
    with pytest.raises(UserError, match="no endpoint runs on head:6379: there is nothing to stop"):
        stop()
    deploy.serve.status().applications.update(broadsheet=SimpleNamespace(deployments=[]))
    stop()
    assert ended[-1] == "broadsheet"


def test_an_endpoint_that_does_not_end(ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(name: str) -> None:
        raise TimeoutError(name)

    monkeypatch.setattr(deploy.serve, "delete", waits)
    with pytest.raises(WorkFailed, match="broadsheet is still ending"):
        deploy.end()
    assert ended == []  # its desks are left for the next try


def test_that_the_controller_is_dead_is_no_news_when_it_was_to_end() -> None:
    logger = logging.getLogger("ray.serve")
    before = logger.level
    with deploy._unsaid():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
