"""The command line as a person meets it: help, bad input with one sentence and exit code 2, nothing half-written."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import unused_port

from pipeline.storage import Place
from serve import keys


def broadsheet(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if k not in ("BROADSHEET_DATA", "RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, "-m", "broadsheet", *arguments],
        cwd=folder, env={**known, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a refusal: exit code 2, one line, no stack trace."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(("error: ", "Error: "))
    return sentence


@pytest.fixture
def csv(tmp_path: Path) -> str:
    rows = "".join(f"some text number {i},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    return "rows.csv"


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "run",
        "prepare",
        "train",
        "tune",
        "evaluate",
        "predict",
        "serve",
        "export",
        "doctor",
        "config",
        "keys",
        "submit",
        "status",
        "logs",
        "stop",
    ],
)
def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    done = broadsheet(*([verb] if verb else []), "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, broadsheet; print([m for m in ('ray','torch','transformers','pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_config_explains_every_key(tmp_path: Path) -> None:
    done = broadsheet("config", "--set", "train.learning_rate=1e-4", folder=tmp_path)
    assert done.returncode == 0
    assert "learning_rate: 0.0001" in done.stdout
    keys = [line for line in done.stdout.splitlines() if re.match(r"^\s*\w+:( |$)", line) and not line.endswith(":")]
    comments = [line for line in done.stdout.splitlines() if line.strip().startswith("#")]
    assert len(keys) == len(comments)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file: nowhere.csv" in refused(broadsheet("prepare", "--data", "nowhere.csv", folder=tmp_path))


def test_nothing_to_compare(tmp_path: Path) -> None:
    said = refused(broadsheet("evaluate", "--compare", "one", "other", folder=tmp_path))
    assert "one has no predictions.parquet: make it with 'broadsheet evaluate one'" in said


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    assert "empty.csv is empty" in refused(
        broadsheet("prepare", "--data", "empty.csv", "--model", "lstm", folder=tmp_path)
    )


def test_missing_column_names_the_columns(tmp_path: Path, csv: str) -> None:
    said = refused(broadsheet("prepare", "--data", csv, "--label", "topic", "--model", "lstm", folder=tmp_path))
    assert "no column 'topic'" in said
    assert "text, label" in said


def test_binary_file_named_csv(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"PK\x03\x04\x00\x00\x08\x00")
    assert "binary" in refused(broadsheet("prepare", "--data", "data.csv", "--model", "lstm", folder=tmp_path))


def test_one_label_only_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"text {i},x\n" for i in range(10)))
    said = refused(broadsheet("prepare", "--data", "one.csv", "--model", "lstm", folder=tmp_path))
    assert "only one label, 'x'" in said
    assert [f for f in (tmp_path / "runs").rglob("*.*") if f.suffix != ".lock"] == []


def test_a_folder_that_is_no_model(tmp_path: Path, csv: str) -> None:
    (tmp_path / "model").mkdir()
    assert "not a model folder" in refused(broadsheet("train", "--data", csv, "--model", "./model", folder=tmp_path))


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'train.epochs'?" in refused(broadsheet("train", "--set", "train.epoch=2", folder=tmp_path))


@pytest.fixture
def running(ray_session: None) -> str:
    """The address of the suite's own Ray, for commands that need one but not one of their own."""
    import ray

    return ray.get_runtime_context().gcs_address


def test_more_workers_than_cpus(tmp_path: Path, csv: str, running: str) -> None:
    flags = ["--data", csv, "--model", "lstm", "--workers", "999"]
    said = refused(broadsheet("train", *flags, folder=tmp_path, RAY_ADDRESS=running))
    assert "999 workers x 1 CPU = 999 CPUs" in said


def test_port_in_use(tmp_path: Path, csv: str) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = str(s.getsockname()[1])
        assert port in refused(broadsheet("run", "--data", csv, "--model", "lstm", "--port", port, folder=tmp_path))
    assert not (tmp_path / "runs").exists()


