"""``prepare`` from and to S3: the same bytes as on a disk, killed or not, however the store stumbles."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import prepared
from s3_server import Proxy, objects

from pipeline import object_store
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError, WorkFailed
from pipeline.folders import put_folder
from pipeline.storage import Place, expand

SETS = ["data.shard_mb=1", "model.name=lstm", "model.vocab_size=300"]


def contents(place: Place, *folders: str) -> dict[str, bytes]:
    return {f"{name}/{f.name}": f.read_bytes() for name in folders for f in (place / name).files()}


def everything(done: Prepared) -> dict[str, bytes]:
    """All that must not depend on where the data lies; the fingerprint does, and so the manifest."""
    found = contents(done.place, "train", "validation", "test", "rejected", "duplicates", "tokenizer")
    return found | {name: (done.place / name).read_bytes() for name in ("labels.json", "profile.json")}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with csv, JSON lines and Parquet files, about 1 MB, and some rows that cannot be read."""
    generator = random.Random(3)
    words = [f"{generator.getrandbits(24):x}" for _ in range(1_500)]
    rows = [(" ".join(generator.choices(words, k=30)), "abc"[i % 3]) for i in range(4_500)]
    folder = tmp_path_factory.mktemp("raw")
    (folder / "deep").mkdir()
    lines = "".join(f"{text},{label}\n" for text, label in rows[:1_500])
    (folder / "1 first.csv").write_bytes(b"text,label\n" + lines.encode() + b"\xff,a\nlonely\n")
    with gzip.GzipFile(folder / "2.jsonl.gz", "wb", mtime=0) as f:
        for text, label in rows[1_500:3_000]:
            f.write(json.dumps({"text": text, "label": label}).encode() + b"\n")
    columns = {"text": [t for t, _ in rows[3_000:]], "label": [label for _, label in rows[3_000:]]}
    pq.write_table(pa.table(columns), folder / "deep" / "3.parquet", row_group_size=500)
    return folder


@pytest.fixture(scope="module")
def at_home(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same rows become on this disk."""
    return everything(prepared(tmp_path_factory.mktemp("home"), {"train": str(raw)}, *SETS))


@pytest.fixture
def news(raw: Path, s3: str) -> str:
    """The raw folder on the server."""
    if not Place.of("s3://news/raw").exists():
        put_folder(raw, Place.of("s3://news/raw"))
    return "s3://news/raw"


def test_prepared_on_s3_is_what_it_is_on_a_disk(news: str, at_home: dict[str, bytes]) -> None:
    patterns = f"{news}/*.csv", f"{news}/2.jsonl.gz", f"{news}/deep"
    done = prepared("s3://runs/one", {"train": patterns}, *SETS)
    assert done.manifest["shards"] >= 2
    assert done.ledger["rejected"] == {"unreadable row": 2}
    assert everything(done) == at_home
    assert [p.name for p in Place.of("s3://runs/one/prepared").files()] == []
    assert not objects(f"{done.place}.work")
    again = prepared("s3://runs/one", {"train": patterns}, *SETS)
    assert again.place == done.place


def test_on_ray_workers_too(news: str, at_home: dict[str, bytes], tmp_path: Path) -> None:
    """A driver of its own: workers have the environment that Ray was started in."""
    sets = [word for item in [*SETS, "data.in_process_mb=0"] for word in ("--set", item)]
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", news, "--storage", "s3://runs/ray", *sets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = expand("s3://runs/ray/prepared/*/manifest.json")
    assert everything(Prepared.open(Place.of(manifest).parent)) == at_home


def test_killed_and_started_again(
    news: str, at_home: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for item in SETS for word in ("--set", item)]
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", news, "--storage", "s3://runs/killed", *sets]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = Place.of("s3://runs/killed/prepared")
    until = time.monotonic() + 100
    while not any("/done-" in path for path in objects(str(folder))):
        assert process.poll() is None, "it ended before a shard was finished"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (unfinished,) = {path.split("/")[3] for path in objects(str(folder)) if ".work/" in path}
    with pytest.raises(UserError, match=r"not prepared data \(no manifest"):
        Prepared.open(folder / unfinished.removesuffix(".work"))
    done = prepared("s3://runs/killed", {"train": news}, *SETS)
    said = capsys.readouterr().out
    assert "all rows are read and cleaned" in said
    assert "shards are finished already" in said
    assert everything(done) == at_home
    assert not objects(f"{folder}/{unfinished}")


def test_a_store_that_stumbles_is_asked_again(news: str, at_home: dict[str, bytes], proxy: Proxy) -> None:
    asked: Counter[str] = Counter()

    def stumble(method: str, path: str) -> str | None:
        """Now and then a request of each kind fails, each time in another way."""
        asked[method] += 1
        kinds = ["503", "refuse", "cut"] if method == "GET" else ["503", "refuse"]
        turn, rest = divmod(asked[method], 10 if method == "PUT" else 25)
        return None if rest != 5 else kinds[turn % len(kinds)]

    proxy.fault = stumble
    assert (
        everything(prepared("s3://runs/stumbling", {"train": (f"{news}/*.csv", f"{news}/2*", f"{news}/deep")}, *SETS))
        == at_home
    )
    assert {"503 PUT", "503 GET", "503 HEAD", "refuse PUT", "refuse GET", "cut GET"} <= set(proxy.faults)


def test_a_store_that_stays_down_stops_the_work_and_nothing_else(
    news: str, at_home: dict[str, bytes], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "S3_ATTEMPTS", 2)
    proxy.fault = lambda method, path: "503" if method == "PUT" and "/train/" in path else None
    with pytest.raises(WorkFailed, match=r"^s3://runs/down/.*What is finished is kept: run the same command") as caught:
        prepared("s3://runs/down", {"train": news}, *SETS)
    assert "\n" not in str(caught.value)
    left = objects("s3://runs/down")
    assert not [f for f in left if "/train/" in f or "manifest.json" in f or "/done-" in f]
    for fault in (
        lambda method, path: "503" if "/done-00001" in path else None,
        lambda method, path: "cut" if method == "GET" and "/parts/" in path else None,
    ):
        proxy.fault = fault
        with pytest.raises(WorkFailed, match="What is finished is kept") as caught:
            prepared("s3://runs/down", {"train": news}, *SETS)
        assert "\n" not in str(caught.value)
    proxy.fault = lambda method, path: None
    assert everything(prepared("s3://runs/down", {"train": news}, *SETS)) == at_home
