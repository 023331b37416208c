"""API keys in their file: what is kept, what is refused, and that nothing of it is the key."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage import Place
from serve import keys


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.of(tmp_path / "keys.json")


def test_a_key_is_shown_once_and_its_digest_kept(place: Place) -> None:
    secret = keys.add(place, "ana")
    other = keys.add(place, "ben", "admin")
    assert secret.startswith("bs_")
    assert len(secret) == 3 + 43
    assert secret != other
    content = Path(place.uri).read_text()
    assert secret not in content
    assert secret[3:] not in content
    assert stat.S_IMODE(Path(place.uri).stat().st_mode) == 0o600
    kept = keys.read(place)
    assert [(key.name, key.scope) for key in kept] == [("ana", "classify"), ("ben", "admin")]
    found = keys.find(kept, other.encode())
    assert found is not None
    assert found.name == "ben"
    for wrong in (secret + "x", secret[:-1], "", "bs_", kept[0].sha256.hex()):
        assert keys.find(kept, wrong.encode()) is None


def test_revoking_takes_one_away(place: Place) -> None:
    secret = keys.add(place, "ana")
    keys.add(place, "ben")
    keys.revoke(place, "ana")
    assert [key.name for key in keys.read(place)] == ["ben"]
    assert keys.find(keys.read(place), secret.encode()) is None
    with pytest.raises(UserError, match="has no key 'ana'; it has: ben"):
        keys.revoke(place, "ana")
    keys.revoke(place, "ben")
    assert keys.read(place) == ()
    keys.add(place, "ana")
    assert list(Path(place.uri).parent.iterdir()) == [Path(place.uri)]


def test_what_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file of keys: .*'broadsheet keys add NAME'"):
        keys.read(place)
    for name in ("", "a b", "../a", "a\n", "-a", "x" * 65):
        with pytest.raises(UserError, match="cannot name a key"):
            keys.add(place, name)
    assert not Path(place.uri).exists()
    keys.add(place, "ana")
    with pytest.raises(UserError, match="has a key 'ana' already"):
        keys.add(place, "ana")
    with pytest.raises(UserError, match="cannot use the folder"):
        keys.add(Place.of(tmp_path / "none" / "keys.json"), "ana")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot read the keys in"):
        keys.add(Place.of(tmp_path / "folder"), "ana")


GOOD = {"name": "a", "sha256": "00" * 32, "created": "2026-01-01", "scope": "admin"}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"keys": 1}', '{"keys": [1]}', '{"keys": [{}]}', "\xff",
        *(json.dumps({"keys": [GOOD | change]}) for change in (
            {"sha256": "00"}, {"sha256": "zz"}, {"sha256": None}, {"scope": "root"}, {"scope": ["admin"]}, {"name": 1},
        )),
        json.dumps({"keys": [GOOD, GOOD]}),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_left_alone(place: Place, content: str) -> None:
    assert keys.parse(json.dumps({"keys": [GOOD]}).encode())[0].scope == "admin"
    Path(place.uri).write_text(content, encoding="latin-1")
    for action in (lambda: keys.read(place), lambda: keys.add(place, "b"), lambda: keys.revoke(place, "a")):
        with pytest.raises(UserError, match="is damaged, or no file of keys"):
            action()
    assert Path(place.uri).read_text(encoding="latin-1") == content


def test_commands_at_the_same_time_lose_nothing(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: keys.add(place, f"k{i}"), range(24)))
    assert sorted(key.name for key in keys.read(place)) == sorted(f"k{i}" for i in range(24))


def test_a_link_stays_one(place: Place, tmp_path: Path) -> None:
    keys.add(place, "ana")
    link = tmp_path / "link.json"
    link.symlink_to(place.uri)
    keys.add(Place.of(link), "ben")
    assert link.is_symlink()
    assert len(keys.read(place)) == 2


def test_keys_in_an_object_store(s3: str) -> None:
    place = Place.of("s3://news/keys.json")
    secret = keys.add(place, "ana")
    keys.add(place, "ben")
    keys.revoke(place, "ben")
    found = keys.find(keys.read(place), secret.encode())
    assert found is not None
    assert found.name == "ana"
