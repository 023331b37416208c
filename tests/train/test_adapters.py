"""Adapters: nothing changes at first, only they and the head learn, and the merged weights compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import network
from transformers import AutoModelForSequenceClassification, LlamaConfig

from pipeline.model import adapters
from pipeline.model.first_token import last_layer_of_one_token


def decoder() -> Any:
    """A small decoder, the same at every call."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=60, num_labels=3, pad_token_id=0, num_key_value_heads=1)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("make", [network, decoder])
def test_adapters_learn_and_merge(make: Any) -> None:
    plain, model = make().eval(), make().eval()
    last_layer_of_one_token(model)
    adapters.add(model, rank=4, alpha=None, dropout=0.0)
    assert adapters.present(model)
    assert not adapters.present(plain)
    ids = torch.randint(1, 60, (5, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    ids[2, 4:] = 0
    torch.testing.assert_close(model(ids, mask).logits, plain(ids, mask).logits)
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or n.startswith(("classifier.", "score.", "bert.pooler.", "model.norm.")) for n in learns)
    assert sum(".lora_A." in n for n in learns) == (12 if make is network else 14)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(4):
        torch.nn.functional.cross_entropy(model(ids, mask).logits, ids[:, 0] % 3).backward()
        optimizer.step()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == learns
    fresh = make().eval()
    assert set(adapters.merged(model)) == set(fresh.state_dict())
    fresh.load_state_dict(adapters.merged(model))
    torch.testing.assert_close(fresh(ids, mask).logits, model(ids, mask).logits, rtol=1e-4, atol=1e-5)


def test_a_base_of_half_precision() -> None:
    model = decoder()
    adapters.add(model, rank=2, alpha=4, dropout=0.0, base=torch.bfloat16)
    ids = torch.randint(1, 60, (3, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, torch.ones_like(ids), labels=ids[:, 0] % 3).loss
    loss.backward()
    kinds = {p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert {v.dtype for v in adapters.merged(model).values()} == {torch.float32}
