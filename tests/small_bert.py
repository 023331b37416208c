"""A checkpoint small enough to be made anew in each session: a random BERT with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path

LABELS = ["money", "sport", "科技"]
WORDS = {
    "money": ["bank", "market", "shares", "profit", "price", "trade", "oil", "stock", "fund", "growth"],
    "sport": ["match", "goal", "team", "coach", "season", "league", "player", "cup", "score", "win"],
    "科技": ["软件", "芯片", "手机", "网络", "电脑", "数据", "科学", "卫星", "机器", "互联网"],
}


def write(folder: Path) -> Path:
    """Write a checkpoint with random weights as training writes its own."""
    import torch
    from transformers import BertConfig, BertModel

    from pipeline.config import Config
    from pipeline.data import clean
    from pipeline.data.tokenize import pad_id, train_wordpiece
    from pipeline.model import build
    from pipeline.model.source import ModelSource
    from pipeline.train import checkpoint

    texts = [" ".join(words) for words in WORDS.values()]
    size = train_wordpiece(texts * 2, 300, folder / "tokenizer")["vocab_size"]
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, initializer_range=0.5, **sizes)).save_pretrained(
        folder / "pretrained"
    )
    config = Config().updated({"model.max_tokens": 32})
    source = ModelSource("transformer", folder / "pretrained", "x", "x")
    pad = pad_id(folder / "tokenizer")
    network = build.initial(config, source, LABELS, size, pad)
    torch.nn.init.normal_(network.classifier.weight)
    card = {
        "labels": LABELS, "kind": "transformer", "text": ["text"], "max_tokens": 32, "pad_id": pad, "temperature": 1.0,
        "cleaning": {"version": clean.VERSION, "rules": [r.name for r in clean.RULES], "max_chars": 10_000},
        "config": config.model_dump(mode="json"), "metrics": {}, "prepared": str(folder / "prepared"),
    }  # fmt: skip
    checkpoint.save_model(network, folder / "tokenizer", card, folder / "checkpoint")
    return folder / "checkpoint"
