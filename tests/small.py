"""Small networks and rows for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from pipeline.data.prepared import Tokens


def network(labels: int = 3, **more: Any) -> Any:
    """A BERT of two layers, the same at every call."""
    torch.manual_seed(5)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, intermediate_size=24, num_labels=labels, **dropout, **more)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def tokens(rows: int = 40, labels: int = 3) -> Tokens:
    """Random rows of 2 to 11 tokens, drawn from half of the vocabulary."""
    generator = np.random.default_rng(2)
    lengths = generator.integers(2, 12, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = generator.integers(1, 30, offsets[-1]).astype(np.int32)
    return Tokens(ids, offsets, generator.integers(0, labels, rows).astype(np.int64))
