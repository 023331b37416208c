"""Depths, rates per layer, frozen layers and class weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import network

from pipeline.errors import UserError
from pipeline.model.depth import depths
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification
from pipeline.train import recipe


def test_depths_follow_the_layers() -> None:
    found = depths(network())
    assert {n for n, d in found.items() if d == 0} == {n for n in found if n.startswith("bert.embeddings.")}
    assert {found[n] for n in found if ".layer.0." in n} == {1}
    assert {found[n] for n in found if ".layer.1." in n} == {2}
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == 3
    lstm = depths(LstmForSequenceClassification(LstmConfig(vocab_size=9, hidden=(4, 4))))
    assert lstm["embedding.weight"] == 0
    assert lstm["layers.0.weight_hh_l0"] == 1
    assert lstm["classifier.weight"] == 3


def test_rates_fall_layer_by_layer() -> None:
    model = network()
    scales = {
        id(p): (group["scale"], group["weight_decay"])
        for group in recipe.optimizer_for(model, 1e-3, 0.01, 0.5).param_groups
        for p in group["params"]
    }
    named = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert named["classifier.weight"] == (1.0, 0.01)
    assert named["classifier.bias"] == (1.0, 0.0)
    assert named["bert.encoder.layer.1.output.dense.weight"] == (0.5, 0.01)
    assert named["bert.encoder.layer.1.output.LayerNorm.weight"] == (0.5, 0.0)
    assert named["bert.encoder.layer.0.output.dense.weight"] == (0.25, 0.01)
    assert named["bert.embeddings.word_embeddings.weight"] == (0.125, 0.01)
    assert {g["scale"] for g in recipe.optimizer_for(model, 1e-3, 0.01).param_groups} == {1.0}


def test_freezing() -> None:
    model = network()
    recipe.freeze(model, embeddings=True, layers=0)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["bert.embeddings.word_embeddings.weight"]
    recipe.freeze(model, embeddings=False, layers=1)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n in dict(model.named_parameters()) if "embeddings" in n or ".layer.0." in n}
    with pytest.raises(UserError, match=r"train\.freeze_layers is 3, but this model has 2 layers"):
        recipe.freeze(network(), embeddings=False, layers=3)


def test_class_weights_are_one_on_the_average() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2], np.int64)
    assert recipe.class_weights("none", "abc", labels) is None
    balanced = recipe.class_weights("balanced", "abc", labels)
    assert balanced is not None
    torch.testing.assert_close(balanced, torch.tensor([10 / 18, 10 / 9, 10 / 3]))  # rows / (labels * rows of the label)
    given = recipe.class_weights({"a": 1, "b": 2, "c": 4}, "abc", labels)
    assert given is not None
    torch.testing.assert_close(given, torch.tensor([1.0, 2.0, 4.0]) * 10 / 16)
    with pytest.raises(UserError, match=r"no label is called 'd'"):
        recipe.class_weights({"a": 1, "b": 2, "d": 4}, "abc", labels)
    with pytest.raises(UserError, match=r"label 'c' has no weight"):
        recipe.class_weights({"a": 1, "b": 2}, "abc", labels)
    for senseless in ({"a": 0, "b": 0, "c": 0}, {"a": 1, "b": -1, "c": 1}, {"a": 1, "b": float("nan"), "c": 1}):
        with pytest.raises(UserError, match="numbers from 0 up"):
            recipe.class_weights(senseless, "abc", labels)
