"""What a teacher's answers do to the loss: by the formula, and to a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import network, tokens

from pipeline.train import recipe
from pipeline.train.distill import Teaching
from pipeline.train.loop import Loop

CPU = torch.device("cpu")
ROWS = np.arange(12)


def answers(rows: int = 40, labels: int = 3) -> torch.Tensor:
    return torch.randn(rows, labels, generator=torch.Generator().manual_seed(3)).mul(2).log_softmax(-1)


def loop(model: torch.nn.Module, teaching: Teaching | None, **more: Any) -> Loop:
    return Loop(
        model, recipe.optimizer_for(model, 1e-2, 0.0), tokens(), 0, CPU, "fp32", 1.0, 1, teaching=teaching, **more
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_hintons(balanced: bool) -> None:
    model, told = network(), answers()
    weights = recipe.class_weights("balanced", "abc", tokens().labels) if balanced else None
    one = loop(model, Teaching(told, 0.3, 4.0), class_weights=weights)
    inputs, mask, labels = one._batch(tokens(), ROWS)
    logits = model(input_ids=inputs, attention_mask=mask).logits.detach()
    counts = torch.ones(3) if weights is None else weights
    expected = 0.0
    for row, label, told_row in zip(logits, labels, told[:12], strict=True):
        hard = -row.log_softmax(-1)[label]
        theirs, ours = (told_row / 4).softmax(-1), (row / 4).softmax(-1)
        soft = (theirs * (theirs / ours).log()).sum()
        expected += float(counts[label] * (0.7 * hard + 0.3 * 16 * soft)) / 12
    assert float(one.step(0, ROWS, 1e-9)) == pytest.approx(expected, rel=1e-4)


def test_pieces_and_answers_stay_together() -> None:
    told = answers()
    whole, pieces = (loop(network(), Teaching(told, 0.8, 2.0), micro_tokens=micro) for micro in (None, 24))
    lengths = tokens().lengths
    falling = ROWS[np.argsort(-lengths[ROWS], kind="stable")]
    assert float(whole.step(0, falling, 1e-2)) == pytest.approx(float(pieces.step(0, falling, 1e-2)), rel=1e-5)


def test_at_weight_zero_the_teacher_says_nothing() -> None:
    said, alone = (loop(network(), teaching) for teaching in (Teaching(answers(), 0.0, 2.0), None))
    assert float(said.step(0, ROWS, 1e-2)) == pytest.approx(float(alone.step(0, ROWS, 1e-2)))


def test_a_model_comes_to_answer_as_its_teacher_does() -> None:
    model = network()
    # An answer for each first token: something that can be learnt, and that the labels do not say.
    first = torch.from_numpy(tokens().ids[tokens().offsets[:-1]].astype(np.int64)) % 3
    told = torch.nn.functional.one_hot(first, 3).float().mul(4).log_softmax(-1)
    one = loop(model, Teaching(told, 1.0, 1.0))
    losses = [float(one.step(i, np.arange(40), 2e-2)) for i in range(40)]
    assert losses[-1] < 0.2 * losses[0]
