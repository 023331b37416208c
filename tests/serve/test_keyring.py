"""The keys of a running server: they follow their file, and survive what happens to it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage import Place
from serve import keyring, keys
from serve.keyring import KeyRing


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place.of(tmp_path / "keys.json")
    keys.add(place, "ana")
    return place


def names(ring: KeyRing) -> list[str]:
    return [key.name for key in ring.keys]


def test_keys_come_and_go(place: Place) -> None:
    clock = Clock()
    ring = KeyRing(place, clock)

    async def later(seconds: float) -> list[str]:
        clock.now += seconds
        if ring.due:
            await ring.look()
            await asyncio.sleep(0)  # the look is over one turn of the loop after its end
        return names(ring)

    async def story() -> None:
        keys.add(place, "ben")
        assert await later(0.5) == ["ana"]  # not looked yet
        assert await later(0.6) == ["ana", "ben"]
        keys.revoke(place, "ana")
        assert await later(0.9) == ["ana", "ben"]
        assert await later(3600) == ["ben"]
        keys.revoke(place, "ben")
        assert await later(1) == []

    asyncio.run(story())


def test_a_damaged_or_vanished_file_keeps_the_last_good_keys(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ring = KeyRing(place, clock)
    file = Path(place.uri)
    good = file.read_bytes()

    async def look() -> None:
        clock.now += 1
        assert ring.due
        await ring.look()
        await asyncio.sleep(0)

    async def story() -> None:
        for damage in (lambda: file.write_bytes(good[:20]), file.unlink, file.mkdir):
            caplog.clear()
            damage()
            for _ in range(3):
                await look()
                assert names(ring) == ["ana"]
            (error,) = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert "The 1 keys known before go on to hold" in error.getMessage()
            assert good.decode() not in error.getMessage()
        file.rmdir()
        file.write_bytes(good)
        caplog.clear()
        await look()
        keys.add(place, "ben")
        await look()
        assert names(ring) == ["ana", "ben"]
        assert not [r for r in caplog.records if r.levelno == logging.ERROR]

    asyncio.run(story())


def test_without_any_keys_there_is_no_ring(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of keys"):
        KeyRing(Place.of(tmp_path / "none.json"))


def test_many_requests_share_a_look_and_a_slow_one_holds_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ring = KeyRing(place, clock)
    looks = 0
    gate = threading.Event()
    identity = keyring._identity

    def slow(place: Place) -> tuple[int, ...] | None:
        nonlocal looks
        looks += 1
        assert gate.wait(30)
        return identity(place)

    monkeypatch.setattr(keyring, "_identity", slow)
    monkeypatch.setattr(keyring, "WAIT_S", 0.05)

    async def story() -> None:
        keys.add(place, "ben")
        clock.now += 1
        await asyncio.gather(*(ring.look() for _ in range(50)))
        assert names(ring) == ["ana"]  # given up, and the store is still at it
        clock.now += 1
        assert ring.due
        await ring.look()  # nobody waits for it any more
        while looks == 0:
            await asyncio.sleep(0.01)
        assert looks == 1
        gate.set()
        while ring._look is not None:
            await asyncio.sleep(0.01)
        assert names(ring) == ["ana", "ben"]
        assert not ring.due

    asyncio.run(story())


def test_a_request_that_goes_away_does_not_end_the_look(place: Place) -> None:
    clock = Clock()
    ring = KeyRing(place, clock)

    async def story() -> None:
        keys.add(place, "ben")
        clock.now += 1
        waiting = asyncio.create_task(ring.look())
        await asyncio.sleep(0)
        waiting.cancel()
        while ring._look is not None:
            await asyncio.sleep(0.01)
        assert names(ring) == ["ana", "ben"]

    asyncio.run(story())


def test_another_file_under_the_same_name_is_seen(place: Place) -> None:
    """As a secret of Kubernetes changes: a link that points elsewhere, same size, same date."""
    clock = Clock()
    folder = Path(place.uri).parent
    two = folder / "two"
    two.write_bytes(Path(place.uri).read_bytes().replace(b"ana", b"eva"))
    os.utime(two, ns=(Path(place.uri).stat().st_mtime_ns,) * 2)
    link = folder / "link"
    link.symlink_to(place.uri)
    ring = KeyRing(Place.of(link), clock)

    async def story() -> None:
        link.unlink()
        link.symlink_to(two)
        clock.now += 1
        await ring.look()
        assert names(ring) == ["eva"]

    asyncio.run(story())
