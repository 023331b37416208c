"""Token ids by the word: each distinct word goes through the tokenizer once, and texts are gathered from the results.

News and tickets repeat themselves: a thousand texts of fifty words hold some six thousand distinct ones. So the
texts are cut into pieces, Arrow finds the distinct pieces of a block, the Hugging Face tokenizer encodes those it
has not seen yet, and NumPy gathers the ids of every text. The result equals the tokenizer's own for two families,
for which cutting is provably harmless (``cutting`` says when):

* **BERT** (``BertNormalizer`` + ``BertPreTokenizer`` + WordPiece). The normalizer works character by character
  (case and accents: U+0020 is a starter, so no combining mark is reordered across it), the pre-tokenizer drops
  U+0020 and breaks there, and WordPiece sees one pre-token at a time. So ids(text) is the concatenation of
  ids(piece) over the pieces between spaces. With ``handle_chinese_chars`` the normalizer itself puts a space
  around each ideograph, so the texts may be cut around ideographs as well.
* **Byte-level BPE** (``ByteLevel`` pre-tokenizer with its regular expression, GPT-2 and RoBERTa). In a text whose only
  white space is single U+0020 between words, each space starts a new pre-token (`` ?\\p{L}+`` and its siblings; the
  two rules for trailing white space need two in a row or the end). So the pieces are the first word, and each
  later one with its space. Other texts of that family go through the tokenizer whole.

In both, added tokens such as ``[SEP]`` are found in the raw text first; one that holds a space or an ideograph,
or swallows white space to its right, could straddle a cut: then nothing is cut.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Pieces and characters remembered; then the memory is emptied, so that it does not grow with the rows.
MAX_PIECES = 200_000
MAX_CHARS = 8_000_000
BLOCK_TEXTS = 8_192

# What BertNormalizer takes for a Chinese character (tokenizers, normalizers/bert.rs).
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_IDEOGRAPH_CLASS = "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in _IDEOGRAPHS)
_IDEOGRAPH = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _IDEOGRAPHS) + "]")
# A text of the byte-level family that may be cut: words with single spaces between them, no other white space.
# Everything Unicode calls white space is listed, with the separators that Rust's regex and RE2 might disagree on.
_ODD_SPACE = (
    r"^ | $|  |[\t-\r\x{1C}-\x{1F}\x{85}\x{A0}\x{1680}\x{180E}\x{2000}-\x{200B}\x{2028}\x{2029}\x{202F}\x{205F}"
    r"\x{3000}\x{FEFF}]"
)


@dataclass(frozen=True)
class Cutting:
    """Where texts may be cut without changing their ids.

    Attributes:
        ideographs: cut around each ideograph, as the normalizer does.
        keep_space: a piece that is not the first carries the space before it (byte-level BPE).
    """

    ideographs: bool
    keep_space: bool


def cutting(tokenizer: Any) -> Cutting | None:
    """How texts may be cut for this tokenizer (``tokenizers.Tokenizer``), or None where that is not proven."""
    spec = json.loads(tokenizer.to_str())
    normalizer = spec.get("normalizer") or {}
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    model = (spec.get("model") or {}).get("type")
    added = spec.get("added_tokens") or []
    if any(re.search(r"\s", t["content"]) or t.get("rstrip") for t in added):
        return None
    if normalizer.get("type") == "BertNormalizer" and pre_tokenizer.get("type") == "BertPreTokenizer":
        if model != "WordPiece":
            return None
        plain = not any(_IDEOGRAPH.search(t["content"]) for t in added)
        return Cutting(bool(normalizer.get("handle_chinese_chars")) and plain, keep_space=False)
    byte_level = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if not normalizer and byte_level and model == "BPE" and not (spec["model"].get("dropout") or 0):
        return Cutting(ideographs=False, keep_space=True)
    return None


class WordCache:
    """Encodes blocks of texts by their distinct pieces; not for several threads at once.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` of a family that ``cutting`` knows, without truncation or padding.
        how: from ``cutting``.
    """

    def __init__(self, tokenizer: Any, how: Cutting) -> None:
        self._tokenizer = tokenizer
        self._how = how
        self._forget()

    def _forget(self) -> None:
        self._at: dict[str, int] = {}
        self._lengths = np.zeros(1024, np.int64)
        self._starts = np.zeros(1024, np.int64)
        self._pool = np.empty(4096, np.int32)
        self._used = 0
        self._chars = 0

    def encode(self, texts: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of all texts end to end, without special tokens and without truncation.

        Args:
            texts: strings without nulls.

        Returns:
            ``ids`` [tokens] and ``offsets`` [texts + 1].
        """
        parts: list[npt.NDArray[np.int32]] = []
        counts: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(texts), BLOCK_TEXTS):
            ids, lengths = self._block(texts.slice(start, BLOCK_TEXTS))
            parts.append(ids)
            counts.append(lengths)
        offsets = np.zeros(len(texts) + 1, np.int64)
        if counts:
            np.cumsum(np.concatenate(counts), out=offsets[1:])
        return np.concatenate(parts) if parts else np.empty(0, np.int32), offsets

    def _block(self, texts: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        if self._how.keep_space:
            odd = pc.match_substring_regex(texts, _ODD_SPACE).to_numpy(zero_copy_only=False)
            odd |= pc.equal(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
            # The space stays with the word after it: a byte that no text can hold marks the cuts.
            texts = pc.if_else(pa.array(odd), texts, pc.replace_substring(texts, " ", "\n "))
            words = pc.if_else(pa.array(odd), _single(texts), pc.split_pattern(texts, "\n"))
        else:
            if self._how.ideographs:
                texts = pc.replace_substring_regex(texts, f"([{_IDEOGRAPH_CLASS}])", r" \1 ")
            words = pc.split_pattern(texts, " ")
        distinct = words.flatten().dictionary_encode()
        known = self._known(distinct.dictionary.to_pylist())
        at = known[distinct.indices.to_numpy()]
        lengths = self._lengths[at]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Token k of piece i lies at starts[i] + k - (tokens before piece i).
        gather = np.repeat(self._starts[at] - ends[:-1], lengths) + np.arange(ends[-1])
        offsets = words.offsets.to_numpy() - words.offsets[0].as_py()
        return self._pool[gather], np.diff(ends[offsets])

    def _known(self, pieces: list[str]) -> npt.NDArray[np.int64]:
        """Where each piece is remembered, after encoding those that are not."""
        if len(self._at) + len(pieces) > MAX_PIECES or self._chars > MAX_CHARS:
            self._forget()
        missing = [p for p in pieces if p not in self._at]
        if missing:
            self._chars += sum(map(len, missing))
            first = len(self._at)
            encoded = [e.ids for e in self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)]
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
            total = self._used + int(lengths.sum())
            self._starts = _room(self._starts, first + len(missing))
            self._lengths = _room(self._lengths, first + len(missing))
            self._pool = _room(self._pool, total)
            self._lengths[first : first + len(missing)] = lengths
            self._starts[first : first + len(missing)] = self._used + np.cumsum(lengths) - lengths
            self._pool[self._used : total] = [i for ids in encoded for i in ids]
            self._used = total
            self._at.update(zip(missing, range(first, first + len(missing)), strict=True))
        return np.fromiter(map(self._at.__getitem__, pieces), np.int64, len(pieces))


def _room(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    if size <= len(array):
        return array
    grown = np.empty(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown


def _single(texts: pa.Array) -> pa.ListArray:
    """Each text as a list of one."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1), pa.int32()), texts)
