"""What replicas load: the checkpoint as it was when the endpoint was given it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.folders import put_folder
from pipeline.storage import Place
from serve import kept


def checkpoint(folder: Path, weights: str = "one") -> Path:
    """The files of one, as far as they count here; replaces what is there as training does."""
    made = folder / "made"
    (made / "tokenizer").mkdir(parents=True)
    for name, content in {
        "model.safetensors": weights,
        "broadsheet.json": "{}",
        "tokenizer/tokenizer.json": "t",
    }.items():
        (made / name).write_text(content)
    put_folder(made, Place.of(folder / "run/checkpoint"))
    shutil.rmtree(made)
    return folder / "run/checkpoint"


def silent(line: str) -> None:
    raise AssertionError(line)


def test_training_again_does_not_touch_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    first = kept.release(Place.of(folder), silent)
    assert (first.checkpoint, Path(first.place).parent) == (str(folder), tmp_path / "run/served")
    assert os.stat(f"{first.place}/model.safetensors").st_nlink == 2  # it takes no room
    assert kept.release(Place.of(folder), silent) == first
    checkpoint(tmp_path, "two")
    assert Path(first.place, "model.safetensors").read_text() == "one"
    assert Path(first.place, "tokenizer/tokenizer.json").read_text() == "t"
    second = kept.release(Place.of(folder), silent)
    assert second.version != first.version
    assert Path(second.place, "model.safetensors").read_text() == "two"
    assert str(second) == f"{folder} ({second.version})"


def test_what_evaluation_writes_later_is_another_copy_and_engines_are_not(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    first = kept.release(Place.of(folder), silent)
    Path(first.place, "engines").mkdir()
    Path(first.place, "engines/here.json").write_text("measured by a replica")
    (folder / "engines").mkdir()
    (folder / "engines/there.json").write_text("measured by export")
    assert kept.release(Place.of(folder), silent) == first
    assert sorted(p.name for p in Path(first.place, "engines").iterdir()) == ["here.json", "there.json"]
    Place.of(folder / "broadsheet.json").write_text('{"temperature": 2}')
    second = kept.release(Place.of(folder), silent)
    assert second.same(first)
    assert second != first  # '--update' has replicas load it
    assert second.place != first.place
    assert Path(first.place, "broadsheet.json").read_text() == "{}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_served_itself(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (tmp_path / "run").chmod(0o500)
    said: list[str] = []
    release = kept.release(Place.of(folder), said.append)
    assert release.place == str(folder)
    assert "no copy of" in said[0]


def test_a_place_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (tmp_path / "run/served").write_text("mine")
    said: list[str] = []
    release = kept.release(Place.of(folder), said.append)
    assert (release.place, release.version == "") == (str(folder), False)
    assert "replicas that start later find what lies there by then" in said[0]


def test_a_checkpoint_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path)
    link, others = os.link, ["two"]

    def slow(source: str, target: str) -> None:
        if others:
            checkpoint(tmp_path, others.pop())
        link(source, target)

    monkeypatch.setattr(os, "link", slow)
    release = kept.release(Place.of(folder), silent)
    assert Path(release.place, "model.safetensors").read_text() == "two"
    assert len(list((tmp_path / "run/served").iterdir())) == 1


def test_old_copies_go(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    served = tmp_path / "run/served"
    other = served / "best-0123"
    made = []
    for k in range(kept.NEWEST + 3):
        release = kept.release(Place.of(checkpoint(tmp_path, f"{k}")), silent)
        note = Path(release.place, kept.NOTE)
        year = 2020 + k if k != 1 else 2999  # somebody asks for the second one again and again
        note.write_text(json.dumps({"of": str(folder), "last_used": f"{year}-01-01T00:00:00+00:00"}))
        made.append(release)
    other.mkdir()
    (served / "checkpoint-half").mkdir()  # of a command that was killed
    last = kept.release(Place.of(checkpoint(tmp_path, "last")), silent)

    def left() -> set[str]:
        return {p.read_text() for p in served.glob("checkpoint-*/model.safetensors")}

    kept.touch(made[2])
    kept.clear(last, [made[0]])
    assert left() == {"last", "0", "1", "2", "7"}
    assert other.exists()
    assert not (served / "checkpoint-half").exists()


def test_a_checkpoint_of_links_is_copied_as_files(tmp_path: Path) -> None:
    """As the Hugging Face hub's cache keeps them."""
    folder = checkpoint(tmp_path)
    (tmp_path / "blob").write_text("one")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blob")
    release = kept.release(Place.of(folder), silent)
    assert not Path(release.place, "model.safetensors").is_symlink()
    assert Path(release.place, "model.safetensors").read_text() == "one"


def test_what_is_no_whole_checkpoint_is_not_kept(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "broadsheet.json").unlink()  # on object stores it comes last
    said: list[str] = []
    assert kept.release(Place.of(folder), said.append).place == str(folder)
    assert "it is being written to" in said[0]
    assert not (tmp_path / "run/served").exists()
