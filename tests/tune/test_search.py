"""Searches on Ray, small but real: to the end, extended, cut off, with trials that fail, and as a population."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from preparing import write_csv
from safetensors.numpy import load_file

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from pipeline.train import checkpoint
from tune import keep, launch, search

pytestmark = pytest.mark.timeout(500)

WORDS = {"sport": ["match", "goal", "team", "coach"], "money": ["bank", "shares", "profit", "trade"]}
SETS = [
    "model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.batch_tokens=256",
    "tune.trials=3", "tune.rungs=2", "tune.epochs=4", "tune.seeds=1", "data.near_duplicates=keep",
    "tune.space={train.learning_rate: {loguniform: [1e-3, 3e-2]}, model.hidden: {choice: [[16], [8]]}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = random.Random(1)
    lines = []
    for i in range(400):
        label = list(WORDS)[i % 2]
        words = generator.choices(WORDS[label], k=3) + generator.choices(WORDS["money"] + WORDS["sport"], k=2)
        lines.append((" ".join([*words, str(generator.randrange(10**6))]), label))
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", lines)


def configured(rows: str, folder: Path, *sets: str) -> Config:
    return configuration.load(None, [*SETS, *sets], {"storage": str(folder), "data.train": (rows,)})


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def idle() -> bool:
    import ray

    until = time.monotonic() + 30
    while time.monotonic() < until:
        if ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


def test_a_search_to_its_end_and_further(
    rows: str, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(rows, tmp_path)
    search.run(config, None)
    assert idle()
    said = capsys.readouterr().out
    assert "3 trials, 3 at once" in said
    assert re.search(r"trial 1 is the default recipe", said)
    folder = tmp_path / "search"
    done = trials_of(folder)
    assert [t["phase"] for t in done[:3]] == ["search"] * 3
    assert done[0]["point"] == {"train.learning_rate": 3e-3, "model.hidden": [16]}
    assert all(t["status"] in ("finished", "stopped") for t in done)
    assert all(t["history"][0]["step"] < t["history"][-1]["step"] for t in done if t["status"] == "finished")
    facts = json.loads((folder / "search.json").read_text())
    card = checkpoint.read_card(checkpoint.find(str(folder)))
    assert card["training"]["trial"] == facts["best"]
    assert card["metrics"]["validation"]["macro_f1"] == pytest.approx(done[facts["best"] - 1]["best"])
    assert checkpoint.find(str(folder / "best"))
    assert not (folder / "trials").exists()
    page = (folder / "report" / "search.html").read_text()
    assert "Parallel coordinates" in page
    assert "http://" not in re.sub(r"data:[^\"]+", "", page)

    search.run(config, None)
    assert "unchanged, the search is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another search: tune\.epochs differs"):
        search.run(config.updated({"tune.epochs": 5.0}), None)

    saved = configuration.load(search.saved_config(config.storage, None))
    search.run(saved.updated({"tune.trials": 3}), None, extend=1)  # what was refused has left no trace
    more = trials_of(folder)
    assert [t for t in more if t["phase"] == "search"][:3] == done[:3]
    assert len([t for t in more if t["phase"] == "search"]) == 4
    assert json.loads((folder / "search.json").read_text())["result"]
    search.show(str(folder))
    assert "1\u00a0(default)" in capsys.readouterr().out


def trial_processes() -> list[int]:
    """The processes of this session's trials."""
    return [
        p.pid for p in psutil.Process().children(recursive=True) if (p.cmdline() or [""])[0].startswith("ray::Implicit")
    ]


