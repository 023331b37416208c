"""Two commands at the same place."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from preparing import prepared, write_csv

from pipeline import alone
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.storage import Place

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
    assert list((tmp_path / "runs").iterdir()) == []


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
    assert list(tmp_path.iterdir()) == []


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
    assert [f.name for f in (tmp_path / "runs" / "prepared").iterdir()] == [Path(made[0].place.uri).name]
