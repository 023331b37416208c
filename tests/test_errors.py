"""What a person is told of errors of the operating system."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest

import broadsheet
from pipeline.errors import UserError, WorkFailed, of_system


def test_errors_of_the_system_in_words() -> None:
    full = of_system(OSError(errno.ENOSPC, "No space left on device", "/mnt/runs/a"))
    assert isinstance(full, WorkFailed)
    assert "the disk is full (/mnt/runs/a): make room" in str(full)
    refused = of_system(PermissionError(errno.EACCES, "Permission denied", "/mnt/runs/a"))
    assert isinstance(refused, UserError)
    assert "/mnt/runs/a: cannot be used, this user may not: name another place (--storage, --out)" in str(refused)
    assert of_system(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert of_system(ValueError("no")) is None


def test_the_cause_of_what_a_worker_raised_counts() -> None:
    raised = RuntimeError("a task failed")
    raised.cause = OSError(errno.EROFS, "Read-only file system", "/mnt/a")  # type: ignore[attr-defined]  # as Ray does
    assert "the file system is read-only" in str(of_system(raised))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/a"), 1, "the disk is full (/mnt/a)"),
        (ValueError("no such thing\nand more"), 1, "unexpected ValueError: no such thing (details in "),
    ],
)
def test_an_error_that_nobody_foresaw(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BROADSHEET_DEBUG", raising=False)
    monkeypatch.setattr(broadsheet.cli, "main", fails)
    with pytest.raises(SystemExit) as ended:
        broadsheet.main()
    assert ended.value.code == code
    assert said in capsys.readouterr().err


def test_the_traceback_goes_where_one_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Path.write_text

    def only_there(self: Path, *given: object, **more: object) -> int:
        if self.parent != tmp_path:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return here(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", only_there)
    monkeypatch.setattr(broadsheet.tempfile, "gettempdir", lambda: str(tmp_path))
    assert broadsheet._logged() == tmp_path / "broadsheet-error.log"


def test_commands_are_known() -> None:
    assert {"keys", "status", "logs", "stop", "submit"} <= set(broadsheet.cli.commands)
    assert all(isinstance(command, click.Command) for command in broadsheet.cli.commands.values())
