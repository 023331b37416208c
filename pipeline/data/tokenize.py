"""Text to token ids: with a pretrained tokenizer, or with one trained on the train split."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data import wordcache
from pipeline.errors import UserError

BLOCK_TEXTS = 2_048  # of up to data.max_chars each
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class TextTokenizer:
    """A Hugging Face fast tokenizer that truncates and returns int32 ids.

    ``encode`` may be shared by several threads, ``encode_arrow`` may not.

    Args:
        folder: a folder with ``tokenizer.json``.
        max_tokens: longest sequence, special tokens included.

    Attributes:
        max_tokens: as given.
        unknown_id: what stands for words or characters that the vocabulary does not have; None if it has all.

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
        self._cache = self._word_cache(file)
        self.unknown_id = unknown_id(self._tokenizer)

    def unknown(self, ids: pa.ListArray) -> int:
        """How many of the ids stand for words or characters that the vocabulary does not have."""
        if self.unknown_id is None or not len(ids):
            return 0
        return int((ids.flatten().to_numpy() == self.unknown_id).sum())

    def _word_cache(self, file: Path) -> _Framed | None:
        from tokenizers import Tokenizer

        whole = Tokenizer.from_file(str(file))
        whole.no_padding()
        whole.no_truncation()
        how = wordcache.cutting(whole)
        frame = special_tokens(whole)
        return None if how is None or frame is None else _Framed(wordcache.WordCache(whole, how), *frame)

    def encode(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], list[bool]]:
        """Token ids of each text, and whether it was truncated."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = [np.asarray(e.ids, dtype=np.int32) for e in encodings]
        # A text of exactly max_tokens has no overflow; the fast path keeps overflowing pieces.
        return ids, [bool(e.overflowing) for e in encodings]

    def length(self, text: str) -> int:
        """Tokens of a text if nothing were cut off, special tokens included."""
        encoding = self._tokenizer.encode(text)
        # What overflows comes in pieces with special tokens of their own.
        return len(encoding.ids) + sum(e.special_tokens_mask.count(0) for e in encoding.overflowing)

    def words(self, text: str) -> list[tuple[int, int]]:
        """Where the words of a text begin and end, as the tokenizer sees them; those behind the cut are left out."""
        encoding = self._tokenizer.encode(text)
        spans: dict[int, tuple[int, int]] = {}
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word is not None:
                first, last = spans.get(word, (start, end))
                spans[word] = (min(first, start), max(last, end))
        found = []
        for start, end in spans.values():  # byte-level tokenizers count the space before a word as part of it
            inside = text[start:end]
            if inside.strip():
                found.append((start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())))
        return sorted(found)

    def encode_arrow(self, texts: pa.Array) -> tuple[pa.ListArray, npt.NDArray[np.bool_]]:
        """What ``encode`` returns, for many texts: by the distinct word where the tokenizer allows it.

        Args:
            texts: strings without nulls.

        Returns:
            ``list<int32>`` ids, and which texts were truncated [texts].
        """
        if self._cache is None:
            ids, truncated = self.encode(texts.to_pylist())
            offsets = np.zeros(len(ids) + 1, np.int64)
            np.cumsum([len(i) for i in ids], out=offsets[1:])
            values: npt.NDArray[np.int32] = np.concatenate(ids) if ids else np.empty(0, np.int32)
            flags = np.array(truncated, dtype=np.bool_)
        else:
            values, offsets, flags = self._cache.encode(texts, self.max_tokens)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32())), flags


@dataclass(frozen=True)
class _Framed:
    """A word cache whose ids are truncated and put between the special tokens, as the tokenizer does.

    Attributes:
        cache: encodes without special tokens.
        before, after: ids of the special tokens, ``[CLS]`` and ``[SEP]`` for BERT.
    """

    cache: wordcache.WordCache
    before: list[int]
    after: list[int]

    def encode(
        self, texts: pa.Array, max_tokens: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        ids, ends = self.cache.encode(texts)
        room = max_tokens - len(self.before) - len(self.after)
        lengths = np.diff(ends)
        body = np.minimum(lengths, room)
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(body + len(self.before) + len(self.after), out=offsets[1:])
        body_ends = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(body, out=body_ends[1:])
        running = np.arange(body_ends[-1])
        out = np.empty(int(offsets[-1]), np.int32)
        kept = ids if len(ids) == len(running) else ids[running + np.repeat(ends[:-1] - body_ends[:-1], body)]
        out[running + np.repeat(offsets[:-1] + len(self.before) - body_ends[:-1], body)] = kept
        for i, token in enumerate(self.before):
            out[offsets[:-1] + i] = token
        for i, token in enumerate(self.after):
            out[offsets[1:] - len(self.after) + i] = token
        return out, offsets, lengths > room


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """The ids a tokenizer puts before and after one text, or None where it does something else."""
    bare = tokenizer.encode("a b", add_special_tokens=False).ids
    framed = tokenizer.encode("a b", add_special_tokens=True).ids
    extra = len(framed) - len(bare)
    for start in range(extra + 1):
        if bare and framed[start : start + len(bare)] == bare:
            before, after = framed[:start], framed[start + len(bare) :]
            return (before, after) if tokenizer.encode("").ids == before + after else None
    return None


def train_wordpiece(texts: Iterable[str], vocab_size: int, folder: Path, whole_words: bool = False) -> dict[str, Any]:
    """Build a WordPiece tokenizer (lower case, Chinese characters apart) and save it as a Hugging Face folder.

    The vocabulary is every character worth having, alone and as a continuation, then the most frequent whole
    words: a rare word falls apart into pieces, a common one is one token. The library's own trainer breaks ties
    by the order of a randomly seeded hash map, and gave another vocabulary at each call (tokenizers 0.23).

    Args:
        texts: cleaned texts of the train split only.
        vocab_size: upper bound of the vocabulary.
        folder: where ``tokenizer.json`` and its companions go.
        whole_words: no pieces: a word (or Chinese character) is one token or unknown.

    Returns:
        ``{"vocab_size": ...}``, the size reached.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for piece, count in _pieces(texts).items():
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(piece)):
            words[word] += count
    vocabulary = wordpiece_vocabulary(words, vocab_size, whole_words)
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


