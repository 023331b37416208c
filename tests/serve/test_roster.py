"""Models coming and going in a replica while requests are answered."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from pipeline.errors import UserError
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place
from serve import app
from serve.api import build_app
from serve.app import first_model, load_model
from serve.releases import Lineup, Release
from serve.roster import Model, Roster
from serve.worker import ModelFailed

A, B, C = (Release(f"/{name}", name) for name in "abc")
LINEUP = Lineup(A)


class Engine(FakeEngine):
    """Answers everything with one label, that of its version: an answer shows whose it is."""

    def __init__(self, version: str, most: int = 16) -> None:
        super().__init__()
        self.version = version
        self.most = most

    def logits(self, ids: Any) -> np.ndarray:
        super().logits(ids)
        if any(len(row) > self.most for row in ids):
            raise RuntimeError("broken")
        out = np.zeros((len(ids), 4), np.float32)
        out[:, "abcd".index(self.version)] = 5
        return out


class Loader:
    """Loads engines; refuses what it was told to."""

    def __init__(self) -> None:
        self.engines: dict[Release, Engine] = {}
        self.refused: set[Release] = set()
        self.failing: set[Release] = set()
        self.words = 1  # of a text on which those do not fail; the warm-up has one

    def __call__(self, release: Release) -> Model:
        if release in self.refused:
            raise UserError(f"{release} may not take traffic")
        self.engines[release] = Engine(release.version, self.words if release in self.failing else 16)
        return Model(self.engines[release])


def run(body: Callable[[Roster, Loader], Awaitable[None]], **settings: Any) -> None:
    async def inside() -> None:
        load = Loader()
        roster = Roster(A, load(A), ServeConfig(**{"timeout_s": 20, **settings}), load)
        await roster.start()
        try:
            await body(roster, load)
        finally:
            for engine in load.engines.values():
                engine.gate.set()
            await roster.stop()

    asyncio.run(inside())


async def ask(roster: Roster, texts: list[str]) -> tuple[str, set[str]]:
    """The version that says it answered, and those that the answers come from."""
    with roster.hold(roster.next()) as model:
        result, by = await roster.classify(model, texts, cut=True)
    after = roster.shadow(by, texts, result)
    if after is not None:
        after()
    return by.engine.version, {"abcd"[i] for i in result.probabilities.argmax(1)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30) if hasattr(asyncio, "timeout") else _nothing():
        while not condition():
            await asyncio.sleep(0.005)


class _nothing:  # noqa: N801
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def test_requests_during_changes_are_answered_each_by_one_model() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        over = False
        seen: list[tuple[str, set[str]]] = []

        async def client() -> None:
            while not over:
                seen.append(await ask(roster, ["some text", "another one"]))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        lineup = LINEUP
        changes: list[Callable[[Lineup], Lineup]] = [
            lambda x: x.update(B), Lineup.rollback, lambda x: x.canary(C, 0.5), Lineup.promote,
            lambda x: x.shadowed(B), Lineup.rollback, lambda x: x.update(B), lambda x: x.update(A),
        ]  # fmt: skip
        for change in changes:
            lineup = change(lineup)
            await roster.apply(lineup)
            before = len(seen)
            await until(lambda before=before: len(seen) > before + 20)  # type: ignore[misc]
        over = True
        await asyncio.gather(*clients)  # raises what any of them met
        assert all({said} == answers for said, answers in seen)
        assert {said for said, _ in seen} == {"a", "b", "c"}
        assert [r.release for r in roster.loaded] == [A, B]

    run(body)


def test_a_request_ends_on_the_model_it_began_on_and_then_that_is_freed() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        engine = load.engines.pop(A)
        gone = weakref.ref(engine)
        engine.gate.clear()
        running = asyncio.create_task(ask(roster, ["a text"]))
        await until(lambda: roster.stable.in_use == 1)
        await roster.apply(LINEUP.update(B))
        assert await ask(roster, ["a text"]) == ("b", {"b"})
        assert not running.done()
        engine.gate.set()
        assert await running == ("a", {"a"})
        await until(lambda: not roster._stopping)
        del engine, running
        gc.collect()
        assert gone() is None

    run(body, keep_previous=False)


def test_the_previous_model_stays_for_a_rollback() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        await roster.apply(LINEUP.update(B))
        load.refused = {A, B}  # nothing needs to be loaded
        await roster.apply(LINEUP.update(B).rollback())
        assert await ask(roster, ["x"]) == ("a", {"a"})
        assert [r.release for r in roster.loaded] == [A]

    run(body)


def test_what_cannot_be_loaded_changes_nothing() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        load.refused = {B}
        for lineup in (LINEUP.update(B), LINEUP.canary(B, 0.5), Lineup(C, 9, candidate=B, share=0.5)):
            with pytest.raises(UserError, match="may not take traffic"):
                await roster.apply(lineup)
            assert roster.lineup.generation == 0
            assert {(await ask(roster, ["x"]))[0] for _ in range(4)} == {"a"}

    run(body)


def test_what_was_loaded_in_vain_is_freed() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        load.refused = {C}
        with pytest.raises(UserError, match="may not take traffic"):
            await roster.apply(Lineup(B, 2, candidate=C, share=0.5))
        gone = weakref.ref(load.engines.pop(B))
        await until(lambda: not roster._stopping)
        gc.collect()  # an exception is a cycle with its frames
        assert gone() is None
        load.failing, load.refused = {B}, set()
        load.words = 0
        with pytest.raises(ModelFailed, match="broken"):
            await roster.apply(LINEUP.update(B))
        await until(lambda: not roster._stopping)
        queues = [
            line for line in generate_latest(roster.metrics.registry).decode().splitlines() if "queue_texts{" in line
        ]
        assert queues == ['broadsheet_queue_texts{version="a"} 0.0']

    run(body)


def test_a_replica_that_starts_loads_the_previous_model_afterwards() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        await roster.apply(Lineup(A, 5, previous=B))
        assert [r.release for r in roster.loaded] == [A]
        await roster.recall()
        assert [r.release for r in roster.loaded] == [A, B]
        load.refused = {C}
        await roster.apply(Lineup(A, 6, previous=C))
        await roster.recall()
        assert [r.release for r in roster.loaded] == [A]

    run(body)


def test_a_candidate_that_fails_is_counted_and_the_stable_model_answers() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        load.failing = {B}
        await roster.apply(LINEUP.canary(B, 0.5))
        answers = [await ask(roster, ["two words"]) for _ in range(20)]
        assert answers == [("a", {"a"})] * 20
        candidate = roster.candidate
        assert candidate is not None
        assert (candidate.tally.requests, candidate.tally.failed) == (10, 10)
        assert (roster.stable.tally.requests, roster.stable.tally.failed) == (20, 0)
        with pytest.raises(ModelFailed):
            await roster.classify(candidate, ["two words"], True, pinned=True)

    run(body)


def test_a_shadow_is_compared_and_never_asked_first() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        await roster.apply(LINEUP.shadowed(B))
        shadow = roster.candidate
        assert shadow is not None
        assert {(await ask(roster, ["one text", "two"]))[0] for _ in range(5)} == {"a"}
        await until(lambda: shadow.tally.compared + 2 * shadow.tally.skipped == 10)
        assert shadow.tally.agreed == 0
        load.engines[B].gate.clear()  # now it hangs
        for _ in range(100):
            assert (await ask(roster, ["one text"]))[0] == "a"
        assert shadow.tally.skipped > 0
        load.engines[B].gate.set()
        await roster.apply(LINEUP.shadowed(B).rollback())
        assert (await ask(roster, ["one text"]))[0] == "a"
        await until(lambda: not roster._stopping)

    run(body)


def test_a_shadow_that_fails_harms_nobody() -> None:
    async def body(roster: Roster, load: Loader) -> None:
        load.failing = {B}
        await roster.apply(LINEUP.shadowed(B))
        for _ in range(10):
            assert (await ask(roster, ["two words"]))[0] == "a"
        shadow = roster.candidate
        assert shadow is not None
        await until(lambda: shadow.tally.failed > 0)
        assert shadow.tally.compared == 0

    run(body)


def test_over_http() -> None:
    load = Loader()
    roster = Roster(A, load(A), ServeConfig(), load)

    async def beside(there: Roster) -> None:
        await there.apply(Lineup(A, 2, candidate=B, share=0.25))
        await asyncio.Event().wait()

    with TestClient(build_app(roster, ServeConfig(), beside)) as http:
        while roster.lineup.generation != 2:
            assert http.get("/ready").status_code == 200
        body = {"inputs": "a text"}
        seen = [http.post("/v1/classify", json=body).headers["x-model-version"] for _ in range(40)]
        assert (seen.count("a"), seen.count("b")) == (30, 10)
        for name, version in (("stable", "a"), ("candidate", "b")):
            for path in ("/v1/classify", "/v1/explain"):
                answer = http.post(path, json=body, headers={"x-broadsheet-release": name})
                assert answer.headers["x-model-version"] == version
        refused = http.post("/v1/classify", json=body, headers={"x-broadsheet-release": "both"})
        assert refused.status_code == 422
        assert "'stable' or 'candidate'" in refused.json()["error"]
        assert http.post("/v1/explain", json=body).headers["x-model-version"] == "a"
        assert http.get("/v2/models/broadsheet").json()["versions"] == ["a", "b"]
        tensor = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
        for version in ("a", "b"):
            path = f"/v2/models/broadsheet/versions/{version}"
            assert http.post(f"{path}/infer", json=tensor).json()["model_version"] == version
            assert http.get(f"{path}/ready").status_code == 200
        missing = http.post("/v2/models/broadsheet/versions/c/infer", json=tensor)
        assert (missing.status_code, "it is 'a' and 'b'" in missing.json()["error"]) == (404, True)
        metrics = http.get("/metrics").text
        assert 'broadsheet_model_info{release="candidate",version="b"} 1.0' in metrics
        assert 'broadsheet_model_requests_total{outcome="ok",version="b"} 12.0' in metrics


def test_the_first_model_of_a_replica() -> None:
    own = Release("/own")
    tried: list[Release] = []
    bad: set[Release] = set()

    def load(release: Release) -> Model:
        tried.append(release)
        if release in bad:
            raise UserError("damaged")
        return Model(Engine("a"))

    assert first_model(own, None, load)[0] == own
    assert first_model(own, Lineup(B, previous=A), load)[0] == B
    bad = {B}
    assert first_model(own, Lineup(B, previous=A), load)[0] == A
    bad = {A, B}
    assert first_model(own, Lineup(B, previous=A), load)[0] == own
    bad = {A, B, own}
    with pytest.raises(UserError, match="damaged"):
        first_model(own, Lineup(B, previous=A), load)


def test_only_what_answers_its_golden_rows_is_loaded(bert: Any, tmp_path: Any) -> None:
    import shutil

    from pipeline.evaluate.classifier import Classifier

    folder = tmp_path / "checkpoint"
    shutil.copytree(bert, folder)
    classifier = Classifier.load(str(folder))
    texts = ["bank market " * n for n in range(1, 12)]
    logits = classifier.logits(classifier.encode(texts).ids)
    config = ServeConfig(batch_tokens=64)
    assert load_model(Release(str(folder)), config).engine.version == classifier.version  # without golden rows
    Golden(texts, logits.argmax(1).astype(np.int64), logits).save(Place.of(folder))
    load_model(Release(str(folder), classifier.version), config)
    with pytest.raises(UserError, match=f"has changed: it was another, and is {classifier.version} now"):
        load_model(Release(str(folder), "another"), config)
    Golden(texts, logits.argmax(1).astype(np.int64), -logits).save(Place.of(folder))
    with pytest.raises(UserError, match="may not take traffic: it answers 11 of 11 golden rows with another label"):
        load_model(Release(str(folder)), config)


def test_an_engine_that_fails_the_golden_rows_gives_way_to_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """In batches, and one by one where another engine runs those."""
    logits = np.eye(4, dtype=np.float32)[np.arange(12) % 4] * 9
    texts = [FakeEngine.labels[i % 4] for i in range(12)]
    Golden(texts, logits.argmax(1).astype(np.int64), logits).save(Place.of(tmp_path))

    class Wrong(FakeEngine):
        def __init__(self, single: str, batch: str) -> None:
            super().__init__()
            self.runs = {"single": single, "batch": batch}

        def logits(self, ids: Any) -> np.ndarray:
            right = np.eye(4, dtype=np.float32)[[int(row[-1]) % 4 for row in ids]] * 9
            return -right if self.runs["single" if len(ids) == 1 else "batch"] == "wrong" else right

    for single, batch in (("wrong", "wrong"), ("wrong", "onnx"), ("onnx", "wrong")):
        engine = Wrong(single, batch)
        monkeypatch.setattr(app, "load_engine", lambda *_, of=engine: of)
        model = load_model(Release(str(tmp_path)), ServeConfig())
        assert model.engine.runs == {"single": "torch", "batch": "torch"}
    kept = Wrong("onnx", "onnx-int8")
    monkeypatch.setattr(app, "load_engine", lambda *_: kept)
    assert load_model(Release(str(tmp_path)), ServeConfig()).engine.runs == {"single": "onnx", "batch": "onnx-int8"}
