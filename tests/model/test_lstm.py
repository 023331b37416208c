"""The LSTM: padding changes nothing, each way of pooling works, and tokens are left out only in training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import load as configured
from pipeline.errors import UserError
from pipeline.model import lstm, source
from pipeline.model.build import initial, load
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification

IDS = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0], [1, 0, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.mark.parametrize("pooling", ["max", "mean", "both", "last"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_changes_nothing(pooling: str, bidirectional: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LstmConfig(
        vocab_size=10, embedding_dim=6, hidden=(5, 4), bidirectional=bidirectional, pooling=pooling, num_labels=3
    )
    model = LstmForSequenceClassification(config).eval()
    together = model(IDS, MASK).logits
    assert together.shape == (3, 3)
    for i, length in enumerate(MASK.sum(1).tolist()):
        torch.testing.assert_close(model(IDS[i : i + 1, :length]).logits[0], together[i])
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(IDS, MASK).logits, together)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_way_of_the_cpu_is_that_of_the_gpu(bidirectional: bool) -> None:
    torch.manual_seed(1)
    layers = LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(5, 4), bidirectional=bidirectional)).layers
    for lengths in (torch.tensor([5, 2, 1]), torch.tensor([5, 5, 5])):
        found = []
        for way in (lstm._padded, lstm._packed):
            embedded = torch.linspace(-1, 1, 3 * 5 * 128).view(3, 5, 128).requires_grad_()
            states, last = way(layers, embedded, lengths)
            inside = torch.arange(5) < lengths[:, None]
            layers.zero_grad()
            (states[inside].sum() + last.pow(2).sum()).backward()
            found.append([states[inside], last, embedded.grad, *(p.grad.clone() for p in layers.parameters())])
        for padded, packed in zip(*found, strict=True):
            torch.testing.assert_close(padded, packed)


def test_tokens_are_left_out_only_in_training() -> None:
    torch.manual_seed(1)
    model = LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(4,), dropout=0.0, token_dropout=0.5))
    sure = model.eval()(IDS, MASK).logits
    assert torch.equal(model(IDS, MASK).logits, sure)
    assert not torch.equal(model.train()(IDS, MASK).logits, model(IDS, MASK).logits)


def test_initial_weights_do_not_depend_on_the_number_of_threads() -> None:
    config = configured(sets=["model.name=lstm", "model.hidden=[64]", "model.embedding_dim=16"])
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(initial(config, source.resolve("lstm"), ["a", "b"], 300, 0).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_training_goes_on_from_a_checkpoint_with_other_labels(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(4,), num_labels=2))
    first.save_pretrained(tmp_path)
    # What transformers once wrote of such a network has more keys.
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformers_version": "5.0", "dtype": "float32"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    config = configured(sets=[f"model.name={tmp_path}", "model.dropout=0.5"])
    same: Any = initial(config, source.resolve(str(tmp_path)), ["a", "b"], 10, 0)
    assert same.training
    assert same.dropout.p == 0.5
    weights = first.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in same.state_dict().items())
    more: Any = initial(config, source.resolve(str(tmp_path)), ["a", "b", "c"], 10, 0)
    assert more.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert more.classifier.weight.shape == (3, 8)
    assert torch.equal(more.embedding.weight, first.embedding.weight)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"config.json": b"[]"}, "config.json names no model_type"),
        ({"config.json": b'{"model_type": "broadsheet-lstm", "id2label": ["a"]}'}, "id2label is no mapping"),
        ({"config.json": b'{"model_type": "broadsheet-lstm", "pad_token_id": 99999}'}, "pad_token_id is 99999"),
        ({"config.json": b'{"model_type": "broadsheet-lstm", "vocab_size": 11, "hidden": [4]}'},
         r"embedding.weight should be \(11, 128\) by config.json and is \(10, 128\)"),
        ({"config.json": b'{"model_type": "broadsheet-lstm", "vocab_size": 10, "hidden": [4, 4]}'}, "is missing in"),
        ({"model.safetensors": b"nothing"}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named(damage: dict[str, bytes], said: str, tmp_path: Path) -> None:
    LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(4,))).save_pretrained(tmp_path)
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"network cannot be loaded: .*{said}" if "loaded" not in said else said):
        load(tmp_path)


def test_half_precision_works_where_nothing_is_fused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(1)
    model = LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(4,), dropout=0.0))
    exact = model(IDS, MASK).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not lstm._is_fused(IDS)
        torch.testing.assert_close(model(IDS, MASK).logits.float(), exact, atol=0.05, rtol=0.05)


def test_serving_it_imports_no_transformers(tmp_path: Path) -> None:
    LstmForSequenceClassification(LstmConfig(vocab_size=10, hidden=(4,))).save_pretrained(tmp_path)
    code = (
        "import sys, serve.app; from pipeline.evaluate import classifier; from pipeline.model import build; "
        f"build.load({str(tmp_path)!r}); print([m for m in ('transformers', 'ray.train', 'scipy.optimize', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
