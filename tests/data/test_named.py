"""The short job: what it changes, and what it leaves alone."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configuration
from pipeline.data import named
from pipeline.errors import UserError


def test_the_short_job_is_for_named_data_only() -> None:
    config = configuration.load(None, ["train.epochs=7"])
    changes = named.short_job(config, "ag_news")
    assert changes["train.max_rows"] > 0
    assert "train.epochs" not in changes  # set by the user
    assert named.short_job(config, "files") == {}


def test_the_short_job_knows_its_models() -> None:
    lstm = named.short_job(configuration.load(None, ["model.name=lstm"]), "ag_news")
    assert "train.freeze_embeddings" not in lstm
    other = named.short_job(configuration.load(None, ["model.name=some/model"]), "ag_news")
    assert "train.learning_rate" not in other


def test_own_files_win_over_the_data_set() -> None:
    config = configuration.load(None, [], {"data.train": ("rows.csv",)})
    resolved, why = named.resolve(config)
    assert resolved.data.dataset == "files"
    assert "--data" in why


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"data.test": ("mine.csv",)}, "--test goes with --data"),
        ({"data.format": "csv"}, "--format goes with --data"),
        ({"data.text": ("body",)}, "--text goes with --data"),
        ({"data.labels": ("a", "b")}, "data.labels goes with --data"),
    ],
)
def test_what_is_given_for_own_files_is_not_lost(
    item: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ag_news").mkdir()
    for name in ("train", "test"):
        (tmp_path / "ag_news" / f"{name}.parquet").write_bytes(b"")
    monkeypatch.setenv("BROADSHEET_DATA", str(tmp_path))
    with pytest.raises(UserError, match=said):
        named.resolve(configuration.load(None, [], item))
    config, _ = named.resolve(configuration.load(None, ["data.format=auto", "data.text=text"], {}))
    assert config.data.dataset == "ag_news"
