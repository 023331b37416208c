"""Learn from another classifier's answers as well as from the labels (Hinton, Vinyals and Dean, 2015).

The loss of a row is ``(1 - weight) * labels + weight * temperature^2 * KL(teacher || model)``, where both answers of
the second part are softened: ``softmax(logits / temperature)``. The square keeps the size of its gradients whatever the
temperature (section 2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.train.batches import Rows


@dataclass(frozen=True)
class Teaching:
    """What a teacher says of the training rows.

    Attributes:
        answers: [rows, labels] float32, its log-probabilities (logits would do), in the order of the model's labels.
        weight: of its answers in the loss, 0..1; the labels have the rest.
        temperature: by which both answers are softened.
    """

    answers: Tensor
    weight: float
    temperature: float

    def of(self, rows: Rows, device: torch.device) -> Tensor:
        """The answers to some rows, [rows, labels], on a device."""
        return self.answers[torch.from_numpy(rows)].to(device, non_blocking=True)

    def loss(self, by_labels: Tensor, logits: Tensor, answers: Tensor, counts: Tensor | None) -> Tensor:
        """Both parts together, summed over rows.

        Args:
            by_labels: what the labels make of it, summed over rows.
            logits: the model's, [rows, labels].
            answers: the teacher's to the same rows.
            counts: [rows] what each row counts; None for 1.
        """
        ours, theirs = (nn.functional.log_softmax(x / self.temperature, -1) for x in (logits, answers))
        apart = nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        if counts is not None:
            apart = apart * counts
        return (1 - self.weight) * by_labels + self.weight * self.temperature**2 * apart.sum()
