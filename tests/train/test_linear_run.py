"""``--model linear`` as a user meets it, and the baseline of other models; neither starts Ray on one machine."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from preparing import prepared, write_csv

from pipeline import config as configuration
from pipeline import stages
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import baseline
from pipeline.evaluate.classifier import Classifier

WORDS = {
    "sport": ["match", "goal", "team", "coach", "season", "league", "player"],
    "money": ["bank", "market", "shares", "profit", "price", "trade", "oil"],
    "科技": ["软件", "芯片", "手机", "网络", "电脑", "数据", "科学"],
}


def texts(rows: int, words: int, seed: int) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    labels = [list(WORDS)[i % 3] for i in range(rows)]
    return [(" ".join([*generator.choices(WORDS[c], k=words), str(generator.random())]), c) for c in labels]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("linear")
    train = write_csv(folder / "rows.csv", texts(400, 8, 1))
    flags = {"storage": str(folder / "runs"), "name": "linear", "data.train": (train,), "model.name": "linear"}
    return configuration.load(None, [], flags)


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    stages.train(config, True, None)
    return Path(config.storage) / "linear"


def test_a_checkpoint_like_any_other(run: Path) -> None:
    card = json.loads((run / "checkpoint" / "broadsheet.json").read_text())
    assert (card["kind"], card["max_tokens"], card["pad_id"]) == ("linear", 8192, 0)
    assert card["metrics"]["validation"]["accuracy"] > 0.9
    assert len(card["training"]["history"]) == 1
    classifier = Classifier.load(str(run / "checkpoint"))
    assert classifier.precision == "fp32"
    encoded = classifier.encode(["goal by the team", "芯片 和 电脑", "", "oil " * 5000, "zzz"])
    scores = classifier.probabilities(classifier.all_logits(encoded.ids, 1024))
    assert [classifier.labels[i] for i in scores.argmax(1)][:2] == ["sport", "科技"]
    assert (run / "checkpoint" / "model.safetensors").stat().st_mode & 0o777 == 0o644  # others may serve it
    assert classifier.labels[scores[3].argmax()] == "money"
    assert encoded.truncated == [False] * 5
    assert np.allclose(scores.sum(1), 1)


def test_a_second_training_is_found_finished_and_a_third_has_the_same_bytes(
    config: Config, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.train(config, True, None)
    assert capsys.readouterr().out.count("unchanged, reusing") == 2
    stages.train(config.updated({"name": "again"}), True, None)
    one, two = (folder / "checkpoint" / "model.safetensors" for folder in (run, run.parent / "again"))
    assert one.read_bytes() == two.read_bytes()


def test_search_says_that_there_is_nothing_to_search(config: Config) -> None:
    from tune import search

    with pytest.raises(UserError, match="nothing to search"):
        search.run(config, None)


@pytest.mark.parametrize(("tokens", "read"), [(64, "as prepared"), (8, "whole texts")])
def test_the_baseline_is_fitted_on_the_rows_of_the_run(tokens: int, read: str, config: Config, tmp_path: Path) -> None:
    files = {
        "train": write_csv(tmp_path / "a.csv", texts(300, 12, 1)),
        "test": write_csv(tmp_path / "b.csv", texts(90, 12, 2)),
    }
    data = prepared(tmp_path, files, f"model.max_tokens={tokens}", "model.vocab_size=2000")
    settings = config.updated({"train.max_rows": 60, "model.name": "lstm"}).model_dump(mode="json")
    card = {"kind": "lstm", "config": settings}
    fitted = baseline.baseline(card, data, "test", None, 20)
    assert fitted is not None
    assert fitted.shares_tokens == (read == "as prepared")
    assert fitted.validation is not None
    assert (len(fitted.test), len(fitted.validation)) == (data.rows("test"), data.rows("validation"))
    found = fitted.figures
    assert (found["trained_on"], found["rows"], found["tokens"]) == (60, data.rows("test"), read)
    assert found["accuracy"] > 0.9
    assert "this model" in baseline.line(found, 0.99)
    assert baseline.warning(found, 1.01) is None
    assert "as good or better" in (baseline.warning(found, found["accuracy"]) or "")
    assert baseline.baseline({**card, "kind": "linear"}, data, "test", None) is None


def test_words_are_found_where_the_vocabulary_has_none(config: Config, tmp_path: Path) -> None:
    files = {
        "train": write_csv(tmp_path / "a.csv", texts(300, 8, 1)),
        "test": write_csv(tmp_path / "b.csv", texts(90, 8, 2)),
    }
    data = prepared(tmp_path, files, "model.vocab_size=100")
    data.profile["tokens"]["train"]["unknown_share"] = 0.5
    card = {"kind": "transformer", "config": config.updated({"model.name": "minilm"}).model_dump(mode="json")}
    fitted = baseline.baseline(card, data, "test", None)
    assert fitted is not None
    assert fitted.validation is None
    found = fitted.figures
    assert found["tokens"] == "words of the training rows"
    assert found["accuracy"] > 0.9
