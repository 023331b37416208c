"""The linear model: TF-IDF of hashed token n-grams, and one weight per n-gram and label.

It has the shape of any other model, so that whatever evaluates, predicts and serves needs no special case: n-grams are
read off ``input_ids``. Training (``pipeline.train.linear``) and ``forward`` share ``ngrams``, ``weighed``.

A row is the vector ``(1 + ln count) * idf`` over its known n-grams, scaled to length 1, with
``idf = ln((1 + rows) / (1 + rows with it)) + 1`` (scikit-learn's ``TfidfTransformer(sublinear_tf=True)``). An n-gram is
known by a hash of 64 bits and looked up among the sorted hashes of the n-grams that training kept: with a million
of them, two share a hash with probability 3e-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.scratch import Output, ScratchConfig, ScratchNetwork

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); torch has signed 64-bit integers, whose products wrap around.
_GAMMA, _M1, _M2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class LinearConfig(ScratchConfig):
    """Sizes of the model.

    Args:
        ngrams: longest n-gram, in tokens.
        features: n-grams that have weights.
        excluded: token ids that are no words: padding, unknown, and what frames a text.
    """

    model_type = "broadsheet-linear"

    def __init__(self, ngrams: int = 2, features: int = 1, excluded: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ngrams = ngrams
        self.features = features
        self.excluded = list(excluded)


class LinearForSequenceClassification(ScratchNetwork):
    """Token n-grams -> TF-IDF -> logits."""

    config_class = LinearConfig
    hashes: Tensor
    idf: Tensor

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        labels = config.num_labels
        self.register_buffer("hashes", torch.zeros(config.features, dtype=torch.int64))  # sorted
        self.register_buffer("idf", torch.ones(config.features))
        self.weight = nn.Parameter(torch.zeros(config.features, labels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(labels), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Output:
        """Classify a padded batch.

        Args:
            input_ids: [rows, tokens].
            attention_mask: [rows, tokens], 1 for tokens and 0 for padding.

        Returns:
            Logits [rows, labels]; a text without a known n-gram gets the bias. Padding changes nothing.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, columns = mask.nonzero(as_tuple=True)
        row, hashed = ngrams(input_ids[rows, columns], rows, self.config.ngrams, self.config.excluded)
        at, known = lookup(self.hashes, hashed)
        pairs, counts = torch.unique(row[known] * len(self.hashes) + at[known], return_counts=True)
        row, at = pairs // len(self.hashes), pairs % len(self.hashes)
        value = weighed(row, counts, self.idf[at], len(input_ids))
        starts = torch.searchsorted(row, torch.arange(len(input_ids), device=row.device))
        logits = nn.functional.embedding_bag(at, self.weight, starts, mode="sum", per_sample_weights=value)
        return Output(logits=logits + self.bias)


def ngrams(ids: Tensor, rows: Tensor, longest: int, excluded: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All n-grams of 1 to ``longest`` tokens.

    Args:
        ids: tokens of all rows end to end, [tokens].
        rows: the row of each token, rising, [tokens].
        longest: n.
        excluded: ids that are left out first; their neighbours become neighbours.

    Returns:
        The row and the 64-bit hash of each n-gram, [n-grams], an n-gram as often as it occurs.
    """
    kept = ~torch.isin(ids, torch.tensor(list(excluded), dtype=ids.dtype, device=ids.device))
    token, row = (ids[kept].long() + 1) * _GAMMA, rows[kept]
    hashed = _mixed(token)
    all_rows, all_hashes = [row], [hashed]
    for n in range(1, longest):
        hashed = _mixed(hashed[:-1] + token[n:])  # hashed[i] is now that of tokens i to i + n
        whole = row[: len(hashed)] == row[n:]
        all_rows.append(row[: len(hashed)][whole])
        all_hashes.append(hashed[whole])
    return torch.cat(all_rows), torch.cat(all_hashes)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _M1
    z = (z ^ _shifted(z, 27)) * _M2
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros, as for unsigned numbers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def lookup(known: Tensor, hashed: Tensor) -> tuple[Tensor, Tensor]:
    """Where each hash stands among the sorted known ones, and whether it is one of them."""
    at = torch.searchsorted(known, hashed).clamp_(max=len(known) - 1)
    return at, known[at] == hashed


def weighed(row: Tensor, counts: Tensor, idf: Tensor, rows: int) -> Tensor:
    """TF-IDF of (row, n-gram) pairs, each row scaled to length 1.

    Args:
        row: of each pair.
        counts: how often the n-gram occurs in the row.
        idf: of the n-gram.
        rows: in all.
    """
    value = (1 + counts.to(idf.dtype).log()) * idf
    squares = torch.zeros(rows, dtype=idf.dtype, device=idf.device).index_add_(0, row, value * value)
    return value / squares.sqrt()[row]
