"""An exponential moving average of the weights, which is what is evaluated and kept (Polyak and Juditsky, 1992).

With a high rate the weights of one step jump about a good place; their average lies in it. An LSTM from scratch gains a
point of accuracy, and most of it after half of the epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

EVERY = 8  # steps between updates: an update moves all weights, which takes a part of a step's time


class Average:
    """The average of the parameters that are trained.

    In the first ``EVERY`` steps it is the weights. After the k-th update it is ``d * average + (1 - d) * weights`` with
    ``d = min(decay ** EVERY, k / (k + 9))``: it reaches back over a tenth of the steps until then.

    Attributes:
        values: by the parameter's name.

    Args:
        network: unwrapped, on its device.
        decay: per step, 0..1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._decay = decay

    def update(self, step: int, now: bool = False) -> None:
        """Take in the weights after a (1-based) step; most steps are passed over.

        Args:
            step: that was taken.
            now: whether this one is not, because the average is about to be evaluated.
        """
        if step < EVERY:
            for name, parameter in self._parameters.items():
                self.values[name].copy_(parameter.detach())
            return
        if step % EVERY and not now:
            return
        updates = step // EVERY
        decay = min(self._decay**EVERY, updates / (updates + 9))
        get_ema_multi_avg_fn(decay)(list(self.values.values()), [p.detach() for p in self._parameters.values()], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network computes with the average; its own weights come back afterwards, to the bit."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._fill(self.values)
            try:
                yield
            finally:
                self._fill(own)

    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(values[name])
