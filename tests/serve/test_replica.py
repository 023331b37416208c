"""What Ray Serve calls on a replica, without Ray: the app it asks for, and whether it is well."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve import app
from serve.releases import Release
from serve.roster import Model, Roster
from serve.service import SUSPICIOUS
from serve.worker import ModelFailed

httptools_impl = pytest.importorskip("uvicorn.protocols.http.httptools_impl")


def replica(engine: FakeEngine) -> app.Replica:
    made = app.Replica.__new__(app.Replica)
    made.config = ServeConfig()
    made.roster = Roster(Release("given"), Model(engine), made.config)
    made.api = None
    return made


def test_it_is_not_well_where_the_model_fails_with_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    one = replica(engine)
    one.api = FastAPI()

    async def fail() -> None:
        for _ in range(SUSPICIOUS):
            with pytest.raises(ModelFailed):
                await one.roster.classify(one.roster.stable, ["sport sport"], cut=True)

    async def run() -> None:
        await one.roster.start()
        try:
            await fail()
            tried = engine.entered
            await one.check_health()  # other texts are answered
            assert engine.entered == tried + 1
            await one.check_health()
            assert engine.entered == tried + 1
            await fail()

            def broken(ids: Any) -> Any:
                raise RuntimeError("unspecified launch failure")

            monkeypatch.setattr(one.roster.stable.service.batcher, "_forward", broken)
            with pytest.raises(RuntimeError, match="the model fails with every text"):
                await one.check_health()
        finally:
            await one.roster.stop()
        with pytest.raises(RuntimeError, match="the model thread is not running"):
            await one.check_health()

    asyncio.run(run())


def test_its_answers_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(httptools_impl.RequestResponseCycle.send, "__wrapped__", httptools_impl.RequestResponseCycle.send)
    monkeypatch.setattr(httptools_impl.RequestResponseCycle, "send", plain)  # put back at the end
    monkeypatch.setattr(app, "Mirror", lambda registry: SimpleNamespace(start=lambda: None))
    replica(FakeEngine()).__serve_build_asgi_app__()
    assert hasattr(httptools_impl.RequestResponseCycle.send, "__wrapped__")
