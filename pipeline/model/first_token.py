"""Compute of the last layer only what the classifier reads: its first token.

BERT and its kin classify by the last layer's first token; the other tokens' last outputs are thrown away. With one
query a row, keys and values need no projection of their own either: ``q_i · (W_k x_j) = (W_k' q_i) · x_j`` moves the
key's matrix to the query, and ``sum_j a_j (W_v x_j) = W_v sum_j a_j x_j`` the value's behind the sum (the key's bias
adds the same to every score and drops out of the softmax). The sums are those of the whole layer in another order, so
logits and gradients agree to rounding, and one layer's work is all but saved: a sixth of MiniLM's.

The same identity is known from multi-head latent attention (DeepSeek-V2, 2024, section 2.1.2, "absorbed" matrices).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# model_type -> attribute that holds the encoder. All of these read ``sequence[:, 0]`` and share BERT's layer.
ENCODERS = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "electra": "electra",
}


def last_layer_of_one_token(model: Any) -> bool:
    """Let a sequence classifier's last layer compute its first token alone.

    Args:
        model: a transformers model; changed in place. Names of parameters and what is saved stay as they are.
            ``last_hidden_state`` has one token afterwards.

    Returns:
        Whether it is one of the networks of ``ENCODERS``; others are left alone.
    """
    config = model.config
    name = ENCODERS.get(config.model_type)
    if name is None or not type(model).__name__.endswith("ForSequenceClassification") or config.is_decoder:
        return False
    layer = getattr(model, name).encoder.layer[-1]
    kind = type(layer)
    if not issubclass(kind, OneToken):
        layer.__class__ = type(f"OneToken{kind.__name__}", (OneToken, kind), {})
        layer.attention.self.key.bias.requires_grad_(False)  # no score depends on it, and DDP waits for every gradient
    return True


def whole_last_layer(model: Any) -> None:
    """Undo ``last_layer_of_one_token``, in place: the layer is about to be more than its matrices."""
    for layer in model.modules():
        if isinstance(layer, OneToken):
            layer.__class__ = type(layer).__bases__[1]
            layer.attention.self.key.bias.requires_grad_(True)  # type: ignore[union-attr]


class OneToken(nn.Module):
    """Mixed into a layer of ``transformers``, whose parts it uses."""

    def weights_only(self) -> tuple[Any, Any]:
        """The linear layers whose weights are used here, and which are never called."""
        inner: Any = self.attention
        return inner.self.key, inner.self.value

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """The layer's output for the first token, [rows, 1, width].

        Args:
            hidden_states: [rows, tokens, width].
            attention_mask: what the attention of ``transformers`` gets: [rows, 1, tokens, tokens], added or boolean,
                or [rows, tokens] with 0 for padding.
        """
        attention: Any = self.attention
        inner = attention.self
        rows, _tokens, width = hidden_states.shape
        heads, size = inner.num_attention_heads, inner.attention_head_size
        first = hidden_states[:, :1]
        query = inner.query(first[:, 0]).view(rows, heads, size)
        query = torch.einsum("rhs,hsw->rhw", query, inner.key.weight.view(heads, size, width)) * inner.scaling
        scores = _masked(torch.matmul(query, hidden_states.transpose(1, 2)).float(), attention_mask)
        weights = inner.dropout(torch.softmax(scores, -1)).to(query.dtype)
        mixed = torch.matmul(weights, hidden_states.to(weights.dtype))
        value = torch.einsum("rhw,hsw->rhs", mixed, inner.value.weight.view(heads, size, width))
        value = value + weights.sum(-1, keepdim=True) * inner.value.bias.view(heads, size)
        output: Tensor = self.feed_forward_chunk(attention.output(value.reshape(rows, 1, heads * size), first))  # type: ignore[operator]
        return output


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores [rows, heads, tokens] with padding out of the way."""
    if mask is None:
        return scores
    mask = mask[:, None, :] if mask.ndim == 2 else mask[:, :, 0, :]
    if mask.is_floating_point():
        return scores + mask
    return scores.masked_fill(~mask.bool(), torch.finfo(scores.dtype).min)
