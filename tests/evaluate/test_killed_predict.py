"""``predict`` killed in the middle and typed again: no row missing, none twice, the very rows of a calm attempt."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cluster
from pipeline.config import load
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate import predict_files as inference
from pipeline.storage import Place


def write(file: Path, rows: int, seed: int) -> None:
    generator = random.Random(seed)
    words = ["match", "goal", "bank", "oil", "芯片", "手机", "fund", "unheard-of"]
    with file.open("w", encoding="utf-8") as f:
        f.write("text,note\n")
        for i in range(rows):
            text = " ".join(generator.choices(words, k=generator.randrange(40)))
            f.write(f'"{text}"\n' if i % 1_000 == 7 else f'"{text}",{i}\n')  # now and then a field is missing


def rows_of(out: Path) -> list[dict]:
    return sorted(pq.read_table(out).to_pylist(), key=lambda r: r["id"])


def attempt(folder: Path, checkpoint: Path, out: str, megabytes: int) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    flags = ["--checkpoint", str(checkpoint), "--out", out, "--set", f"data.in_process_mb={megabytes}"]
    return subprocess.Popen(
        [sys.executable, "-m", "broadsheet", "predict", "a.csv", "b.csv", *flags],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "megabytes", [pytest.param(0, id="on Ray", marks=pytest.mark.slow), pytest.param(64, id="in process")]
)
def test_killed_and_started_again(megabytes: int, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write(tmp_path / "a.csv", 5_000, 1)
    write(tmp_path / "b.csv", 500, 2)
    killed = attempt(tmp_path, bert, "out", megabytes)
    out = tmp_path / "out"
    until = time.monotonic() + 240
    while not list(out.glob("part-*.parquet")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    time.sleep(1)  # tasks on Ray may outlive the driver by a moment, and write: that must not hurt either
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.parquet")}
    assert not (out / "_SUCCESS.json").exists(), "it ended before it could be killed"
    assert (out / "_plan.json").exists()

    second = attempt(tmp_path, bert, "out", megabytes)
    said, wrong = second.communicate(timeout=240)
    assert second.returncode == 0, wrong
    assert "going on with an attempt that was cut off" in said
    for name, written in finished.items():
        assert (out / name).stat().st_mtime_ns == written, f"{name} was made again"
    assert len(list(out.glob("part-*.parquet"))) > len(finished)
    assert not list(out.glob(".*"))

    files = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    calm = inference.predict_files(files, Place.of(bert), Place.of(tmp_path / "calm"), load(), None)
    again, undisturbed = rows_of(out), rows_of(tmp_path / "calm")
    assert [r["id"] for r in again] == sorted(
        {f"a.csv:{i}" for i in range(2, 5_002)} | {f"b.csv:{i}" for i in range(2, 502)}
    )
    assert [(r["label"], r["error"], r["text"]) for r in again] == [
        (r["label"], r["error"], r["text"]) for r in undisturbed
    ]
    assert [r["score"] for r in again] == pytest.approx([r["score"] for r in undisturbed], abs=1e-5)
    facts = json.loads((out / "_SUCCESS.json").read_text())
    assert (facts["read"], facts["rows"]) == (5_500, 5_500)
    assert facts["errors"] == calm["errors"] == sum(r["error"] is not None for r in again)


def test_an_input_that_changes_is_refused(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "a.csv", Place.of(tmp_path / "out")
    write(file, 1_500, 1)
    good = inference.classify_rows

    def then_cut_off(*given: object) -> tuple[pa.Table, int]:
        if list((tmp_path / "out").glob("part-*")):
            raise WorkFailed("cut off")
        return good(*given)  # type: ignore[arg-type]

    def go() -> dict:
        return inference.predict_files((str(file),), Place.of(bert), out, load(), None)

    monkeypatch.setattr(inference, "classify_rows", then_cut_off)
    with pytest.raises(WorkFailed, match="cut off"):
        go()
    monkeypatch.setattr(inference, "classify_rows", good)
    before = file.read_text()
    file.write_text(before + "one more,1\n")
    with pytest.raises(UserError, match=r"of a.csv before it changed: name a new folder, or delete this one"):
        go()
    file.write_text(before)

    def and_change(*given: object) -> tuple[pa.Table, int]:
        file.write_text(before + "one more,1\n")
        return good(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "classify_rows", and_change)
    with pytest.raises(WorkFailed, match=r"a.csv changed while it was read"):
        go()
    assert not (out / "_SUCCESS.json").exists()


def test_columns_that_are_named_are_those_that_are_read_and_mark_up_alone_is_no_text(
    tmp_path: Path, bert: Path
) -> None:
    file, card = tmp_path / "new.csv", Path(bert) / "broadsheet.json"
    file.write_text("text\nred green\n<br/>\n\n")
    facts = json.loads(card.read_text())
    card.write_text(json.dumps(facts | {"text": ["title", "description"]}))
    try:
        with pytest.raises(UserError, match="has no column 'title'"):
            inference.predict_files((str(file),), Place.of(bert), Place.of(tmp_path / "out"), load(), None)
        named = load(None, ["data.text=[text]"])
        done = inference.predict_files((str(file),), Place.of(bert), Place.of(tmp_path / "out"), named, None)
    finally:
        card.write_text(json.dumps(facts))
    rows = rows_of(tmp_path / "out")
    assert [(r["label"] is None, r["error"]) for r in rows] == [(False, None), (True, "empty after cleaning")]
    assert (done["rows"], done["errors"]) == (2, 1)


def test_results_do_not_lie_among_what_is_read(tmp_path: Path, bert: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.csv", 3, 1)
    with pytest.raises(UserError, match="would lie among what is read"):
        inference.predict_files((str(tmp_path / "in"),), Place.of(bert), Place.of(tmp_path / "in/scored"), load(), None)


def test_few_rows_need_no_ray(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", 30, 1)
    monkeypatch.setattr(cluster, "connect", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = Place.of(tmp_path / "out")
    done = inference.predict_files((str(tmp_path / "a.csv"),), Place.of(bert), out, load(), None)
    assert (done["rows"], done["parts"], done["reused"]) == (30, 1, False)
    assert inference.predict_files((str(tmp_path / "a.csv"),), Place.of(bert), out, load(), None)["reused"]


@pytest.mark.parametrize(
    ("out", "pattern", "inside"),
    [
        ("/d/in/scored", "/d/in", True),
        ("/d/in", "/d/in/a.csv", True),
        ("/d/out", "/d/in", False),
        ("/d/out", "/d/*/*.parquet", True),
        ("/d/out", "/d/*/*.csv", False),
        ("/d/new/out", "/d/**/*.parquet", True),
        ("s3://b/d/out?region=eu", "s3://b/d?region=eu", True),
        ("s3://b/data-2", "s3://b/data", False),
    ],
)
def test_an_output_among_the_inputs_is_known(out: str, pattern: str, inside: bool) -> None:
    assert inference.among(Place.of(out), pattern) is inside


def test_parts_that_somebody_deleted_are_made_again(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "goal team\n" * 5)
    out = Place.of(tmp_path / "out")
    first = inference.predict_files((str(tmp_path / "a.csv"),), Place.of(bert), out, load(), None)
    for part in out.files(".parquet"):
        part.delete()
    again = inference.predict_files((str(tmp_path / "a.csv"),), Place.of(bert), out, load(), None)
    assert not again["reused"]
    assert again["rows"] == first["rows"] == 5
    assert len(out.files(".parquet")) == again["parts"]


def test_a_checkpoint_that_changes_meanwhile(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text\ngoal team\n")
    names = iter(["before", "after"])
    monkeypatch.setattr(inference.pieces, "checkpoint_identity", lambda _: next(names))
    with pytest.raises(WorkFailed, match="changed while it was used: delete"):
        inference.predict_files((str(tmp_path / "a.csv"),), Place.of(bert), Place.of(tmp_path / "out"), load(), None)
