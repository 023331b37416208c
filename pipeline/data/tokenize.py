"""Text to token ids: with a pretrained tokenizer, or with one trained on the train split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class TextTokenizer:
    """A Hugging Face fast tokenizer that truncates and returns int32 ids; several threads may share it.

    Args:
        folder: a folder with ``tokenizer.json``.
        max_tokens: longest sequence, special tokens included.

    Raises:
        UserError: the folder holds no fast tokenizer.
    """

    def __init__(self, folder: str | Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{folder} has no tokenizer.json: only fast tokenizers are supported")
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], list[bool]]:
        """Token ids of each text, and whether it was truncated."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = [np.asarray(e.ids, dtype=np.int32) for e in encodings]
        # A text of exactly max_tokens has no overflow; the fast path keeps overflowing pieces.
        return ids, [bool(e.overflowing) for e in encodings]

    def encode_arrow(self, texts: Sequence[str]) -> tuple[pa.Array, int]:
        """``list<int32>`` ids of each text, and how many texts were truncated."""
        ids, truncated = self.encode(texts)
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(i) for i in ids], out=offsets[1:])
        values = np.concatenate(ids) if ids else np.empty(0, np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32())), sum(truncated)


def train_wordpiece(texts: Iterable[str], vocab_size: int, folder: Path) -> dict[str, Any]:
    """Build a WordPiece tokenizer (lower case, Chinese characters apart) and save it as a Hugging Face folder.

    The vocabulary is every character worth having, alone and as a continuation, then the most frequent whole
    words: a rare word falls apart into pieces, a common one is one token. The library's own trainer breaks ties
    by the order of a randomly seeded hash map, and gave another vocabulary at each call (tokenizers 0.23).

    Args:
        texts: cleaned texts of the train split only.
        vocab_size: upper bound of the vocabulary.
        folder: where ``tokenizer.json`` and its companions go.

    Returns:
        ``{"vocab_size": ...}``, the size reached.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    vocabulary = wordpiece_vocabulary(words, vocab_size)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    # With [CLS] and [SEP] no text is ever an empty sequence.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)
    fast.save_pretrained(folder)
    return {"vocab_size": len(vocabulary)}


def wordpiece_vocabulary(words: Mapping[str, int], size: int) -> dict[str, int]:
    """Special tokens, characters (alone and as ``##`` continuation), then whole words, by falling frequency.

    Args:
        words: how often each word occurs.
        size: upper bound; characters take at most half of it.
    """
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for i, character in enumerate(word):
            pieces[character if i == 0 else f"##{character}"] += count

    def ranked(counts: Mapping[str, int]) -> list[str]:
        return [t for t, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    entries = dict.fromkeys([*SPECIAL, *ranked(pieces)[: size // 2]])
    for word in ranked({w: c for w, c in words.items() if c > 1}):
        if len(entries) >= size:
            break
        entries.setdefault(word)
    return {entry: i for i, entry in enumerate(entries)}


def pad_id(folder: str | Path) -> int:
    """The id that pads a batch: the tokenizer's own, else 0."""
    folder = Path(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = folder / "tokenizer_config.json"
    name = json.loads(config.read_text(encoding="utf-8")).get("pad_token") if config.is_file() else None
    if isinstance(name, dict):
        name = name.get("content")
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, dict) and name in vocabulary:
        return int(vocabulary[name])
    added = {t["content"]: t["id"] for t in content.get("added_tokens", [])}
    return int(added.get(name, 0))
