"""Keys, TLS and limits for real: ``broadsheet serve`` as a person starts it, each with a Ray of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import self_signed
from conftest import unused_port

from pipeline.errors import WorkFailed
from pipeline.storage import Place
from serve import client, haproxy, haproxy_processes, keys, tls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MARK = "zebra"


@dataclass
class Endpoint:
    """A running ``broadsheet serve``."""

    port: int
    ray: Path
    said: str
    cert: str

    def ask(
        self, path: str, body: Any = None, key: str = "", host: str = "127.0.0.1", source: str = "127.0.0.1"
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        way = httpx.HTTPTransport(verify=tls.trusting(self.cert), local_address=source)
        with httpx.Client(transport=way, timeout=60) as http:
            return http.request(
                "GET" if body is None else "POST", f"https://{host}:{self.port}{path}", json=body, headers=headers
            )

    def configuration(self) -> Path:
        """HAProxy's, found by the port that it holds."""
        ours = [line for pid, line in haproxy_processes.running() if haproxy_processes.holds(pid, self.port)]
        commands = [line.split(" ") for line in ours]
        (file,) = {command[command.index("-f") + 1] for command in commands}  # of one, and of one that makes way for it
        return Path(file)


@contextmanager
def serving(checkpoint: Path, cert: str, key: str, *flags: str) -> Iterator[Endpoint]:
    ray = Path(tempfile.mkdtemp(prefix="bs-"))  # short: Ray makes sockets in it
    port = unused_port()
    command = [sys.executable, "-m", "broadsheet", "serve", str(checkpoint), "--port", str(port), *flags]
    command += ["--set", f"serve.tls_cert={cert}", "--set", f"serve.tls_key={key}", "--set", "serve.max_replicas=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "BROADSHEET_"))}
    log = ray / "said"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment | {"RAY_TMPDIR": str(ray)}, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        until = time.monotonic() + 240
        while "Ctrl-C stops it" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield Endpoint(port, ray, log.read_text(), cert)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            print(log.read_text()[-5_000:])
            shutil.rmtree(ray, ignore_errors=True)


def test_keys_and_tls_on_all_interfaces(bert: Path, tmp_path: Path) -> None:
    import ray

    place = Place.of(tmp_path / "keys.json")
    secret, root = keys.add(place, "ana"), keys.add(place, "root", "admin")
    body = {"inputs": f"{MARK} match goal"}
    pair = self_signed(tmp_path)
    kept = tmp_path / "feedback"
    flags = ["--host", "0.0.0.0", "--set", f"serve.keys={place}", "--set", f"serve.feedback={kept}"]
    with serving(bert, *pair, *flags) as endpoint:
        ask = endpoint.ask
        assert f"listening on https://127.0.0.1:{endpoint.port}" in endpoint.said
        assert f'curl -s --cacert {pair[0]} -H "authorization: Bearer $BROADSHEET_KEY" https://' in endpoint.said
        assert ask("/ready").status_code == 200
        refused = ask("/v1/classify", body)
        assert (refused.status_code, refused.json()["error_type"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert ask("/v1/classify", body, secret).status_code == 200
        assert ask("/v1/explain", body, secret).status_code == 200
        item = {"text": MARK, "label": "sport"}
        assert ask("/v1/feedback", item, secret).status_code == 403
        assert ask("/v1/feedback", item, root).json() == {"kept": 1}
        assert 'path="other",status="401"' in ask("/metrics", key=root).text
        (labels,) = client.classify(
            f"https://127.0.0.1:{endpoint.port}", "match", key=secret, context=tls.trusting(pair[0])
        )
        assert {row["label"] for row in labels} == {"money", "sport", "科技"}
        assert ask("/v1/classify/", body, secret).headers["location"].startswith("https://")

        # Who does not know the certificate says nothing to the server, and plain HTTP gets no answer.
        with pytest.raises(WorkFailed, match="certificate verify failed"):
            client.classify(f"https://127.0.0.1:{endpoint.port}", "match", key=secret)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{endpoint.port}/health")

        # From elsewhere only the front end can be reached.
        until = time.monotonic() + 60
        while "ssl crt" not in (text := endpoint.configuration().read_text()) and time.monotonic() < until:
            time.sleep(0.1)  # Ray has just written it for a reload; HAProxy reads what the stand-in makes of it
        own = ray.util.get_node_ip_address()
        servers = re.findall(r"^\s*server \S+ (\S+):(\d+)", text, re.MULTILINE)
        binds = re.findall(r"^\s*bind (\S+):(\d+)", text, re.MULTILINE)
        assert len(servers) == 2
        assert {host for host, _ in servers} == {"127.0.0.1"}
        assert {host for host, port in binds if port != str(endpoint.port)} == {"127.0.0.1"}
        assert ask("/ready", host=own).status_code == 200
        for _, port in servers + binds:
            if own != "127.0.0.1" and port != str(endpoint.port):
                with socket.socket() as s:
                    assert s.connect_ex((own, int(port))) != 0

        # Keys come and go.
        other = keys.add(place, "ben")
        keys.revoke(place, "ana")
        until = time.monotonic() + 60
        while ask("/v1/classify", body, secret).status_code != 401 and time.monotonic() < until:
            time.sleep(0.1)
        assert ask("/v1/classify", body, secret).status_code == 401
        assert ask("/v1/classify", body, other).status_code == 200
        assert ask("/v1/classify", {"inputs": 7, MARK: MARK}, other).status_code == 422

        folder = endpoint.configuration().parent
        assert (folder / haproxy.PEM).exists()
        # Give Ray's buffered access log time enough by filling it.
        for _ in range(110):
            ask(f"/v1/classify?{MARK[::-1]}", body, other)
        logs = [file for file in endpoint.ray.rglob("*") if file.is_file() and not file.is_symlink()]
        logs += [file for file in folder.iterdir() if file.is_file()]
        written = b"".join(file.read_bytes() for file in logs)
        assert b"/v1/classify" in written
        for word in (MARK, secret, root, other, "Bearer bs_"):
            assert word.encode() not in written
    assert not (folder / haproxy.PEM).exists()


@pytest.mark.parametrize("with_haproxy", [True, False])
def test_without_keys_each_address_has_its_limit(bert: Path, tmp_path: Path, with_haproxy: bool) -> None:
    """Through our HAProxy, and with Ray's own proxy, which ends TLS itself then."""
    body = {"inputs": "match goal"}
    flags = ["--set", "serve.rate_limit=0.001", "--set", f"serve.haproxy={str(with_haproxy).lower()}"]
    with serving(bert, *self_signed(tmp_path), *flags) as endpoint:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            assert endpoint.ask("/v1/classify", body, source=source).status_code == 200
            refused = endpoint.ask("/v1/classify", body, source=source)
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 1_000
            assert refused.json()["error_type"] == "overloaded"
            assert endpoint.ask("/ready", source=source).status_code == 200
