"""Places on S3: names, globs and wrong names, credentials and endpoints, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from preparing import prepared
from s3_server import KEY, SECRET, Proxy, objects, put

from pipeline import object_store
from pipeline.config import load
from pipeline.data.read import find, read
from pipeline.errors import UserError, WorkFailed
from pipeline.folders import local_folder, put_folder
from pipeline.storage import Place, expand, identity


@pytest.fixture
def news(s3: str) -> str:
    """A folder with one small file."""
    put("s3://news/small/x.csv", b"text,label\na,b\n")
    return "s3://news/small"


def test_places(s3: str, tmp_path: Path) -> None:
    folder = Place.of("s3://news/places/")
    assert not folder.exists()
    for name in ("b.csv", "a b%20é?.csv", ".hidden.csv", "sub/c.csv", "sub/deep/d.csv", "[x].csv"):
        put(f"{folder}/{name}", name.encode())
    assert [f.name for f in folder.files(".csv")] == ["[x].csv", "a b%20é?.csv", "b.csv"]

    def names(pattern: str) -> list[str]:
        return [f.removeprefix(f"{folder}/") for f in expand(f"{folder}/{pattern}")]

    assert names("*.csv") == ["[x].csv", "a b%20é?.csv", "b.csv"]
    assert names("**/*.csv") == ["[x].csv", "a b%20é?.csv", "b.csv", "sub/c.csv", "sub/deep/d.csv"]
    assert names("") == names("**/*.csv")
    assert names("?.csv") == ["b.csv"]
    assert names("*/[!x].csv") == ["sub/c.csv"]
    assert names("[x].csv") == ["[x].csv"]
    assert names("a b%20é?.csv") == ["a b%20é?.csv"]
    (folder / "empty").mkdir()  # a marker: an object without content that stands for a folder
    assert names("") == names("**/*.csv")
    assert (folder / "empty").files() == []
    for pattern in ("*.tsv", "nowhere.csv", "empty"):
        with pytest.raises(UserError, match=r"no such file: s3://news/places/"):
            names(pattern)

    before = identity(f"{folder}/b.csv")
    put(f"{folder}/b.csv", b"B.csv")
    assert identity(f"{folder}/b.csv") != before
    put(f"{folder}/b.csv", b"b.csv")
    assert identity(f"{folder}/b.csv") == before, "the content counts, not when it was put there"

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new").write_text("new")
    put_folder(tmp_path, folder)
    with local_folder(folder) as local:
        assert [p.relative_to(local).as_posix() for p in sorted(local.rglob("*"))] == ["sub", "sub/new"]
    folder.delete()
    folder.delete()
    assert not objects(str(folder))


def test_the_endpoint_in_the_uri_reaches_every_place_below(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={s3}&region=eu-north-1"
    folder = Place.of(f"s3://news/options/{options}") / "deep"
    put(str(folder / "x.csv"), b"text,label\na,b\n")
    assert str(folder / "x.csv") == f"s3://news/options/deep/x.csv{options}"
    assert ((folder / "x.csv").name, (folder / "x.csv").parent) == ("x.csv", folder)
    for pattern in (str(folder), f"s3://news/options/**/*.csv{options}", f"s3://news/options/deep/?.csv{options}"):
        (source,) = find([(pattern, "train")], load().data)
        assert (source.name, source.format) == ("x.csv", "csv")
        assert [t["text"].to_pylist() for t in read(source, load().data)] == [["a"]]
    put(str(folder / "sport" / "1.txt"), b"a goal")
    (source,) = find([(f"s3://news/options/deep/sp*/*.txt{options}", "train")], load().data)
    assert [t["label"].to_pylist() for t in read(source, load().data)] == [["sport"]]


@pytest.mark.parametrize(
    ("data", "storage", "message"),
    [
        ("s3://news/small/nope.csv", "s3://runs/wrong", r"no such file: s3://news/small/nope\.csv"),
        ("s3://no-such-bucket/x.csv", "s3://runs/wrong", "s3://no-such-bucket/x.csv: there is no bucket 'no-such-bu"),
        ("s3://news/small/x.csv", "s3://no-such-bucket/x", "s3://no-such-bucket/x.*there is no bucket 'no-such-b"),
        ("s3://x*/*.csv", "s3://runs/wrong", r"s3://x\*/\*\.csv: name the bucket itself"),
        ("s3://", "s3://runs/wrong", "s3:// names no bucket"),
        (f"s3://{KEY}:{SECRET}@news/small", "s3://runs/wrong", "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_names(news: str, data: str, storage: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepared(storage, {"train": data})
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "NOBODY")])
def test_wrong_credentials(news: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    for data, storage in ((f"{news}/*.csv", "s3://runs/x"), (news, "s3://runs/x")):
        with pytest.raises(UserError, match=rf"^{news}.* refuses access \(\w+\): check AWS_ACCESS_KEY_ID"):
            prepared(storage, {"train": data})
    with pytest.raises(UserError, match=r"^s3://runs/x/y: the store at .* refuses access"):
        put("s3://runs/x/y", b"1")


def test_nothing_listens_there(s3: str, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    command = [sys.executable, "-m", "broadsheet", "prepare", "--data", "s3://news/x.csv", "--set", "model.name=lstm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"s3://news/x.csv: cannot reach this storage at http://127.0.0.1:{free_port}" in line
    assert line.endswith("check the name, the network and AWS_ENDPOINT_URL")
    assert os.listdir(tmp_path) == []


def test_a_large_file_is_there_as_a_whole_or_not(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "S3_ATTEMPTS", 2)
    place, old, new = Place.of("s3://runs/large/x"), b"o" * 100, os.urandom(12 << 20)
    place.write_bytes(old)
    for part in ("partNumber=2", "uploadId="):
        proxy.fault = lambda method, path, part=part: "503" if part in path and method in ("PUT", "POST") else None
        with pytest.raises(WorkFailed, match=r"s3://runs/large/x: the store .* stopped working"):
            place.write_bytes(new)
        assert place.read_bytes() == old
    proxy.fault = lambda method, path: None
    place.write_bytes(new)
    assert place.read_bytes() == new


def test_a_checkpoint_that_is_served_is_copied_inside_the_store(s3: str, tmp_path: Path) -> None:
    from serve import kept

    for name, content in {"model.safetensors": "one", "broadsheet.json": "{}", "tokenizer/tokenizer.json": "t"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    folder = Place.of("s3://runs/kept/checkpoint")
    put_folder(tmp_path, folder, last="broadsheet.json")
    said: list[str] = []
    first = kept.release(folder, said.append)
    assert first == kept.release(folder, said.append)
    (tmp_path / "model.safetensors").write_text("two")
    put_folder(tmp_path, folder, last="broadsheet.json")
    second = kept.release(folder, said.append)
    assert second != first, "'--update' would say that it serves already"
    assert [(Place.of(r.place) / "model.safetensors").read_text() for r in (first, second)] == ["one", "two"]
    assert (Place.of(first.place) / "tokenizer/tokenizer.json").read_text() == "t"
    assert not said
    nowhere = Place.of("s3://no-such-bucket/kept/checkpoint")
    assert kept.release(nowhere, said.append).place == str(nowhere)
    assert "no copy of s3://no-such-bucket/kept/checkpoint could be kept" in said[0]