def test_nothing_to_serve(tmp_path: Path) -> None:
    assert "no checkpoint in" in refused(broadsheet("serve", folder=tmp_path))


def test_nothing_listens_beyond_loopback_by_accident(tmp_path: Path, csv: str) -> None:
    flags = ["--data", csv, "--model", "lstm", "--port", str(unused_port())]
    said = refused(broadsheet("run", *flags, "--host", "0.0.0.0", folder=tmp_path))
    assert "broadsheet keys add NAME" in said
    assert "--insecure" in said
    keys.add(Place.of(tmp_path / "broadsheet-keys.json"), "me")
    said = refused(broadsheet("run", *flags, "--set", "serve.keys=broadsheet-keys.json", folder=tmp_path))
    assert "BROADSHEET_KEY" in said
    assert not (tmp_path / "runs").exists()


def test_a_job_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    def said(*command: str) -> str:
        return refused(broadsheet("submit", "--address", "http://127.0.0.1:1", "--", *command, folder=tmp_path))

    assert "--storage 'runs' is relative" in said("run")
    assert "No such option" in said("train", "--epocs", "3")
    assert "--stop ends an endpoint on a cluster" in refused(broadsheet("serve", "--stop", folder=tmp_path))


def test_keys(tmp_path: Path) -> None:
    done = broadsheet("keys", "add", "ana", "--scope", "admin", folder=tmp_path)
    assert re.fullmatch(r"bs_[\w-]{43}\n", done.stdout)
    assert "--set serve.keys=broadsheet-keys.json" in done.stderr
    assert done.stdout.strip() not in (tmp_path / "broadsheet-keys.json").read_text()
    broadsheet("keys", "add", "ben", folder=tmp_path)
    listed = broadsheet("keys", "list", folder=tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["ana", "admin"], ["ben", "classify"]]
    assert broadsheet("keys", "revoke", "ana", folder=tmp_path).returncode == 0
    assert "has no key 'ana'; it has: ben" in refused(broadsheet("keys", "revoke", "ana", folder=tmp_path))
    assert "no such file of keys" in refused(broadsheet("keys", "list", "--file", "none.json", folder=tmp_path))


def test_unknown_data_set_and_flag(tmp_path: Path) -> None:
    assert "data.dataset" in refused(broadsheet("prepare", "--dataset", "imdb", folder=tmp_path))
    assert broadsheet("prepare", "--nonsense", folder=tmp_path).returncode == 2


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    done = broadsheet("doctor", "--address", "127.0.0.1:1", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "FAIL" in done.stdout


def test_doctor_says_what_fits(tmp_path: Path, csv: str, running: str) -> None:
    done = broadsheet("doctor", "--data", csv, "--model", "lstm", "--workers", "1", folder=tmp_path)
    assert "1 worker x 1 CPU = 1 CPUs of" in done.stdout
    flags = ["--data", csv, "--model", "lstm", "--workers", "999"]
    too_many = broadsheet("doctor", *flags, folder=tmp_path, RAY_ADDRESS=running)
    assert too_many.returncode == 1
    assert "999 workers" in too_many.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_ray_that_starts_later_costs_no_worker(tmp_path: Path) -> None:
    """Its dashboard is asked for our training, if ours has none: see ``cluster.pinned``."""
    rows = "".join(f"some text number {i},{'ab'[i % 2]}\n" for i in range(400))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    sets = ("train.epochs=400", "train.batch_tokens=256", "model.hidden=[16]", "train.workers=1")
    flags = [word for one in sets for word in ("--set", one)]
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "broadsheet", "train", "--data", "rows.csv", "--model", "lstm", *flags]
        training = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
        try:
            while " steps" not in log.read_text() and training.poll() is None:
                time.sleep(0.2)
            code = "import ray, time; ray.init(address='local', num_cpus=1, include_dashboard=True); time.sleep(20)"
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
            assert training.poll() is None, "it was over before the other Ray"
            assert training.wait(120) == 0, log.read_text()
        finally:
            training.kill()
            training.wait()
    assert "a worker was lost" not in log.read_text()
