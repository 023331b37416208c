"""Facts for people, and the same facts as JSON for whoever collects logs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import console
from pipeline.errors import UserError


@pytest.fixture
def in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.LOG, "json")
    monkeypatch.setattr(console, "_about", {"run": None})


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_facts_are_lines_of_json(in_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    console.about("news")
    console.say("train", "[bold]新闻[/]\nand more", trial=3)
    console.warn("train", "slow")
    first, second = lines(capsys.readouterr().out)
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "info", "run": "news", "stage": "train", "node": socket.gethostname(),
        "message": "[bold]新闻[/]\nand more", "trial": 3,
    }  # fmt: skip
    assert second["level"] == "warning"


def test_a_sentence_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(console.LOG, raising=False)
    for text in ("rows:smile:[red].csv", r"a\[/b].csv", r"C:\[tmp]\x", "[/]", "end\\"):
        console.fail(text, 2)
        console.say("data", text)
        console.table("", ["a"], [[text]])
        out, err = capsys.readouterr()
        assert err == f"error: {text}\n"
        assert out.splitlines()[0] == f"data      {text}"
        assert out.rstrip("\n ").endswith(text)


@pytest.mark.parametrize("where", ["news", "runs/news", "runs/news/checkpoint/", "s3://bucket/news/best"])
def test_a_run_goes_by_its_name(where: str, in_json: None) -> None:
    console.about(where)
    assert console.run() == "news"


def test_bars_and_tables_are_lines_too(
    in_json: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(console.out, "_force_terminal", True)
    assert not console.live()
    with console.bar("prepare", "rows", 10) as bar:
        bar.update(4, "fast")
    console.table("scores", ["class", "f1"], [["a", 0.5], ["b", 1]])
    moved, *rows = lines(capsys.readouterr().out)
    assert (moved["done"], moved["total"], moved["unit"], moved["message"]) == (4, 10, "rows", "rows: 4 of 10  fast")
    assert [(row["columns"], row["row"]) for row in rows] == [
        (["class", "f1"], ["a", "0.5"]),
        (["class", "f1"], ["b", "1"]),
    ]


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for good in ("", "text", "json"):
        monkeypatch.setenv(console.LOG, good)
        console.check()
    monkeypatch.setenv(console.LOG, "xml")
    with pytest.raises(UserError, match="BROADSHEET_LOG is 'xml': set it to text or json"):
        console.check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "nowhere.csv"], "nowhere.csv"),
        (["train", "--sett", "a=b"], "No such option"),
        (["predict", "rows.csv", "--checkpoint", "nowhere", "--out", "out"], "nowhere"),
    ],
)
def test_a_mistake_is_a_line_on_stderr(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broadsheet", *arguments]
    environment = {**os.environ, console.LOG: "json"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = lines(done.stderr)[-1]
    assert done.returncode == last["exit_code"] == 2
    assert last["level"] == "error"
    assert said in last["message"]