def _pieces(texts: Iterable[str]) -> Counter[str]:
    """How often each piece occurs: words mostly, cut where the tokenizer of ``train_wordpiece`` cuts in any case."""
    how = wordcache.Cutting("", marks=True, lower=True, ideographs=True)
    counts: Counter[str] = Counter()
    rest = iter(texts)
    while block := list(itertools.islice(rest, BLOCK_TEXTS)):
        found = wordcache.cut(pa.array(block, pa.string()), how)[0].value_counts()
        for piece, count in zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True):
            counts[piece] += count
    return counts


def wordpiece_vocabulary(words: Mapping[str, int], size: int, whole_words: bool = False) -> dict[str, int]:
    """Special tokens, characters (alone and as ``##`` continuation), then whole words, by falling frequency.

    Args:
        words: how often each word occurs.
        size: upper bound; characters take at most half of it.
        whole_words: no characters, unless they stand alone as words.
    """
    pieces: Counter[str] = Counter()
    for word, count in () if whole_words else words.items():
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


def unknown_id(tokenizer: Any) -> int | None:
    """The id that a tokenizer (``tokenizers.Tokenizer``) gives to what its vocabulary does not have.

    None for those that know every byte, and so never give it, whether they name one or not.
    """
    model = tokenizer.model
    kind = type(model).__name__
    if getattr(model, "byte_fallback", False) or (kind != "Unigram" and not getattr(model, "unk_token", None)):
        return None
    if kind in ("WordPiece", "WordLevel"):
        return tokenizer.token_to_id(model.unk_token)
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("byte_fallback") or '"ByteLevel"' in json.dumps(spec.get("pre_tokenizer")):
        return None
    return spec["model"]["unk_id"] if kind == "Unigram" else tokenizer.token_to_id(model.unk_token)


def special_ids(folder: str | Path) -> list[int]:
    """The ids of a tokenizer's special tokens: padding, unknown, and what frames a text."""
    content = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    return sorted(int(t["id"]) for t in content.get("added_tokens", []) if t.get("special"))


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
