"""The last stage of ``run`` and what ``serve --stop`` ends, as far as no Ray is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.stages import Job
from pipeline.storage import Place
from serve import deploy, stage


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
