"""The endpoint as Ray Serve builds it from a configuration file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray
from pydantic import ValidationError

from pipeline.errors import UserError
from serve import declared, deploy, desk


def arguments(folder: Path, **serve: object) -> declared.Arguments:
    return declared.Arguments.model_validate({"checkpoint": str(folder), "serve": serve})


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lets others reach the endpoint"):
        declared.endpoint(arguments(tmp_path, host="0.0.0.0"))
    with pytest.raises(UserError, match="no checkpoint in"):
        declared.endpoint(arguments(tmp_path))
    with pytest.raises(ValidationError, match="min_replica"):
        arguments(tmp_path, min_replica=2)
    with pytest.raises(UserError, match=r"does nothing where the endpoint is declared.*goal_ms=300' prints"):
        declared.endpoint(arguments(tmp_path, latency_goal_ms=300))
    (tmp_path / "broadsheet.json").write_text("{}")
    with pytest.raises(UserError, match=r"serve.cascade is on, and .* has no cascade: run 'broadsheet evaluate'"):
        declared.endpoint(arguments(tmp_path, cascade=True))


def test_where_serve_listens_counts_and_not_what_the_section_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "listens_on", lambda: "0.0.0.0")
    with pytest.raises(UserError, match=r"0\.0\.0\.0 lets others reach the endpoint"):
        declared.endpoint(arguments(tmp_path))


def test_an_application_with_a_desk(tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "broadsheet.json").write_text("{}")
    before = desk.names()
    try:
        first = declared.endpoint(arguments(tmp_path, min_replicas=2))
        (old,) = set(desk.names()) - set(before)
        deployment = first._bound_deployment
        assert deployment.name == "broadsheet"
        assert deployment.init_args[0].checkpoint == str(tmp_path)
        assert deployment.init_args[2] == old
        declared.endpoint(arguments(tmp_path, feedback="feedback"))
        (own,) = set(desk.names()) - {*before, old}  # the first one's replicas still have theirs
        actor = ray.get_actor(own, desk.NAMESPACE)
        state = ray.get(actor.state.remote())
        assert Path(state.config.feedback).is_absolute()
        ray.get(actor.exchange.remote(desk.Report("r", state.lineup, state="serving"), 0.0))
        until = time.monotonic() + 30
        while old in desk.names() and time.monotonic() < until:
            time.sleep(0.1)
        assert desk.names() == [own]  # a replica of the second one serves
    finally:
        desk.stop(*desk.names())
