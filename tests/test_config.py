"""The configuration: where values come from, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import Config, all_keys, changed, dump, explained, load
from pipeline.errors import UserError


def value(config: Config, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("train.epoch", "train.epochs"), ("learning_rate", "train.learning_rate"), ("model.epochs", "train.epochs")],
)
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"unknown config key '{key}': did you mean '{nearest}'"):
        load(sets=[f"{key}=1"])


def test_unknown_key_like_no_other_points_to_the_list() -> None:
    with pytest.raises(UserError, match="broadsheet config"):
        load(sets=["zzz=1"])


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=2.5E-3", 2.5e-3),
        ("train.max_rows=null", None),
        ("model.bidirectional=false", False),
        ("model.hidden=[64, 32]", (64, 32)),
        ("data.text=title,body", ("title", "body")),
        ("data.text=title", ("title",)),
        ("data.extra_rules=width", ("width",)),
        ("data.extra_rules=width,mask_urls", ("width", "mask_urls")),
        ("data.labels=[World, Sports]", ("World", "Sports")),
        ("data.train=s3://b/a=1.csv", ("s3://b/a=1.csv",)),
    ],
)
def test_set_reads_values_as_people_write_them(item: str, expected: object) -> None:
    assert value(load(sets=[item]), item.partition("=")[0]) == expected


@pytest.mark.parametrize(
    "item",
    ["train.epochs=many", "train.epochs=.nan", "seed=1.5", "model.hidden=64", "data.text=", "serve.port=70000"],
)
def test_bad_value_names_its_key(item: str) -> None:
    with pytest.raises(UserError, match=f"config key '{item.partition('=')[0]}'"):
        load(sets=[item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("train.epochs", "key=value"),
        ("train.epochs=[", "not valid YAML"),
        ("name=prepared", "prepared"),
        ("tune.space={train.warmup: {uniform: [0.5, 0.1]}}", "the first number must be below"),
        ("train.evaluate_at=[0, 1]", "shares lie above 0"),
        ("serve.min_replicas=9", "max_replicas is below"),
        ("serve.rate_limit=on", "'serve.rate_limit': a number is wanted here, not yes or no"),
        ("train.workers=yes", "'train.workers': a number is wanted"),
        ("train.evaluate_at=[yes]", "'train.evaluate_at': a number is wanted"),
        ("train.class_weights={a: yes}", "'train.class_weights': a number is wanted"),
        ("storage=", "config key 'storage'"),
        ("seed=null", "config key 'seed'"),
        ("train.class_weights={sport: high}", "config key 'train.class_weights'"),
        ("data.text=" + "[" * 5_000, "not valid YAML"),
    ],
)
def test_bad_item_says_what_is_wrong(item: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(sets=[item])


def test_flags_beat_set_and_set_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\ntrain:\n  epochs: 1\n  warmup: 0.5\ntune:\n")
    config = load(file, ["train.epochs=2", "seed=2"], {"seed": 3, "name": None, "data.train": ()})
    assert (config.seed, config.train.epochs, config.train.warmup, config.name) == (3, 2.0, 0.5, "default")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train:\n  epoch: 1\n", "c.yaml: unknown config key 'train.epoch'"),
        (b"just words", "top level"),
        (b"a: [", "not valid YAML"),
        (b"train:\n  epochs: 5\ntrain:\n  max_rows: 9\n", "'train' stands there twice, the second time in line 3"),
        (b"\xff\xfe\xfa", "cannot read"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "c.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such config file: .*none\.yaml"):
        load(tmp_path / "none.yaml")


def test_config_is_frozen() -> None:
    config = load()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("write", [explained, dump])
def test_written_config_reads_back_equal(tmp_path: Path, write: Any) -> None:
    odd = {"data.label": "no", "data.text": ["a: b", "#x"], "data.labels": ["体育", "World, news"], "train.epochs": 1.5}
    for flags in ({}, odd):
        config = load(flags=flags)
        (tmp_path / "c.yaml").write_text(write(config), encoding="utf-8")
        assert load(tmp_path / "c.yaml") == config


def test_every_key_is_explained() -> None:
    text = explained(load())
    for key, field in all_keys().items():
        assert field.description, key
        assert f"# {field.description}\n" in text


def test_updated_checks_again_and_leaves_the_original() -> None:
    config = load()
    assert config.updated({"train.epochs": 9}).train.epochs == 9
    assert config == load()
    with pytest.raises(UserError, match=r"train\.epochs"):
        config.updated({"train.epochs": -1})
    with pytest.raises(UserError, match="unknown config key"):
        config.updated({"train.nothing": 1})


def test_strings_that_look_like_numbers_survive_a_round_trip(tmp_path: Path) -> None:
    config = load(sets=["data.labels=['12e4', '1e5', 'x']"])
    file = tmp_path / "config.yaml"
    for text in (dump(config), explained(config)):
        file.write_text(text)
        assert load(file) == config


def test_an_empty_section_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {}\ndata:\n")
    assert load(file) == load()


def test_the_keys_that_are_not_at_their_defaults() -> None:
    config = load(sets=["data.min_chars=20", "train.epochs=3", "serve.port=8001", "seed=3"])
    assert changed(config, ("seed", "data", "train")) == {"seed": 3, "data.min_chars": 20, "train.epochs": 3.0}
