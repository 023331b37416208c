"""A new model without an outage, for real: Ray Serve behind HAProxy, steady load, the command in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
import ray.util.state
import small_bert

from pipeline.config import Config
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.golden import Golden
from pipeline.storage import Place
from serve import deploy, desk, haproxy_processes, memory, release_stage, status
from serve.desk import State
from serve.haproxy_processes import STAND_IN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TEXTS = [" ".join(words[i : i + 3]) for words in small_bert.WORDS.values() for i in range(7)]


def with_golden(folder: Path) -> str:
    """Golden rows as ``broadsheet evaluate`` leaves them; returns the version."""
    classifier = Classifier.load(str(folder))
    logits = classifier.logits(classifier.encode(TEXTS).ids)
    Golden(TEXTS, logits.argmax(1).astype(np.int64), logits).save(Place.of(folder))
    return classifier.version


@pytest.fixture(scope="module")
def old(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("old") / "checkpoint"
    shutil.copytree(bert, folder)
    return folder, with_golden(folder)


@pytest.fixture(scope="module")
def new(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same network with other weights."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("new") / "checkpoint"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = -weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder, with_golden(folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    from conftest import unused_port

    before = os.environ.get("BROADSHEET_CACHE")
    os.environ["BROADSHEET_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Config().updated({"serve.port": unused_port(), "serve.max_replicas": 2, "serve.min_replicas": 2})
    os.environ.pop("BROADSHEET_CACHE")
    if before is not None:
        os.environ["BROADSHEET_CACHE"] = before


@pytest.fixture(scope="module")
def url(ray_session: None, old: tuple[Path, str], settings: Config) -> Iterator[str]:
    yield deploy.deploy(str(old[0]), settings)
    deploy.shutdown()


class Load:
    """Clients that never stop asking, and what they were answered: statuses, and texts by version."""

    def __init__(self, url: str, threads: int = 3) -> None:
        self.url = url
        self.failures: list[str] = []
        self.answers: list[tuple[float, str]] = []  # when they were asked for, and the version that answered
        self.wrong: list[str] = []
        self.known: dict[str, list[str]] = {}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    response = http.post("/v1/classify", json={"inputs": TEXTS, "top_k": 1})
                except httpx.HTTPError as e:
                    self.failures.append(repr(e))
                    continue
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code} {response.text}")
                    continue
                version = response.headers["x-model-version"]
                self.answers.append((began, version))
                labels = [row[0]["label"] for row in response.json()]
                if labels != self.known.setdefault(version, labels):
                    self.wrong.append(version)

    def more(self, requests: int = 30) -> Counter[str]:
        """The versions that answer requests which begin now."""
        now, end = time.monotonic(), time.monotonic() + 120
        while True:
            seen = Counter(version for began, version in list(self.answers) if began > now)
            if seen.total() >= requests:
                return seen
            assert time.monotonic() < end, f"{seen.total()} answers; {self.failures[:3]}"
            time.sleep(0.05)

    @property
    def versions(self) -> set[str]:
        """All that answered."""
        return {version for _, version in self.answers}


def command(settings: Config, *flags: str) -> subprocess.CompletedProcess[str]:
    """``broadsheet serve`` in a process of its own."""
    argv = [sys.executable, str(ROOT / "broadsheet.py"), "serve", "--port", str(settings.serve.port), *flags]
    # As in another shell: without what 'ray.init' has put into the environment of this process.
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=400)


def state() -> State:
    """What the desk knows; one that is just being restarted is asked again."""
    (name,) = desk.names()
    found: State = release_stage.Desk(ray.get_actor(name, desk.NAMESPACE)).state()
    return found


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_no_request_fails_while_models_come_and_go(
    url: str, settings: Config, old: tuple[Path, str], new: tuple[Path, str], tmp_path: Path
) -> None:
    before, after = old[1], new[1]

    def change(**flags: object) -> None:
        release_stage.run(settings, release_stage.Wanted(**flags), None, None)  # type: ignore[arg-type]

    with Load(url) as load:
        assert set(load.more()) == {before}
        done = command(settings, "--update", str(new[0]))
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "2 of 2 replicas serve it" in done.stdout
        assert set(load.more()) == {after}

        change(rollback=True)
        assert set(load.more()) == {before}

        change(update=str(new[0]), canary="50%")
        seen = load.more(200)
        assert seen[before] == pytest.approx(seen[after], abs=10)
        status = command(settings, "--status")
        assert status.returncode == 0, status.stderr
        assert "50%" in status.stdout
        assert after in status.stdout
        pinned = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXTS[0]]}]}
        for version in (before, after):
            answer = httpx.post(f"{url}/v2/models/broadsheet/versions/{version}/infer", json=pinned, timeout=60)
            assert answer.json()["model_version"] == version

        damaged = tmp_path / "damaged"
        shutil.copytree(old[0], damaged)
        shutil.copy(new[0] / "golden.parquet", damaged / "golden.parquet")
        with pytest.raises(UserError, match="is on trial"):
            change(update=str(damaged))

        change(promote=True)
        assert set(load.more()) == {after}
        done = command(settings, "--update", str(damaged))
        assert done.returncode == 1, done.stderr
        assert "golden rows with another label" in done.stderr
        assert set(load.more()) == {after}

        change(rollback=True)
        assert set(load.more()) == {before}
    assert load.failures == []
    assert load.wrong == []
    assert load.known[before] != load.known[after]


@pytest.mark.timeout(400)
def test_replicas_refuse_what_the_command_did_not_see_and_the_old_lineup_comes_back(
    url: str, settings: Config, old: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(old[0], damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    monkeypatch.setattr(release_stage, "_try", lambda *_: None)
    was = state().lineup
    with Load(url) as load:
        with pytest.raises(WorkFailed, match=r"a replica refused: .*damaged"):
            release_stage.run(settings, release_stage.Wanted(update=str(damaged)), None, None)
        load.more()
    assert load.versions == {old[1]}
    assert load.failures == []
    assert state().lineup.stable == was.stable


@pytest.mark.timeout(400)
def test_a_shadow_is_compared_and_answers_nothing(
    url: str, settings: Config, old: tuple[Path, str], new: tuple[Path, str]
) -> None:
    with Load(url, threads=1) as load:
        release_stage.run(settings, release_stage.Wanted(update=str(new[0]), shadow=True), None, None)
        release = state().lineup.candidate
        assert release is not None
        load.more()
        until(lambda: status.total(list(state().reports.values()), release).compared > 0)
        release_stage.run(settings, release_stage.Wanted(rollback=True), None, None)
    assert load.versions == {old[1]}
    assert load.failures == []


@pytest.mark.timeout(400)
def test_a_replica_that_is_killed_and_a_desk_that_died_come_back_to_the_same_lineup(
    url: str, settings: Config, new: tuple[Path, str]
) -> None:
    release_stage.run(settings, release_stage.Wanted(update=str(new[0]), canary="50%"), None, None)
    lineup = state().lineup
    (name,) = desk.names()
    kept = memory.ClusterMemory(name).read()
    assert kept is not None
    assert kept[0] == lineup
    ray.kill(ray.get_actor(name, desk.NAMESPACE), no_restart=False)
    assert state().lineup == lineup  # before any replica has said a word
    until(lambda: len(state().reports) == 2)
    assert state().lineup == lineup
    here = ray.get_runtime_context().gcs_address  # there may be another Ray on the machine
    alive = ray.util.state.list_actors(here, filters=[("state", "=", "ALIVE")])
    pids = [actor["pid"] for actor in alive if "Replica" in actor["class_name"]]
    os.kill(pids[0], signal.SIGKILL)

    def back() -> bool:
        found = state()
        serving = [r for r in found.reports.values() if r.serving == lineup.generation]
        return len(serving) == 2 and bool(found.lost)

    until(back, 120)
    assert state().lineup == lineup
    with Load(url) as load:
        seen = load.more(100)
    assert len(seen) == 2
    assert load.failures == []


@pytest.mark.timeout(400)
def test_a_killed_haproxy_has_a_stand_in_until_rays_own_is_back(url: str, settings: Config) -> None:
    file = deploy._haproxy_config()

    def fronts(stand_in: bool) -> list[int]:
        found = haproxy_processes.running(file)
        return [pid for pid, line in found if (STAND_IN in line) == stand_in and haproxy_processes.listens(pid)]

    (pid,) = fronts(False)
    os.kill(pid, signal.SIGKILL)
    until(lambda: fronts(True), 20)
    assert httpx.get(f"{url}/ready", timeout=60).status_code == 200
    until(lambda: fronts(False) and not fronts(True), 120)
    with Load(url) as load:
        load.more(50)
    assert load.failures == []


def test_nothing_runs_there(settings: Config, free_port: int) -> None:
    done = command(settings.updated({"serve.port": free_port}), "--status")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: no endpoint runs here on port {free_port}: start one with 'broadsheet serve RUN', or name its --port "
        "or --address\n"
    )


def test_shutdown_takes_the_desk_along(url: str, settings: Config) -> None:
    """Last: it stops the endpoint."""
    deploy.shutdown()
    until(lambda: desk.names() == [], 30)
    assert not list(Path(os.environ["BROADSHEET_CACHE"], "endpoints").iterdir())
