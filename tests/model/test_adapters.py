"""Adapters: nothing changes at first, only they and the head learn, and the merged weights compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import network
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from pipeline import stages
from pipeline.config import load
from pipeline.data.tokenize import train_wordpiece
from pipeline.errors import UserError
from pipeline.evaluate.classifier import Classifier
from pipeline.model import adapters, build
from pipeline.model.first_token import last_layer_of_one_token
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification
from pipeline.model.source import resolve
from pipeline.train import checkpoint, recipe, trainer


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


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    """The model in a checkpoint is merged; what was learned comes back from the state beside it, to the last bit."""
    first, second = decoder(), decoder()
    for model in (first, second):
        adapters.add(model, rank=2, alpha=None, dropout=0.0)
    optimizer, other = (recipe.optimizer_for(model, 1e-2, 0.01) for model in (first, second))
    ids = torch.randint(1, 60, (4, 6))
    first(ids, torch.ones_like(ids), labels=ids[:, 0] % 3).loss.backward()
    optimizer.step()
    snapshot = checkpoint.Snapshot(first, optimizer)
    snapshot.take()
    checkpoint.save_state(snapshot.moments, {"step": 1}, tmp_path)
    assert checkpoint.load_state(second, other, tmp_path) == {"step": 1}
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert len(other.state) == len(optimizer.state) > 0


def test_a_decoder_with_adapters_is_trained_and_served(tmp_path: Path, ray_session: None) -> None:
    words = {"a": "red green blue", "b": "one two three", "c": "north south east"}
    rows = [f"{words[k]} {i % 17},{k}" for i in range(120) for k in "abc"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    folder = tmp_path / "decoder"
    size = train_wordpiece([row.split(",")[0] for row in rows], 300, folder)["vocab_size"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=size, initializer_range=0.3)).save_pretrained(folder)
    sets = [
        f"model.name={folder}", "model.lora_rank=4", "model.max_tokens=16", "train.epochs=8", "train.batch_tokens=256",
        "train.evaluations=2", "train.learning_rate=0.01", "data.near_duplicates=keep", "data.profile_rows=0",
    ]  # fmt: skip
    config = load(None, sets, {"storage": str(tmp_path / "runs"), "data.train": (str(tmp_path / "rows.csv"),)})
    job = stages.begin(config, short=False)
    stages.make_prepared(job, None)
    assert job.prepared is not None
    trained = trainer.train(job.config, job.prepared, job.model, None, job.run)
    assert trained.history[-1]["validation_accuracy"] > 0.9
    names = set(build.load(str(trained.checkpoint)).state_dict())
    assert not any("lora" in name or "base_layer" in name for name in names)
    classifier = Classifier.load(str(trained.checkpoint))
    scores = classifier.probabilities(classifier.all_logits(classifier.encode(["green blue red", "two one"]).ids, 64))
    assert [classifier.labels[i] for i in scores.argmax(1)] == ["a", "b"]


def test_a_network_without_layers_is_refused() -> None:
    model = LstmForSequenceClassification(LstmConfig(vocab_size=20, hidden=(4,)))
    with pytest.raises(UserError, match=r"model\.lora_rank: a broadsheet-lstm has no layer that adapters fit"):
        adapters.add(model, rank=2, alpha=None, dropout=0.0)


def test_frozen_layers_get_none() -> None:
    model = network()
    recipe.freeze(model, embeddings=True, layers=1)
    adapters.add(model, rank=4, alpha=None, dropout=0.0)
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(".layer.1." in n for n in learns)
    assert not any(".layer.0." in n for n in learns)
    nothing_left = network()
    recipe.freeze(nothing_left, embeddings=True, layers=2)
    with pytest.raises(UserError, match=r"no layer that adapters fit and that train\.freeze_layers leaves"):
        adapters.add(nothing_left, rank=4, alpha=None, dropout=0.0)


@pytest.mark.parametrize(("kind", "limit"), [("roberta", 12), ("bert", 14)])
def test_positions_that_begin_behind_the_padding_leave_fewer_tokens(kind: str, limit: int, tmp_path: Path) -> None:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, intermediate_size=24, max_position_embeddings=14, pad_token_id=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    train_wordpiece(["one two three"] * 3, 60, tmp_path)
    source = resolve(str(tmp_path))
    for tokens in (limit, limit + 1):
        asked = load(None, [f"model.name={tmp_path}", f"model.max_tokens={tokens}"])
        if tokens > limit:
            with pytest.raises(UserError, match=f"this model reads at most {limit} tokens"):
                build.initial(asked, source, ["a", "b"], 60, 1)
            continue
        model = build.initial(asked, source, ["a", "b"], 60, 1)
        ids = torch.full((1, tokens), 5)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
