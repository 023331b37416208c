"""What a node finds out about itself, on this machine."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from pipeline.doctor import facts
from pipeline.doctor.facts import Counted
from pipeline.train import checkpoint


def collect(tmp_path: Path, who: str = "one", port: int = 0) -> facts.NodeFacts:
    counted = Counted(who, "127.0.0.1", 2, 0, 1e9, 1e9)
    return facts.collect(counted, str(tmp_path / "ray/session_x"), str(tmp_path / "storage"), "127.0.0.1", port)


def test_markers_are_read_and_written(tmp_path: Path) -> None:
    facts.marker(str(tmp_path / "storage"), "driver").write_text("driver")
    found = collect(tmp_path)
    assert found.saw_marker
    assert found.storage_error is None
    assert facts.marker(str(tmp_path / "storage"), "one").read_text() == "one"
    assert found.versions == checkpoint.versions()
    assert found.disk_folder == str(tmp_path)
    assert 0 < found.disk_free < found.disk
    assert found.port_error is None


def test_a_storage_of_its_own(tmp_path: Path) -> None:
    assert not collect(tmp_path).saw_marker


def test_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "storage").touch()
    found = collect(tmp_path)
    assert found.storage_error
    assert "\n" not in found.storage_error


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        assert collect(tmp_path, port=s.getsockname()[1]).port_error == "something listens there already"


def test_who_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        peers = {"a": ("127.0.0.1", listening.getsockname()[1]), "b": ("127.0.0.1", closed.getsockname()[1])}
        assert facts.unreachable(peers) == {"b": "Connection refused"}


def test_other_code_has_another_digest(tmp_path: Path) -> None:
    for name in facts.OWN:
        (tmp_path / name).mkdir() if "." not in name else shutil.copy(facts.ROOT / name, tmp_path / name)
    (tmp_path / "serve/app.py").write_text("a = 1\n")
    first = facts.code_digest(tmp_path)
    assert first == facts.code_digest(tmp_path) != facts.code_digest()
    (tmp_path / "serve/app.py").write_text("a = 2\n")
    assert facts.code_digest(tmp_path) != first


@pytest.mark.parametrize(
    ("home", "file", "open_"), [(0o755, 0o644, True), (0o755, 0o600, False), (0o700, 0o644, False)]
)
def test_a_token_that_others_can_read(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, home: int, file: int, open_: bool
) -> None:
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "auth_token"))
    (folder / "auth_token").write_text("x")
    (folder / "auth_token").chmod(file)
    for parent in folder.parents:  # pytest's own folders are closed to others
        if parent.owner() == folder.owner() and str(parent).count("/") > 1:
            parent.chmod(0o755)
    folder.chmod(home)
    assert (facts._open_token() is not None) == open_


def test_ray_says_whether_it_demands_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private question: it must not vanish unnoticed."""
    assert facts._demands_token() in (True, False)
    assert os.path.isdir("/dev/shm")
