"""The moving average of the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from small import network
from torch import nn

from pipeline.config import load
from pipeline.model import source
from pipeline.train import checkpoint, recipe, trainer
from pipeline.train.average import EVERY, Average


def walk(model: nn.Module, average: Average, steps: range) -> list[torch.Tensor]:
    """Draw new weights at each step; returns those of one parameter after each update."""
    seen = []
    name, watched = next(iter(model.named_parameters()))
    assert name in average.values
    for step in steps:
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        average.update(step)
        if step % EVERY == 0:
            seen.append(watched.detach().clone())
    return seen


def test_it_is_what_the_formula_says() -> None:
    model = network()
    name, parameter = next(iter(model.named_parameters()))
    average = Average(model, 0.99)
    walk(model, average, range(1, EVERY))
    expected = parameter.detach().clone()
    for k, weights in enumerate(walk(model, average, range(EVERY, 20 * EVERY + 1)), start=1):
        decay = min(0.99**EVERY, k / (k + 9))
        expected = decay * expected + (1 - decay) * weights
    assert torch.allclose(average.values[name], expected, atol=1e-6)
    assert min(0.99**EVERY, 20 / 29) == 20 / 29  # the first updates are those of the ramp ...
    assert min(0.99**EVERY, 200 / 209) == 0.99**EVERY  # ... and later ones are not


def test_only_what_is_trained_is_averaged() -> None:
    model = network()
    recipe.freeze(model, embeddings=True, layers=0)
    table = model.get_input_embeddings().weight
    assert {id(p) for n, p in model.named_parameters() if n not in Average(model, 0.9).values} == {id(table)}


def test_the_own_weights_come_back_to_the_bit() -> None:
    model = network()
    average = Average(model, 0.9)
    walk(model, average, range(1, 2 * EVERY + 1))
    own = copy.deepcopy(model.state_dict())
    with average.applied():
        assert all(torch.equal(p, average.values[n]) for n, p in model.named_parameters())
        assert not any(torch.equal(p, own[n]) for n, p in model.named_parameters() if p.numel() > 1)
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_serves_the_average_and_goes_on_with_both(tmp_path: Path) -> None:
    first, second = network(), network()
    optimizer, other = (recipe.optimizer_for(model, 1e-2, 0.01) for model in (first, second))
    ids = torch.randint(1, 60, (4, 6))
    first(ids, torch.ones_like(ids), labels=ids[:, 0] % 3).loss.backward()
    optimizer.step()
    average, again = Average(first, 0.9), Average(second, 0.9)
    walk(first, average, range(1, EVERY + 1))
    snapshot = checkpoint.Snapshot(first, optimizer, None, average)
    snapshot.take()
    served = snapshot.model.state_dict()
    assert all(torch.equal(served[name], value) for name, value in average.values.items())
    snapshot.model.save_pretrained(tmp_path)
    checkpoint.save_state(snapshot.moments, {"step": EVERY}, tmp_path)
    assert checkpoint.load_state(second, other, tmp_path, again) == {"step": EVERY}
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(average.values[name], again.values[name]), name
    assert set(other.state) == set(second.parameters())
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in other.state.values())


def test_which_models_have_one() -> None:
    lstm = source.resolve("lstm")
    assert trainer.ema_decay(load(None, [], {}), lstm) == 0.999
    assert trainer.ema_decay(load(None, ["train.ema_decay=0"], {}), lstm) == 0
    assert trainer.ema_decay(load(None, ["train.ema_decay=0.9"], {}), lstm) == 0.9


def test_a_training_shorter_than_an_update_serves_what_it_learned() -> None:
    model = network()
    average = Average(model, 0.999)
    walk(model, average, range(1, EVERY - 1))
    assert all(torch.equal(average.values[name], p) for name, p in model.named_parameters())
    walk(model, average, range(EVERY - 1, EVERY + 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    before = {name: value.clone() for name, value in average.values.items()}
    average.update(EVERY + 3)
    assert all(torch.equal(average.values[name], value) for name, value in before.items())
    average.update(EVERY + 3, now=True)
    assert all(torch.allclose(average.values[n], 0.1 * v + 0.9 * 7.0) for n, v in before.items())


def test_a_checkpoint_without_an_average_begins_one_at_its_weights(tmp_path: Path) -> None:
    first, second = network(), network()
    optimizer, other = (recipe.optimizer_for(model, 1e-2, 0.01) for model in (first, second))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    first.save_pretrained(tmp_path)
    snapshot = checkpoint.Snapshot(first, optimizer)
    snapshot.take()
    checkpoint.save_state(snapshot.moments, {"step": 3}, tmp_path)
    average = Average(second, 0.9)
    checkpoint.load_state(second, other, tmp_path, average)
    assert all(torch.equal(average.values[name], p) for name, p in first.named_parameters())
