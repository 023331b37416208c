"""Ray's token is for one pair of eyes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import auth_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_first_token_is_private(home: Path) -> None:
    auth_token.keep_private()
    file = home / ".ray" / "auth_token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) == 64
    before = file.read_text()
    auth_token.keep_private()
    assert file.read_text() == before


def test_an_open_one_is_closed_and_that_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("known")
    file.chmod(0o644)
    auth_token.keep_private()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == "known"
    assert "was open to other accounts" in capsys.readouterr().out


def test_a_users_own_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    auth_token.keep_private()
    assert not (home / ".ray").exists()
