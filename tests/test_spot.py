"""The notice that a spot instance will be taken away."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from cloud_metadata import served
from conftest import unused_port

from pipeline import spot
from pipeline.errors import UserError, WorkFailed


@pytest.mark.parametrize(
    ("name", "called", "least", "most"), [("aws", "AWS", 100, 120), ("google", "Google Cloud", 30, 30)]
)
def test_each_cloud_is_known_and_its_notice_understood(name: str, called: str, least: int, most: int) -> None:
    with served(name) as cloud:
        found, ask = spot.cloud(cloud.url)
        assert (found, ask(cloud.url)) == (called, None)
        cloud.seconds = 120
        left = ask(cloud.url)
        assert left is not None
        assert least <= left <= most


def test_an_end_that_is_past_leaves_no_time() -> None:
    with served("aws") as cloud:
        cloud.seconds = -30
        assert spot.aws(cloud.url) == 0


def test_no_cloud(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spot, "PATIENCE_SECONDS", 0.0)
    assert spot.main(["--metadata", f"http://127.0.0.1:{unused_port()}"]) == 2
    said = capsys.readouterr().err
    assert "is no metadata service of a cloud" in said
    assert "Traceback" not in said
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setattr(spot, "ANSWER_SECONDS", 0.2)
        with pytest.raises(UserError, match="timed out"):
            spot.cloud(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_notice_is_passed_on_until_ray_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[tuple[Any, ...]] = []

    def drain(*given: Any) -> None:
        tries.append(given)
        if len(tries) == 1:
            raise WorkFailed("Ray took no notice: not up yet")

    monkeypatch.setattr(spot, "drain", drain)
    monkeypatch.setattr(spot, "EVERY_SECONDS", 0.0)
    with served("google") as cloud:
        cloud.seconds = 30
        assert spot.main(["--metadata", cloud.url, "--address", "10.0.0.1:6379"]) == 0
    assert tries == [(30, "10.0.0.1:6379", None)] * 2
    assert capsys.readouterr().out.splitlines() == [
        "spot: watching for Google Cloud's notice",
        "spot: Google Cloud takes this node away in 30 s",
        "spot: Ray took no notice: not up yet; trying again",
        "spot: Ray knows, and empties the node",
    ]


def test_no_ray_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "RAY_SECONDS", 5.0)
    with pytest.raises(WorkFailed, match="Ray took no notice"):
        spot.drain(30, f"127.0.0.1:{unused_port()}", "0" * 56)
