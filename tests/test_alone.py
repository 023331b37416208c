"""Two commands at the same place."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from preparing import prepared, write_csv

from pipeline import alone, stages
from pipeline.config import load
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.storage import Place
from tune import search

HOLD = """
import sys, time
from pipeline import alone
from pipeline.storage import Place
with alone.refusing(Place.of(sys.argv[1]), "the run", "go away"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_command_is_refused_until_the_first_is_gone_however_it_goes(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "runs" / "mine")
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        said = rf"the run \S*/runs/mine is being written by another command \(process {first.pid} on \S+\): wait for"
        with pytest.raises(UserError, match=said), alone.refusing(place, "the run", "go away"):
            pass
    finally:
        first.kill()
        first.communicate()
    with alone.refusing(place, "the run", "go away"):
        pass


def test_many_take_turns(tmp_path: Path) -> None:
    place, inside, most, told = Place.of(tmp_path / "data"), 0, 0, []
    count = threading.Lock()

    def command() -> None:
        nonlocal inside, most
        for _ in range(20):
            with alone.waiting(place, told.append):
                with count:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with count:
                    inside -= 1

    threads = [threading.Thread(target=command) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert told


def test_no_lock_is_no_error(tmp_path: Path) -> None:
    with alone.refusing(Place("s3://bucket/runs/mine"), "the run", "go away"):
        pass
    (tmp_path / "file").write_text("")
    with alone.refusing(Place.of(tmp_path / "file" / "run"), "the run", "go away"):
        pass  # whoever writes there says what is wrong


def test_the_same_data_is_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands that need the same data: one makes it, the others wait, and all go on with it."""
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    train = write_csv(tmp_path / "rows.csv", [(f"{words[k]} {i}", k) for i in range(300) for k in "abc"])
    made: list[Prepared] = []

    def command() -> None:
        made.append(prepared(tmp_path / "runs", {"train": train}))

    threads = [threading.Thread(target=command) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(one.place) for one in made}) == 1
    assert [sum(one.ledger["kept"].values()) for one in made] == [900] * 3
    assert "another command prepares the same data (process" in capsys.readouterr().out
    assert [f for f in (tmp_path / "runs" / "prepared").iterdir() if f.name[0] != "."] == [Path(made[0].place.uri)]


@pytest.mark.parametrize("verb", ["run", "train", "evaluate", "tune", "predict"])
def test_commands_keep_off_what_another_one_writes(tmp_path: Path, verb: str) -> None:
    rows = write_csv(tmp_path / "rows.csv", [(f"{k} {i}", k) for i in range(30) for k in "ab"])
    flags = {"storage": str(tmp_path / "runs"), "name": "mine", "data.train": (rows,)}
    config = load(None, ["model.name=linear"], flags)
    if verb in ("evaluate", "predict"):
        stages.train(config, True, None)
    run, out = str(tmp_path / "runs" / "mine"), str(tmp_path / "scored")
    commands: dict[str, Callable[[], object]] = {
        "run": lambda: stages.run(config, True, None),
        "train": lambda: stages.train(config, True, None),
        "evaluate": lambda: stages.evaluate(config, run, None, None, None),
        "tune": lambda: search.run(config.updated({"model.name": "lstm"}), None),
        "predict": lambda: stages.predict(config, (rows,), run, out, None),
    }
    place = out if verb == "predict" else run
    said = rf"{place} is being written by another command \(process \d+ on .*give this one another --(name|out)"
    with alone.refusing(Place.of(place), "it", "wait"), pytest.raises(UserError, match=said):
        commands[verb]()
    assert not (Path(run) / "config.yaml").exists() or verb in ("evaluate", "predict")
