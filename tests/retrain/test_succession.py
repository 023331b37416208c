"""``run --from-feedback`` between its looks at the endpoint: where that is, and whose feedback counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mislabelled
import pytest
from mislabelled import corrected, examined, say, trained

from pipeline import stages
from pipeline.errors import UserError
from pipeline.retrain import base as bases
from pipeline.storage import Place
from serve import succession
from serve.releases import version_of
from serve.succession import Endpoint


@pytest.fixture
def served_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A base that was made with another port and folder than it is served with; the command runs in another folder."""
    sets = ("serve.port=9000", "serve.host=0.0.0.0", "serve.insecure=true", "serve.feedback=old")
    run = trained(mislabelled.config(tmp_path, "base", *sets))
    examined(run, wrong=80)
    monkeypatch.setattr(stages, "_evaluate", lambda job, address: None)  # it needs Ray
    say(tmp_path / "kept", corrected(10, 5))
    for name in ("here", "old"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked: list[int] = []
    concluded: list[Any] = []

    def command(port: int, *sets: str, where: str = "", runs: bool = True, **given: Any) -> tuple[list[int], Any]:
        """Run it where an endpoint is on a port only: the ports that were asked, and the configuration at the end."""
        asked.clear()
        checkpoint = Place.of(run / "checkpoint")
        endpoint = Endpoint(str(checkpoint), version_of(checkpoint), feedback=str(tmp_path / "kept"))

        def looked_for(config: Any, _: object) -> Endpoint | None:
            asked.append(config.serve.port)
            return endpoint if runs and config.serve.port == port else None

        monkeypatch.setattr(succession, "serving", looked_for)
        monkeypatch.setattr(succession, "conclude", lambda config, *_: concluded.append(config))
        flags = {"name": "new", "storage": None, "serve.port": None, "serve.host": None} | given
        succession.run(where, "ignore", sets, flags, None)
        return list(asked), concluded[-1]

    return command


def test_the_endpoint_counts_and_not_where_the_base_was_served(served_elsewhere: Any, tmp_path: Path) -> None:
    asked, config = served_elsewhere(8000)
    assert asked == [8000]
    assert (config.serve.port, config.serve.host) == (8000, "127.0.0.1")
    assert config.serve.feedback == str(tmp_path / "kept")
    assert config.storage == str(tmp_path / "runs")
    made_of = bases.read_version(Place.of(tmp_path / "runs" / "new"))["made_of"]  # type: ignore[index]
    assert (made_of["port"], made_of["feedback"]) == (8000, str(tmp_path / "kept"))


def test_the_same_command_finds_the_run_and_the_endpoint_again(served_elsewhere: Any, tmp_path: Path) -> None:
    first = served_elsewhere(8123, where=str(tmp_path / "runs" / "base"), **{"serve.port": 8123})[1]
    assert first.serve.port == 8123
    again = served_elsewhere(8123, where=str(tmp_path / "runs" / "base"))  # the port is that of the first attempt
    assert again == ([8123], first)
    asked, config = served_elsewhere(8123, **{"serve.port": 8123})  # without RUN: beside what serves
    assert (asked, config) == ([8123], first)
    asked, config = served_elsewhere(8123, storage=str(tmp_path / "runs"), runs=False)  # and without an endpoint
    assert (asked, config) == ([8123], first)
    with pytest.raises(UserError, match=r"no endpoint runs here on port 8000: name the run to start from"):
        served_elsewhere(8123)


def test_feedback_is_that_of_the_command_then_of_the_endpoint_then_of_the_base(
    served_elsewhere: Any, tmp_path: Path
) -> None:
    say(tmp_path / "said", corrected(10, 6))
    where = str(tmp_path / "runs" / "base")
    config = served_elsewhere(8000, f"serve.feedback={tmp_path / 'said'}", where=where, name="told")[1]
    assert config.serve.feedback == str(tmp_path / "said")
    say(tmp_path / "here" / "old", corrected(10, 7))
    config = served_elsewhere(8000, where=where, runs=False, name="base_only")[1]
    assert config.serve.feedback == str(tmp_path / "here" / "old")


def test_storage_may_be_a_set_key(served_elsewhere: Any, tmp_path: Path) -> None:
    config = served_elsewhere(8000, f"storage={tmp_path / 'other'}")[1]
    assert config.storage == str(tmp_path / "other")
    assert served_elsewhere(8000, f"storage={tmp_path / 'other'}") == ([8000], config)
