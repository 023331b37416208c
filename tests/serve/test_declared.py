"""The endpoint as Ray Serve builds it from a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import UserError
from serve import declared, desk


def arguments(folder: Path, **serve: object) -> declared.Arguments:
    return declared.Arguments.model_validate({"checkpoint": str(folder), "serve": serve})


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lets others reach the endpoint"):
        declared.endpoint(arguments(tmp_path, host="0.0.0.0"))
    with pytest.raises(UserError, match="no checkpoint in"):
        declared.endpoint(arguments(tmp_path))
    with pytest.raises(ValidationError, match="min_replica"):
        arguments(tmp_path, min_replica=2)


def test_an_application_with_a_desk(tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "broadsheet.json").write_text("{}")
    before = desk.names()
    try:
        for _ in range(2):  # the second takes the place of the first
            app = declared.endpoint(arguments(tmp_path, min_replicas=2))
            (own,) = set(desk.names()) - set(before)
        deployment = app._bound_deployment
        assert deployment.name == "broadsheet"
        assert deployment.init_args[0].checkpoint == str(tmp_path)
        assert deployment.init_args[2] == own
    finally:
        desk.stop(*desk.names())
