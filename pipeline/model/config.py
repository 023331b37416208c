"""Which network is trained: the section ``model`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class ModelConfig(Section):
    """Which network is trained."""

    name: str = Field(
        "minilm", description="'minilm' (pretrained), 'lstm' or 'linear' (from scratch), a hub name, or a model folder."
    )
    max_tokens: int = Field(
        128, ge=8, le=8192, description="Longer texts are truncated to this many tokens; a run of linear takes 8,192."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout; null: 0 for pretrained (faster, better), 0.3 for lstm."
    )
    vocab_size: int = Field(
        20_000,
        ge=100,
        description="lstm, linear: size of the vocabulary of the train split; a run of linear takes 200,000.",
    )
    ngrams: int = Field(
        2, ge=1, le=5, description="linear: longest run of words (or Chinese characters) that has a weight."
    )
    lora_rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="Rank of low-rank adapters that are trained instead of the layers; 0: train the layers.",
    )
    lora_alpha: int | None = Field(None, ge=1, description="Adapters: scale over the rank; null: twice the rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Adapters: dropout before them.")
    embedding_dim: int = Field(128, ge=8, description="lstm: width of the token embedding.")
    hidden: tuple[int, ...] = Field((128, 64), min_length=1, description="lstm: units of each LSTM layer.")
    bidirectional: bool = Field(True, description="lstm: read the text in both directions.")
    pooling: Literal["mean", "max", "both", "last"] = Field(
        "max", description="lstm: how the states become one vector ('both': mean and max side by side)."
    )
    token_dropout: float = Field(
        0.1, ge=0, lt=1, description="lstm: share of the tokens of a training row that are not seen."
    )
