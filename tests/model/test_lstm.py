"""The LSTM: padding changes nothing, each way of pooling works, and tokens are left out only in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import load as configured
from pipeline.model import source
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
