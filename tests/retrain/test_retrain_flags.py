"""``run --from-feedback`` with what does not go with it, or with nothing to start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import broadsheet
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--from-feedback"], "name it with --name"),
        (["--from-feedback", "runs/base", "--name", "x", "--data", "a.csv"], "--data does not go with --from-feedback"),
        (["--from-feedback", "--name", "x", "--full"], "--full does not go with --from-feedback"),
        (["--from-feedback", "--name", "x", "--config", "a.yaml"], "--config does not go with --from-feedback"),
        (["--suspects", "drop"], "--suspects goes with --from-feedback"),
        (["--from-feedback", "nowhere", "--name", "x"], "no checkpoint in"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        broadsheet.cli.main(["run", *arguments], standalone_mode=False)


def test_without_a_run_and_without_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("BROADSHEET_CACHE", str(tmp_path))
    arguments = ["run", "--from-feedback", "--name", "x", "--port", str(free_port), "--storage", str(tmp_path)]
    with pytest.raises(UserError, match=r"no endpoint runs here on port \d+: name the run to start from"):
        broadsheet.cli.main(arguments, standalone_mode=False)
