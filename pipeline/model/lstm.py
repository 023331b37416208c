"""The article's network, trained from scratch: embedding, stacked LSTMs, dropout, a linear layer.

The article's own setting is ``model.hidden=[128, 64] model.bidirectional=false model.pooling=last``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pipeline.model.scratch import Output, ScratchConfig, ScratchNetwork


class LstmConfig(ScratchConfig):
    """Sizes of the network; see ``pipeline.config.ModelConfig`` for what each means."""

    model_type = "broadsheet-lstm"

    def __init__(
        self,
        vocab_size: int = 20_000,
        embedding_dim: int = 128,
        hidden: tuple[int, ...] = (128, 64),
        bidirectional: bool = True,
        pooling: str = "max",
        dropout: float = 0.3,
        token_dropout: float = 0.0,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= pad_token_id < vocab_size:
            raise ValueError(f"pad_token_id is {pad_token_id}, and there are {vocab_size} tokens")
        self.vocab_size = vocab_size
        self.embedding_dim = embedding_dim
        self.hidden = list(hidden)
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.dropout = dropout
        self.token_dropout = token_dropout
        self.pad_token_id = pad_token_id


class LstmForSequenceClassification(ScratchNetwork):
    """Embedding -> LSTM layers -> pooling -> dropout -> logits."""

    config_class = LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        directions = 2 if config.bidirectional else 1
        widths = [config.embedding_dim, *(h * directions for h in config.hidden)]
        self.layers = nn.ModuleList(
            nn.LSTM(width, hidden, batch_first=True, bidirectional=config.bidirectional)
            for width, hidden in zip(widths, config.hidden, strict=False)
        )
        pooled = widths[-1] * (2 if config.pooling == "both" else 1)
        self.classifier = nn.Linear(pooled, config.num_labels)
        self.apply(self._draw)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token vectors."""
        return self.embedding

    def _draw(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, weight in module.named_parameters():
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(weight)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(weight)
                else:
                    nn.init.zeros_(weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Output:
        """Classify a padded batch.

        Args:
            input_ids: [rows, tokens].
            attention_mask: [rows, tokens], 1 for tokens and 0 for padding on the right.

        Returns:
            Logits [rows, labels]. Padding changes nothing.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        lengths = attention_mask.sum(1).clamp(min=1)
        embedded = self.dropout(self.embedding(input_ids))
        if self.training and self.config.token_dropout:
            kept = torch.rand(input_ids.shape, device=embedded.device) >= self.config.token_dropout
            embedded = embedded * kept[..., None]
        states, last = (_padded if _is_fused(embedded) else _packed)(self.layers, embedded, lengths)
        states = states.float()  # a mean of many is no sum for bf16
        mask = attention_mask[:, : states.shape[1], None].to(states.dtype)
        pooled: list[Tensor] = []
        if self.config.pooling in ("max", "both"):
            pooled.append(states.masked_fill(mask == 0, float("-inf")).amax(1))
        if self.config.pooling in ("mean", "both"):
            pooled.append((states * mask).sum(1) / mask.sum(1).clamp(min=1))
        if self.config.pooling == "last":
            pooled.append(last)
        return Output(logits=self.classifier(self.dropout(torch.cat(pooled, -1))))


def _is_fused(embedded: Tensor) -> bool:
    """Whether oneDNN has a fused LSTM for this: on CPUs, and for bf16 on those with AVX-512."""
    if embedded.device.type != "cpu":
        return False
    return not torch.is_autocast_enabled("cpu") or "AVX512" in torch.backends.cpu.get_cpu_capability()


def _packed(layers: Iterable[nn.Module], embedded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Run the layers over rows packed without their padding, as cuDNN does it natively.

    Args:
        layers: LSTMs.
        embedded: [rows, tokens, width], padded on the right.
        lengths: [rows] tokens of each.

    Returns:
        States of the last layer, [rows, tokens, width], and each row's last state in each direction, [rows, width].
    """
    packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
    state = embedded
    for layer in layers:
        packed, (state, _cell) = layer(packed)
    return pad_packed_sequence(packed, batch_first=True)[0], torch.cat(list(state), dim=-1)


def _padded(layers: Iterable[nn.Module], embedded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What ``_packed`` returns, three times as fast on a CPU: oneDNN's fused LSTM takes no packed rows, and without it
    each token is a dozen small operations.

    Padding on the right comes after all that counts. For the other direction each row is turned around by itself, so
    that its padding comes last again.
    """
    rows, tokens, _ = embedded.shape
    place = torch.arange(tokens).expand(rows, -1)
    turned = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    turned = (turned + tokens * torch.arange(rows)[:, None]).reshape(-1)
    end = torch.arange(rows) * tokens + lengths - 1
    same = bool((lengths == tokens).all())
    states, last = embedded, embedded[:, 0]
    for layer in layers:
        assert isinstance(layer, nn.LSTM)
        if same:
            states, (state, _cell) = layer(states)
            last = torch.cat(list(state), dim=-1)
            continue
        there = _one_way(layer, states, "")
        if not layer.bidirectional:
            states, last = there, _rows(there, end)
            continue
        back = _one_way(layer, _rows(states, turned).view_as(states), "_reverse")
        last = torch.cat([_rows(there, end), _rows(back, end)], -1)
        states = torch.cat([there, _rows(back, turned).view_as(back)], -1)
    return states, last


def _one_way(layer: nn.LSTM, states: Tensor, direction: str) -> Tensor:
    """One direction of a layer over all places, [rows, tokens, hidden]."""
    weights = [getattr(layer, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    zero = states.new_zeros(1, len(states), layer.hidden_size)
    # As ``nn.LSTM`` calls it: parameters, with biases, one layer, no dropout, one way, rows first.
    found: Tensor = torch.lstm(states, (zero, zero), weights, True, 1, 0.0, layer.training, False, True)[0]
    return found


def _rows(states: Tensor, places: Tensor) -> Tensor:
    """Those of [rows * tokens] states, [places, width]."""
    return states.reshape(-1, states.shape[-1]).index_select(0, places)
