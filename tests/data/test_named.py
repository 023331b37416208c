"""The short job: what it changes, and what it leaves alone."""

from pipeline import config as configuration
from pipeline.data import named


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