@pytest.mark.slow
def test_a_trial_that_is_killed_goes_on_and_curves_are_tracked(
    rows: str, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    killed: list[int] = []
    reported = launch.Launch.reported

    def then_kill(self: launch.Launch, number: int, result: dict[str, Any]) -> None:
        reported(self, number, result)
        if not killed and self.journal.get(number).history:
            killed.extend(trial_processes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(launch.Launch, "reported", then_kill)
    sets = ["tune.algorithm=random", "tune.trials=1", "tune.seeds=0", "tune.evaluations=3", "tune.epochs=9"]
    search.run(configured(rows, tmp_path, *sets, "train.track=[tensorboard,mlflow]"), None)
    assert killed
    (one,) = trials_of(tmp_path / "search")
    assert one["status"] == "finished"
    assert [e["evaluation"] for e in one["history"]] == [1, 2, 3]
    steps = [e["step"] for e in one["history"]]
    events = sorted((tmp_path / "search" / "tensorboard" / "trial-0001").iterdir())
    assert [int(f.name.split(".")[3]) for f in events] == steps
    client = MlflowClient(tracking_uri=f"file://{tmp_path / 'search' / 'mlflow'}")
    (run,) = client.search_runs([client.get_experiment_by_name("broadsheet").experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == steps


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_ends_nothing(
    rows: str, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["tune.algorithm=grid", "tune.seeds=0", "tune.evaluations=2", "tune.epochs=1"]
    space = "tune.space={train.learning_rate: {choice: [%s]}}"
    halved = configured(rows, tmp_path, "name=halved", "tune.seeds=0", "tune.trials=2", space % "1e30, 1e31")
    search.run(halved, None)
    assert [t["status"] for t in trials_of(tmp_path / "halved")] == ["finished", "failed"]
    search.run(configured(rows, tmp_path, *sets, space % "1e30, 0.01"), None)
    assert "failed: " in capsys.readouterr().out
    done = trials_of(tmp_path / "search")
    assert [t["status"] for t in done] == ["finished", "failed", "finished"]
    assert "no longer finite at step" in done[1]["error"]
    with pytest.raises(WorkFailed, match=r"every trial failed; the first said: .* no longer finite"):
        search.run(configured(rows, tmp_path, *sets, space % "1e30", "train.learning_rate=1e30", "name=bad"), None)
    assert idle()


@pytest.mark.slow
def test_a_population_goes_on_from_the_weights_of_its_best(
    rows: str, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate of next to nothing a member that took over weights still has them after its next round (an average of
    them goes on moving, so there is none here)."""
    kept: dict[str, Any] = {}

    def look(chosen: Any, finals: Any, folder: Place) -> None:
        for file in Path(folder.uri).glob("trials/trial-*/checkpoint_*/model.safetensors"):
            kept[f"{file.parent.parent.name}/{file.parent.name}"] = load_file(file)
        original(chosen, finals, folder)

    original = keep.keep
    monkeypatch.setattr(keep, "keep", look)
    monkeypatch.setattr(launch.Launch, "_free_disk", lambda self: None)
    monkeypatch.setattr("tune.population.REDRAWN", 0.0)
    sets = ["tune.algorithm=pbt", "tune.trials=2", "tune.evaluations=2", "tune.seeds=0", "train.learning_rate=0.02"]
    space = "tune.space={train.learning_rate: {choice: [1e-12, 0.02]}}"
    more = ("train.keep_checkpoints=9", "train.ema_decay=0")
    search.run(configured(rows, tmp_path, *sets, space, *more), None)
    one, two = trials_of(tmp_path / "search")
    assert [len(t["history"]) for t in (one, two)] == [2, 2]
    assert [t["status"] for t in (one, two)] == ["finished", "finished"]
    (copied, donor) = (one, two) if one["lineage"] else (two, one)
    assert copied["lineage"][0]["from"] == donor["trial"]
    first, last = (e["step"] for e in donor["history"])
    theirs = kept[f"trial-{donor['trial']:04d}/checkpoint_{first:08d}"]
    mine = kept[f"trial-{copied['trial']:04d}-1/checkpoint_{last:08d}"]
    same = all(abs(mine[name] - theirs[name]).max() < 1e-6 for name in theirs)
    assert same == (copied["point"]["train.learning_rate"] == 1e-12)
    assert same


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "BROADSHEET_DATA")}
    return subprocess.Popen(
        [sys.executable, "-m", "broadsheet", "tune", *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stopped_at(process: subprocess.Popen[str], words: str, how: int) -> str:
    """Send a signal when a line with the words comes; returns all that was said."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            process.send_signal(how)
            break
    rest, errors = process.communicate(timeout=120)
    return said + rest + errors


@pytest.mark.slow
def test_cut_off_and_gone_on(rows: str, tmp_path: Path, ray_session: None) -> None:
    flags = [word for item in [*SETS, "tune.concurrent=1", "tune.trials=2"] for word in ("--set", item)]
    process = command(tmp_path, "--data", rows, *flags)
    said = stopped_at(process, "trial 1, score 1", signal.SIGINT)
    assert process.returncode == 0, said
    assert "interrupted; best so far: trial 1" in said
    assert "broadsheet tune --resume" in said
    folder = tmp_path / "runs" / "search"
    assert checkpoint.find(str(folder / "best"))
    assert trials_of(folder)[0]["status"] == "waiting"

    said = stopped_at(command(tmp_path, "--resume"), "trial 2, score 1", signal.SIGKILL)
    assert re.search(r"going on with the search in .*/search: 0 of 1 trials had ended", said)
    before = trials_of(folder)
    assert len(before[0]["history"]) == 1

    process = command(tmp_path, "--resume")
    said = stopped_at(process, "no such words", 0)
    assert process.returncode == 0, said
    after = trials_of(folder)
    assert after[0]["history"][:1] == before[0]["history"]
    assert sorted([e["evaluation"] for e in t["history"]] for t in after[:2]) == [[1], [1, 2]]
    assert json.loads((folder / "search.json").read_text())["result"]
