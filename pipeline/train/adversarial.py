"""Learn each batch a second time with token vectors changed against the loss (Miyato, Dai and Goodfellow, 2017).

The change of a row is ``size * |x| * g / |g|``: x are the vectors of its tokens, g the gradient of the loss by them;
norms go over the whole row. (The paper takes a constant for ``size * |x|`` and normalises the table, so that vectors do
not grow out of its reach.) A network from scratch, which knows its rows by heart after two epochs, gains most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FLAT = 1e-18  # length of a gradient below which a row has nothing to learn; squares of much less are no floats any more


class Adversary:
    """Sees the token vectors of a pass, and changes those of the next one.

    Args:
        model: unwrapped; its table of token vectors is watched from now on.
        size: of a change, as a share of the vectors' own.
    """

    def __init__(self, model: nn.Module, size: float) -> None:
        self._size = size
        self._seen: Tensor | None = None
        self._change: Tensor | None = None
        model.get_input_embeddings().register_forward_hook(self._watch)  # type: ignore[operator]

    def _watch(self, module: nn.Module, inputs: Any, vectors: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():  # an evaluation
            return None
        if self._change is not None:
            return vectors + self._change
        if not vectors.requires_grad:  # the table is frozen
            vectors = vectors.detach().requires_grad_()
        vectors.retain_grad()
        self._seen = vectors
        return vectors

    @contextmanager
    def at_work(self, mask: Tensor) -> Iterator[None]:
        """Passes within compute with changed vectors; the same rows went forward and backward just before.

        Args:
            mask: [rows, tokens], 0 for padding, which stays as it is.
        """
        assert self._seen is not None
        seen, self._seen = self._seen, None
        assert seen.grad is not None
        within = mask[..., None].to(seen.dtype)
        gradient = seen.grad * within
        length, steep = (
            torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) for x in (seen.detach() * within, gradient)
        )
        self._change = self._size * length * (gradient / steep.clamp(min=FLAT))
        try:
            yield
        finally:
            self._change = None
