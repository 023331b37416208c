"""A second pass over each batch, with token vectors changed against the loss."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small import network, tokens

from pipeline.config import load
from pipeline.model import source
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification
from pipeline.train import recipe, trainer
from pipeline.train.adversarial import Adversary
from pipeline.train.loop import Loop


def lstm() -> Any:
    torch.manual_seed(5)
    sizes = {"vocab_size": 60, "embedding_dim": 16, "hidden": (12,), "num_labels": 3}
    return LstmForSequenceClassification(LstmConfig(**sizes, dropout=0.0, pooling="max"))


def loop_of(model: Any, size: float, micro: int | None = None) -> Loop:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    cpu, adversary = torch.device("cpu"), Adversary(model, size) if size else None
    return Loop(model, optimizer, tokens(), 0, cpu, "fp32", 1e9, 1, micro_tokens=micro, adversary=adversary)


ROWS = np.array([3, 1, 7, 12, 30], np.int64)


@pytest.mark.parametrize("make", [network, lstm])
def test_a_step_is_that_of_both_passes(make: Any) -> None:
    """By hand, through the table itself: no token stands twice in these rows, so its vector is that of one place."""
    model, mine = make(), make()
    loop, size = loop_of(model, 0.2), 0.2
    ids = torch.arange(1, 1 + 5 * 6).view(5, 6)
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    labels = torch.tensor([0, 1, 2, 1, 0])
    loop._batch = lambda *_: (ids, mask, labels)  # type: ignore[method-assign]
    loop.step(0, ROWS, 1.0)

    table = mine.get_input_embeddings().weight

    def backward() -> None:
        logits = mine(input_ids=ids, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()

    backward()
    clean, vectors = table.grad[ids] * mask[..., None], table.detach()[ids] * mask[..., None]
    change = size * vectors.norm(dim=(1, 2), keepdim=True) / clean.norm(dim=(1, 2), keepdim=True) * clean
    own = table.detach().clone()
    with torch.no_grad():
        table[ids.reshape(-1)] += change.reshape(-1, table.shape[1])
    backward()
    with torch.no_grad():
        table.copy_(own)
    torch.optim.SGD(mine.parameters(), lr=1.0).step()
    for (name, a), (_, b) in zip(model.named_parameters(), mine.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


def test_the_change_raises_the_loss_and_is_gone_afterwards() -> None:
    model = network()
    adversary = Adversary(model, 0.3)
    loop = loop_of(model, 0)
    ids, mask, labels = loop._batch(loop.tokens, ROWS)

    def loss() -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits, labels)

    before = loss()
    before.backward()
    with adversary.at_work(mask):
        assert loss() > before
    with torch.inference_mode():
        assert torch.equal(loss(), before)


def test_in_pieces_it_is_the_same_step() -> None:
    whole, pieces = network(), network()
    for model, micro in ((whole, None), (pieces, 16)):
        loop_of(model, 0.2, micro).step(0, ROWS, 1.0)
    for (name, a), (_, b) in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


def test_a_frozen_table_stays_as_it_is() -> None:
    model = network()
    recipe.freeze(model, embeddings=True, layers=0)
    table = copy.deepcopy(model.get_input_embeddings().weight)
    other = copy.deepcopy(model.classifier.weight)
    loop_of(model, 0.2).step(0, ROWS, 1.0)
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert not torch.equal(model.classifier.weight, other)


def test_evaluation_knows_nothing_of_it() -> None:
    model = network()
    plain = loop_of(network(), 0).evaluate(tokens(), 256, 3)
    adversarial = loop_of(model, 0.5).evaluate(tokens(), 256, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain, adversarial, strict=True))


def test_which_models_learn_so() -> None:
    lstm_source = source.resolve("lstm")
    assert trainer.adversarial(load(None, [], {}), lstm_source) == 0.05
    assert trainer.adversarial(load(None, ["train.adversarial=0"], {}), lstm_source) == 0
