"""Places, atomic writes, globs and folder copies on local disks."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.parsers import compression
from pipeline.errors import UserError
from pipeline.folders import local_folder, put_folder
from pipeline.object_store import matches
from pipeline.storage import Place, expand, identity, is_remote


def test_place_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place.of("runs") / "first"
    assert str(place) == str(tmp_path / "runs" / "first")
    assert place.name == "first"
    assert place.is_local
    assert Place.of(place) is place
    assert str(Place.of("s3://bucket/runs/") / "a") == "s3://bucket/runs/a"
    assert is_remote("hf://x")
    assert not Place.of("gs://b").is_local
    assert (place.parent, (place / "a").parent) == (Place.of("runs"), place)


def test_options_of_a_uri_stay_at_its_end() -> None:
    options = "?endpoint_override=http://127.0.0.1:9000&region=x"
    place = Place.of(f"s3://bucket/a/{options}")
    assert str(place / "b.csv.gz") == f"s3://bucket/a/b.csv.gz{options}"
    assert ((place / "b.csv.gz").name, (place / "b").parent) == ("b.csv.gz", place)
    assert compression(str(place / "b.csv.gz")) == "gzip"
    assert Place.of("s3://bucket/year?.csv").name == "year?.csv"
    assert Place.of("s3://bucket/p?x=1/y").name == "y"
    for uri in ("s3://", "gs:///"):
        with pytest.raises(UserError, match="names no bucket"):
            Place.of(uri)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="ftp://host/x: only local paths"):
        Place.of("ftp://host/x")


def test_write_read_list_delete(tmp_path: Path) -> None:
    folder = Place.of(tmp_path) / "a" / "b"
    (folder / "2.txt").write_text("zwei 二")
    (folder / "1.txt").write_bytes(b"one")
    (folder / ".hidden.txt").write_text("")
    (folder / "sub.txt").mkdir()
    assert [p.name for p in folder.files(".txt")] == ["1.txt", "2.txt"]
    assert (folder / "2.txt").read_text() == "zwei 二"
    assert (folder / "1.txt").is_file()
    assert not folder.is_file()
    folder.delete()
    folder.delete()
    assert not folder.exists()
    assert folder.files() == []


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.of(tmp_path / "f")
    place.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        place.write_text("new")
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_expand(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden.csv", "sub/c.csv", "odd[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        return [os.path.relpath(p, tmp_path) for p in expand(f"{tmp_path}/{pattern}")]

    assert names("a.csv") == ["a.csv"]
    assert names("?.csv") == ["a.csv", "b.csv"]
    assert names("**/*.csv") == ["a.csv", "b.csv", "odd[1].csv", "sub/c.csv"]
    assert names("") == ["a.csv", "b.csv", "odd[1].csv", "sub/c.csv"]
    assert names("odd[1].csv") == ["odd[1].csv"]
    with pytest.raises(UserError, match=r"no such file: .*\*\.tsv"):
        names("*.tsv")


PATTERNS = "*", "*.csv", "**", "**/*.csv", "**/c.csv", "*/*", "?.csv", "[!a].csv", "sub/**", "**/deep/*", ".*", "[x"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wildcards_mean_the_same_in_a_store(pattern: str, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.tsv", ".h.csv", "sub/c.csv", "sub/.h/c.csv", "sub/deep/d.csv", "sub/deep/e/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    here = {p for p in glob.glob(pattern, root_dir=tmp_path, recursive=True) if (tmp_path / p).is_file()}
    assert {n for n in names if matches(n.split("/"), pattern.split("/"))} == here


def test_identity_follows_the_content(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"x" * 3_000_000)
    two.write_bytes(b"x" * 3_000_000)
    before = identity(str(one))
    assert before == identity(str(two))
    one.write_bytes(b"x" * 2_999_999 + b"y")
    assert identity(str(one)) != before


def test_put_folder_replaces_all_that_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", Place.of(tmp_path) / "deep" / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "new").write_text("new")
    (target / "old").write_text("old")
    put_folder(source, target)
    with local_folder(target) as folder:
        assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))] == ["sub", "sub/new"]
    assert os.listdir(tmp_path / "deep") == ["target"]


def test_folders_are_walked_through_links_once_and_past_what_lies_beside_data(tmp_path: Path) -> None:
    (tmp_path / "store/sport").mkdir(parents=True)
    (tmp_path / "store/sport/a.txt").write_text("a")
    news = tmp_path / "news"
    (news / "tech").mkdir(parents=True)
    for name in ("tech/b.txt", "_SUCCESS", "_plan.json", "_mine.txt", "_temporary/x.txt"):
        (news / name).parent.mkdir(exist_ok=True)
        (news / name).touch()
    (news / "sport").symlink_to(tmp_path / "store/sport")
    (news / "tech/again").symlink_to(news)
    (news / "tech/up").symlink_to(tmp_path)
    assert [os.path.relpath(p, news) for p in expand(str(news))] == ["_mine.txt", "sport/a.txt", "tech/b.txt"]


def test_a_home_is_found_and_a_name_that_is_no_text_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").touch()
    assert expand("~/a.csv") == expand("~/*.csv") == [str(tmp_path / "a.csv")]
    with open(os.fsencode(tmp_path) + b"/caf\xe9.csv", "wb"):
        pass
    with pytest.raises(UserError, match=r"caf\\udce9.csv: the name is not UTF-8: rename the file"):
        expand("~/*.csv")


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rows"
    (folder / "b").mkdir(parents=True)
    (folder / "1.csv").write_text("text,label\n")
    (folder / "README").symlink_to(tmp_path / "gone")
    (folder / "lost+found").mkdir(mode=0)
    (folder / "2.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"2\.csv is a link that leads nowhere: its rows would be missing"):
        expand(str(folder))
    (folder / "2.csv").unlink()
    closed, scan = str(folder / "b"), os.scandir

    def refusing(path: str) -> Any:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root, who runs tests in containers, may read everything
    with pytest.raises(UserError, match=r"/b cannot be read \(Permission denied\): its rows would be missing"):
        expand(str(folder))


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    local, target = tmp_path / "local", tmp_path / "runs" / "checkpoint"
    local.mkdir(mode=0o700)
    (local / "weights").write_text("new")
    old = target.parent / ".checkpoint.old"
    old.mkdir(parents=True)
    (old / "weights").write_text("old")
    real = shutil.copytree

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            put_folder(local, Place.of(target))
    assert (target / "weights").read_text() == "old"
    assert shutil.copytree is real
    put_folder(local, Place.of(target))
    assert (target / "weights").read_text() == "new"
    assert target.stat().st_mode == target.parent.stat().st_mode  # not closed to others, as the folder it came from
    assert [p.name for p in target.parent.iterdir()] == ["checkpoint"]


def test_a_home_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="~nobody-of-that-name/x: nobody is called that"):
        Place.of("~nobody-of-that-name/x")
