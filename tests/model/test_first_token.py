"""The last layer of one token against the whole layer: the same logits and gradients, padding or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from pipeline.model.first_token import last_layer_of_one_token

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 50, (5, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[4, 1:] = 0
    return ids, mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, ElectraConfig])
def test_logits_and_gradients_agree(kind: Any, attention: str) -> None:
    torch.manual_seed(3)
    whole = AutoModelForSequenceClassification.from_config(kind(**SMALL), attn_implementation=attention).double()
    with torch.no_grad():
        for parameter in whole.parameters():  # biases start at zero: they, too, must be seen to count
            parameter += 0.1 * torch.randn_like(parameter)
    short = copy.deepcopy(whole)
    assert last_layer_of_one_token(short)
    assert last_layer_of_one_token(copy.deepcopy(short)), "a second time is no harm"
    ids, mask = batch()
    for attention_mask in (mask, torch.ones_like(mask), None):
        logits = [model(input_ids=ids, attention_mask=attention_mask).logits for model in (whole, short)]
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-6, atol=1e-6)  # scores are float32, as with autocast
    for model in (whole, short):
        torch.nn.functional.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, ids[:, 0] % 3).backward()
    for (name, a), (other, b) in zip(whole.named_parameters(), short.named_parameters(), strict=True):
        assert name == other
        if not b.requires_grad:
            assert name.endswith("layer.2.attention.self.key.bias")
            assert a.grad is not None
            assert a.grad.abs().max() < 1e-9, "the gradient that is left out is zero"
        elif a.grad is not None:
            assert b.grad is not None
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_and_autocast_run_and_others_are_left_alone() -> None:
    sizes = {**SMALL, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = AutoModelForSequenceClassification.from_config(BertConfig(**sizes), attn_implementation="eager")
    assert last_layer_of_one_token(model)
    ids, mask = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(input_ids=ids, attention_mask=mask, labels=ids[:, 0] % 3).loss
    loss.backward()
    assert torch.isfinite(loss)
    other = DistilBertConfig(vocab_size=50, dim=24, n_layers=1, n_heads=4, hidden_dim=40)
    assert not last_layer_of_one_token(AutoModelForSequenceClassification.from_config(other))
