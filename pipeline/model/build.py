"""Make the initial model of a run, and load any checkpoint: the one interface that all models meet.

A model has the shape of a ``transformers`` sequence classifier: ``model(input_ids, attention_mask).logits``. Only
safetensors are read, and no code that lies beside the weights is run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.config import Config
from pipeline.errors import UserError, first_line
from pipeline.model.first_token import last_layer_of_one_token
from pipeline.model.linear import LinearForSequenceClassification
from pipeline.model.lstm import LstmConfig, LstmForSequenceClassification
from pipeline.model.scratch import CONFIG, ScratchNetwork
from pipeline.model.source import ModelSource

LSTM_DROPOUT = 0.3
# Their positions are counted from the padding id on, so that as many fewer tokens fit.
FROM_PAD = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
SCRATCH: dict[str, type[ScratchNetwork]] = {
    network.config_class.model_type: network
    for network in (LinearForSequenceClassification, LstmForSequenceClassification)
}


def quiet() -> None:
    """No log lines and progress bars of ``transformers``."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def attention() -> str:
    """On CPU, at the lengths of news, plain matrix products beat the fused kernel; on a GPU it is the reverse."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def initial(
    config: Config, source: ModelSource, labels: Sequence[str], vocab_size: int, pad_id: int
) -> torch.nn.Module:
    """The model before the first step: pretrained weights with a fresh head, or an LSTM.

    Args:
        config: the run's configuration (``model``, ``seed``).
        source: from ``source.resolve``.
        labels: label names; the id is the index.
        vocab_size: entries of the tokenizer.
        pad_id: the token that pads.

    Raises:
        UserError: the folder's model cannot classify sequences.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # LAPACK's orthogonal matrices differ with the number of threads, and so would weights
    try:
        torch.manual_seed(config.seed)
        return _initial(config, source, labels, vocab_size, pad_id)
    finally:
        torch.set_num_threads(threads)


def _initial(
    config: Config, source: ModelSource, labels: Sequence[str], vocab_size: int, pad_id: int
) -> torch.nn.Module:
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    model = config.model
    dropout = LSTM_DROPOUT if model.dropout is None else model.dropout
    lstm = {"dropout": dropout, "token_dropout": model.token_dropout, **names}
    if source.folder is None:
        return LstmForSequenceClassification(
            LstmConfig(
                vocab_size=vocab_size, embedding_dim=model.embedding_dim, hidden=model.hidden,
                bidirectional=model.bidirectional, pooling=model.pooling, pad_token_id=pad_id, **lstm,
            )
        )  # fmt: skip
    try:
        own = _scratch(source.folder)
        if own is LinearForSequenceClassification:
            raise UserError(f"model '{model.name}' is a linear model, which is fitted anew: use --model linear")
        if own is not None:
            return own.from_pretrained(source.folder, **lstm).train()
        names["problem_type"] = "single_label_classification"
        quiet()
        from transformers import AutoConfig

        network_config = AutoConfig.from_pretrained(source.folder, **names)
        dropout = 0.0 if model.dropout is None else model.dropout
        for key in vars(network_config):
            if key.endswith(("dropout", "dropout_prob", "_pdrop")) and isinstance(getattr(network_config, key), float):
                setattr(network_config, key, dropout)
        if getattr(network_config, "pad_token_id", None) is None:
            network_config.pad_token_id = pad_id
        limit = getattr(network_config, "max_position_embeddings", None)
        if limit and network_config.model_type in FROM_PAD:
            limit -= network_config.pad_token_id + 1
        if limit and config.model.max_tokens > limit:
            raise UserError(
                f"model.max_tokens is {config.model.max_tokens}, but this model reads at most {limit} tokens"
            )
        return _load(source.folder, network_config)
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, SafetensorError) as e:
        first = first_line(e)
        raise UserError(f"model '{config.model.name}': cannot be loaded as a sequence classifier: {first}") from e


def load(folder: str | Path) -> Any:
    """Load a checkpoint's network, in float32 and evaluation mode.

    Raises:
        UserError: the weights cannot be read.
    """
    folder = Path(folder)
    try:
        # ``transformers`` takes longer to import than such a network to load: a replica of one does without.
        if own := _scratch(folder):
            return own.from_pretrained(folder)
        quiet()
        from transformers import AutoConfig

        return _load(folder, AutoConfig.from_pretrained(folder)).eval()
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, SafetensorError) as e:
        first = first_line(e)
        raise UserError(f"{folder}: the checkpoint's network cannot be loaded: {first}") from e


def _scratch(folder: Path) -> type[ScratchNetwork] | None:
    """Which of our own networks a folder holds, if it is one."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "model_type" not in content:
        raise ValueError(f"{CONFIG} names no model_type")
    return SCRATCH.get(content["model_type"])


def _load(folder: Path, network_config: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=network_config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, attn_implementation=attention(),
        )  # fmt: skip
    last_layer_of_one_token(model)
    return model
