"""Training, evaluation, scoring and loading for service with all of it on an object store that stumbles."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from s3_server import Proxy, objects, put

from pipeline import config as configuration
from pipeline import object_store, stages
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.predictions import Predictions
from pipeline.folders import put_folder
from pipeline.storage import Place
from pipeline.train import checkpoint

pytestmark = pytest.mark.slow

SETS = [
    "model.name=lstm", "model.vocab_size=300", "model.embedding_dim=16", "model.hidden=[16]", "train.epochs=6",
    "train.batch_tokens=512", "train.evaluations=3", "train.workers=2", "train.checkpoint_seconds=0",
    "evaluate.evidence_rows=50",
]  # fmt: skip
WORDS = {"a": "red green blue", "b": "one two three", "c": "north south east"}
ROWS = "text,label\n" + "\n".join(f"{WORDS[k]} {i},{k}" for i in range(90) for k in "abc") + "\n"

# A driver of its own: workers have the environment that Ray was started in.
LOOP = """
import sys
from pipeline import config, stages
storage, rows, *sets = sys.argv[1:]
made = config.load(None, sets, {"storage": storage, "name": "mine", "data.train": (rows,)})
run = stages.run(made, True, None).run
stages.predict(made, (rows,), str(run), f"{storage}/scored", None)
"""


def loop(storage: str, rows: str) -> Place:
    """Prepare, train, evaluate and score; returns the run."""
    command = [sys.executable, "-c", LOOP, storage, rows, *SETS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Place.of(storage) / "mine"


@pytest.mark.timeout(500)
def test_the_loop_on_a_store_that_stumbles(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    put("s3://news/loop/rows.csv", ROWS.encode())
    at_home = loop(str(tmp_path / "runs"), str(tmp_path / "rows.csv"))
    asked: Counter[str] = Counter()

    def stumble(method: str, path: str) -> str | None:
        """Now and then a request of each kind fails, each time in another way."""
        asked[method] += 1
        kinds = ["503", "refuse", "cut"] if method == "GET" else ["503", "refuse"]
        turn, rest = divmod(asked[method], 12)
        return None if rest != 5 else kinds[turn % len(kinds)]

    proxy.fault = stumble
    there = loop("s3://runs/loop", "s3://news/loop/rows.csv")
    assert {"503 PUT", "503 GET", "refuse PUT", "refuse GET", "cut GET"} <= set(proxy.faults)
    weights = Path("checkpoint", "model.safetensors")
    assert (there / str(weights)).read_bytes() == Path(at_home.uri, weights).read_bytes()
    one, other = Predictions.load(str(there)), Predictions.load(str(at_home))
    assert (one.probabilities == other.probabilities).all()
    assert (there / "report" / "index.html").exists()
    assert [path for path in objects("s3://runs/loop/scored") if path.endswith(".parquet")]
    assert Classifier.load(str(there / "checkpoint")).labels == ["a", "b", "c"]  # as a replica does


def test_no_half_checkpoint_is_taken_for_one(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store goes down while the final checkpoint is copied; the same command ends the work later."""
    monkeypatch.setattr(object_store, "S3_ATTEMPTS", 2)
    rows = put("s3://news/half/rows.csv", ROWS.encode())
    flags = {"storage": "s3://runs/half", "name": "mine", "data.train": (rows,)}
    config = configuration.load(None, ["model.name=linear"], flags)
    proxy.fault = lambda method, path: (
        "503" if method == "PUT" and path.partition("?")[0].endswith("/mine/checkpoint/model.safetensors") else None
    )
    with pytest.raises(WorkFailed, match=r"s3://runs/half/mine/checkpoint") as caught:
        stages.train(config, True, None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.find("s3://runs/half/mine")
    proxy.fault = lambda method, path: None
    stages.train(config, True, None)
    done = checkpoint.find("s3://runs/half/mine")
    assert Classifier.load(str(done)).labels == ["a", "b", "c"]


def test_the_file_that_says_whole_goes_first_and_comes_last(s3: str, proxy: Proxy, tmp_path: Path) -> None:
    for name in ("z.bin", "broadsheet.json", "sub/a.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seen: list[str] = []

    def watch(method: str, path: str) -> None:
        if method in ("PUT", "DELETE", "POST"):
            seen.append(f"{method} {path.partition('?')[0]}")

    proxy.fault = watch
    where = Place.of("s3://runs/order/checkpoint")
    put_folder(tmp_path, where, "broadsheet.json")
    puts = [one for one in seen if one.startswith("PUT") and not one.endswith("/")]
    assert puts[-1].endswith("/order/checkpoint/broadsheet.json")
    assert len(puts) == 3
    seen.clear()
    put_folder(tmp_path, where, "broadsheet.json")
    gone = [one for one in seen if one.startswith(("DELETE", "POST"))]
    assert gone[0].endswith("/order/checkpoint/broadsheet.json")
    left = [path.removeprefix("runs/order/checkpoint/") for path in objects(str(where))]
    assert sorted(left) == ["broadsheet.json", "sub/a.bin", "z.bin"]
