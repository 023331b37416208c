"""Token ids by the word: each distinct word goes through the tokenizer once, and texts are gathered from the results.

News and tickets repeat themselves: a thousand texts of fifty words hold some six thousand distinct ones. So the
texts are cut into pieces (NumPy, over the bytes of an Arrow column), Arrow finds the distinct pieces of a block, those
not seen yet are encoded, and NumPy gathers the ids of every text. The result equals the Hugging Face tokenizer's own
for two families, for which cutting is provably harmless (``cutting`` says when):

* **BERT** (``BertNormalizer`` + ``BertPreTokenizer`` + WordPiece). The normalizer works character by character
  (U+0020 and ASCII punctuation are starters, so no combining mark is reordered across them), the pre-tokenizer drops
  U+0020, sets each punctuation mark apart, and WordPiece sees one pre-token at a time. So ids(text) is the
  concatenation of ids(piece) over those pieces. With ``handle_chinese_chars`` the normalizer itself puts a space
  around each ideograph, so texts may be cut there as well; with ``lowercase`` ASCII letters may be lowered first. A
  piece of ASCII letters and digits is its own only pre-token: it can go straight to the WordPiece model.
* **Byte-level BPE** (``ByteLevel`` pre-tokenizer with its regular expression: GPT-2, RoBERTa). In a text whose only
  white space is single U+0020 between words, each space starts a new pre-token (`` ?\\p{L}+`` and its siblings; the
  two rules for trailing white space need two in a row or the end). So the pieces are the first word, and each
  later one with its space.

A text that does not qualify is one piece: it goes through the tokenizer whole. So does one that holds a special
token such as ``[SEP]``, which the tokenizer looks for in the raw text before anything else.
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
MAX_PIECES = 100_000
MAX_CHARS = 8_000_000
BLOCK_TEXTS = 16_384

# What BertNormalizer takes for a Chinese character (tokenizers, normalizers/bert.rs).
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_IDEOGRAPH = "[" + "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in _IDEOGRAPHS) + "]"
# White space that byte-level BPE would see. All of Unicode's is listed, with what Rust and RE2 might disagree on.
_ODD_SPACE = (
    r"^ | $|  |[\t-\r\x{1C}-\x{1F}\x{85}\x{A0}\x{1680}\x{180E}\x{2000}-\x{200B}\x{2028}\x{2029}\x{202F}\x{205F}"
    r"\x{3000}\x{FEFF}]"
)
_WORD, _SPACE, _MARK = 0, 1, 2
_CLASS = bytes(_SPACE if i == 32 else _MARK if 33 <= i < 127 and not chr(i).isalnum() else _WORD for i in range(256))
_LOWER = bytes(i + 32 if ord("A") <= i <= ord("Z") else i for i in range(256))


@dataclass(frozen=True)
class Cutting:
    """Where texts may be cut without changing their ids.

    Attributes:
        odd: a regular expression (RE2) of texts that may not be cut at all; '' if there are none.
        keep_space: a piece that is not the first carries the space before it (byte-level BPE).
        marks: ASCII punctuation may be set apart.
        lower: ASCII letters may be lowered first.
        ideographs: cut around each ideograph.
        direct: a piece of ASCII letters and digits may go to the model without normalizer and pre-tokenizer.
        raw: special tokens, which may not.
    """

    odd: str
    keep_space: bool = False
    marks: bool = False
    lower: bool = False
    ideographs: bool = False
    direct: bool = False
    raw: frozenset[str] = frozenset()


def cutting(tokenizer: Any) -> Cutting | None:
    """How texts may be cut for this tokenizer (``tokenizers.Tokenizer``), or None where that is not proven."""
    spec = json.loads(tokenizer.to_str())
    normalizer = spec.get("normalizer") or {}
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    model = spec.get("model") or {}
    added = spec.get("added_tokens") or []
    if any(re.search(r"\s", t["content"]) or t.get("rstrip") for t in added):
        return None
    # Raw ones are found in the raw text, the others in what the normalizer made of it, anywhere in a word.
    raw = "|".join(re.escape(t["content"]) for t in added if not t.get("normalized"))
    others = [t for t in added if t.get("normalized")]
    if normalizer.get("type") == "BertNormalizer" and pre_tokenizer.get("type") == "BertPreTokenizer":
        if model.get("type") != "WordPiece" or any(not t["content"].isascii() for t in others):
            return None
        contents = [t["content"] for t in added if not t.get("normalized")]
        # Lowering must not make a raw token out of what was none.
        lower = bool(normalizer.get("lowercase")) and not any(re.search("[a-z]", c) for c in contents)
        # Next to a mark that is cut off, '_' say, a token that must stand alone would seem to.
        marks = all(t["content"].isalnum() and not t.get("single_word") for t in others)
        marks = marks and not any(t.get("single_word") for t in added)
        chinese = bool(normalizer.get("handle_chinese_chars"))
        return Cutting(raw, marks=marks, lower=lower, ideographs=chinese, direct=not others, raw=frozenset(contents))
    byte_level = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    if not normalizer and byte_level and model.get("type") == "BPE" and not model.get("dropout"):
        return Cutting("|".join(filter(None, [raw, _ODD_SPACE])), keep_space=True)
    return None


class WordCache:
    """Encodes blocks of texts by their distinct pieces; not for several threads at once.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` of a family that ``cutting`` knows, without truncation or padding.
        how: from ``cutting``.
    """

    def __init__(self, tokenizer: Any, how: Cutting) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._how = how
        spec = json.loads(tokenizer.to_str()).get("normalizer") or {}
        self._lowers = bool(spec.get("lowercase"))
        self._forget()

    def _forget(self) -> None:
        self._at: dict[str, int] = {}
        self._lengths = np.zeros(1024, np.int64)
        self._starts = np.zeros(1024, np.int64)
        self._pool = np.empty(4096, np.int32)
        self._used = 0
        self._chars = 0

    def _keep_only(self, pieces: list[str]) -> None:
        """Forget all but these pieces: the words of one block are most of the words of the next."""
        kept = [p for p in pieces if p in self._at]
        at = np.fromiter(map(self._at.__getitem__, kept), np.int64, len(kept))
        starts, lengths, pool = self._starts[at], self._lengths[at], self._pool
        self._forget()
        ends = np.cumsum(lengths)
        self._used = int(ends[-1]) if len(kept) else 0
        gather = np.repeat(starts - (ends - lengths), lengths) + np.arange(self._used)
        self._pool, self._lengths, self._starts = pool[gather], lengths, ends - lengths
        self._chars = sum(map(len, kept))
        self._at = dict(zip(kept, range(len(kept)), strict=True))

    def encode(self, texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
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

    def _block(self, texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        pieces, ends_of_texts = cut(texts, self._how)
        distinct = pieces.dictionary_encode()
        known = self._known(distinct.dictionary.to_pylist())
        at = known[distinct.indices.to_numpy()]
        lengths = self._lengths[at]
        ends = np.zeros(len(at) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        # Token k of piece i lies at starts[i] + k - (tokens before piece i).
        gather = np.repeat(self._starts[at] - ends[:-1], lengths)
        gather += np.arange(len(gather))
        return self._pool[gather], np.diff(ends[ends_of_texts])

    def _known(self, pieces: list[str]) -> npt.NDArray[np.int64]:
        """Where each piece is remembered, after encoding those that are not."""
        missing = [p for p in pieces if p not in self._at]
        if len(self._at) + len(missing) > MAX_PIECES or self._chars > MAX_CHARS:
            self._keep_only(pieces)
        if missing:
            self._chars += sum(map(len, missing))
            first = len(self._at)
            encoded = self._encode(missing)
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

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        if not self._how.direct:
            return [e.ids for e in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]
        # Lowering is part of the normalizer that is skipped; a piece that was not cut may hold capitals.
        low, raw = self._lowers, self._how.raw
        plain = [p.isascii() and p.isalnum() and p not in raw and (not low or p == p.lower()) for p in pieces]
        others = [p for p, simple in zip(pieces, plain, strict=True) if not simple]
        rest = iter(self._tokenizer.encode_batch_fast(others, add_special_tokens=False))
        tokenize = self._model.tokenize
        return [
            [t.id for t in tokenize(p)] if simple else next(rest).ids for p, simple in zip(pieces, plain, strict=True)
        ]


def cut(texts: pa.StringArray, how: Cutting) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """The pieces of all texts end to end, and where the pieces of each text begin [texts + 1]."""
    n = len(texts)
    odd = _matches(texts, how.odd)
    if how.ideographs:
        foreign = pc.invert(pc.string_is_ascii(texts))
        if pc.any(foreign).as_py():
            spaced = pc.replace_substring_regex(texts, f"({_IDEOGRAPH})", r" \1 ")
            texts = pc.if_else(pa.array(odd), texts, spaced)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + n + 1].astype(np.int64)
    values = texts.buffers()[2]
    raw = values.slice(offsets[0], offsets[-1] - offsets[0]).to_pybytes() if values is not None else b""
    offsets -= offsets[0]
    lengths = np.diff(offsets)
    kind = np.frombuffer(bytearray(raw.translate(_CLASS)), np.uint8)
    whole = np.repeat(odd, lengths) if odd.any() else None
    if whole is not None:
        kind[whole] = _WORD
    if how.keep_space:
        begins = kind == _SPACE
        begins[offsets[:-1][lengths > 0]] = True
        data = raw
        cut_at = counted = np.flatnonzero(begins)
    else:
        if not how.marks:
            kind[kind == _MARK] = _WORD
        word, space = kind == _WORD, kind == _SPACE
        begins = np.empty(len(kind), bool)
        begins[:1] = True
        np.greater(word[1:], word[:-1], out=begins[1:])
        begins[offsets[:-1][lengths > 0]] = True
        begins &= word
        begins |= kind == _MARK
        if whole is None:
            data = raw.translate(_LOWER if how.lower else None, b" ")
        else:
            plain = np.frombuffer(raw, np.uint8)
            lowered = np.frombuffer(raw.translate(_LOWER), np.uint8) if how.lower else plain
            data = np.where(whole, plain, lowered)[~space].tobytes()
        counted = np.flatnonzero(begins)
        cut_at = counted - np.cumsum(space, dtype=np.int32)[counted]
    piece_offsets = np.append(cut_at, len(data)).astype(np.int32)
    pieces = pa.StringArray.from_buffers(len(cut_at), pa.py_buffer(piece_offsets), pa.py_buffer(data))
    return pieces, np.searchsorted(counted, offsets)


def _matches(texts: pa.StringArray, pattern: str) -> npt.NDArray[np.bool_]:
    if not pattern:
        return np.zeros(len(texts), bool)
    return np.array(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False), bool)


def _room(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    if size <= len(array):
        return array
    grown = np.empty(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown
