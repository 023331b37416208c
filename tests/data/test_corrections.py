"""Labels corrected by row id: applied, counted, and refused where they make no sense."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.data import corrections, named, prepare, reject
from pipeline.data.prepared import Prepared
from pipeline.errors import UserError
from pipeline.model.source import resolve


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """40 rows, of classes a and b in turn; lines 2 to 41 of rows.csv."""
    generator = random.Random(8)
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label")])
        for i in range(40):
            text = " ".join(f"{generator.getrandbits(20):x}" for _ in range(8))
            csv.writer(f).writerow((text, "ab"[i % 2]))
    return str(path)


def written(folder: Path, lines: list[str], name: str = "corrections.csv") -> str:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def prepared(folder: Path, rows: str, *sets: str) -> Prepared:
    config = load(
        None,
        ["model.name=lstm", "model.vocab_size=300", "data.profile_rows=0", *sets],
        {"storage": str(folder / "runs"), "data.train": (rows,)},
    )
    return prepare.prepare(named.resolve(config)[0], resolve("lstm"))[0]


def labels_by_id(done: Prepared) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        table = done.table(split, ["id", "label"])
        names = [done.labels[i] for i in table["label"].to_pylist()]
        found |= dict(zip(table["id"].to_pylist(), names, strict=True))
    return found


def test_rows_are_relabelled_dropped_and_accounted_for(tmp_path: Path, rows: str) -> None:
    before = labels_by_id(prepared(tmp_path, rows))
    lines = [
        "id,split,text,label,suggested,confidence",
        "rows.csv:2,train,x,a,b,0.9",
        "rows.csv:3,train,x,b,,0.9",  # dropped
        "rows.csv:4,train,x,a,a,0.9",  # has that label already
        "rows.csv:5,train,x,a,b,0.9",  # was judged as a, is b: another row by now
        "rows.csv:999,train,x,a,b,0.9",
    ]
    done = prepared(tmp_path, rows, f"data.corrections={written(tmp_path, lines)}")
    after = labels_by_id(done)
    assert before["rows.csv:2"] == "a"
    expected = {**before, "rows.csv:2": "b"}
    del expected["rows.csv:3"]
    assert after == expected
    ledger = done.ledger
    assert ledger["rejected"] == {reject.DROPPED: 1}
    assert ledger["read"] == 40 == sum(ledger["kept"].values()) + 1
    (dropped,) = done.table("rejected").to_pylist()
    assert (dropped["id"], dropped["stage"], dropped["reason"]) == ("rows.csv:3", "label", "dropped by correction")
    told = done.profile["corrections"]
    assert (told["relabelled"], told["dropped"], told["same"]) == (1, 1, 1)
    assert [w.split(":")[0] for w in told["warnings"]] == ["1 correction (rows.csv", "1 correction (rows.csv"]
    assert "rows.csv:999) of " in told["warnings"][0]
    assert "rows.csv:5) of " in told["warnings"][1]
    assert set(told["warnings"]) <= set(done.profile["warnings"])


def test_the_data_depends_on_what_the_file_says_not_on_its_name(tmp_path: Path, rows: str) -> None:
    one = written(tmp_path, ["id,suggested", "rows.csv:2,b"])
    same = written(tmp_path, ["id,suggested", "rows.csv:2,b"], "same.csv")
    other = written(tmp_path, ["id,suggested", "rows.csv:4,b"], "other.csv")
    marks = [prepared(tmp_path, rows, f"data.corrections={f}").fingerprint for f in (one, same, other)]
    assert marks[0] == marks[1] != marks[2]
    assert prepared(tmp_path, rows).fingerprint not in marks


@pytest.mark.parametrize(
    ("lines", "sets", "message"),
    [
        (["row,suggested", "rows.csv:2,b"], (), "has no column 'id'; its columns are: row, suggested"),
        (["id,label", "rows.csv:2,b"], (), "has no column 'suggested'"),
        (["id,suggested", "rows.csv:2,c"], (), "row 'rows.csv:2' the label 'c', which no training row has; .* a, b"),
        (["id,suggested", "rows.csv:2,c"], ("data.labels=[a,b]",), "'c', which is not among data.labels"),
        (["id,suggested", "rows.csv:2,b", "rows.csv:3"], (), "row 3 of .* has more or fewer fields"),
        (["id,suggested", "rows.csv:2,b", "rows.csv:2,a"], (), "names the row 'rows.csv:2' more than once"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, rows: str, lines: list[str], sets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, rows, f"data.corrections={written(tmp_path, lines)}", *sets)
    left: list[Any] = list((tmp_path / "runs").rglob("*.json")) if (tmp_path / "runs").exists() else []
    assert left == []


def test_a_missing_file_is_told_before_any_work(tmp_path: Path, rows: str) -> None:
    with pytest.raises(UserError, match=r"no such file: /nowhere\.csv"):
        prepare.plan(load(None, ["data.corrections=/nowhere.csv"], {"data.train": (rows,)}))


def test_an_empty_file_corrects_nothing(tmp_path: Path) -> None:
    config = load(None, [f"data.corrections={written(tmp_path, ['id,suggested'])}"]).data
    found = corrections.load(config)
    assert found is not None
    assert len(found) == 0
