"""Words of like embedding, from a pretrained model: what ``augment`` puts in a word's place, without a thesaurus.

Opposites have like embeddings too ('good', 'bad'): it suits topics, not sentiment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

# How transformers' models, and the project's own, call their token embeddings.
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:word_embeddings|embed_tokens|wte|tok_embeddings|embeddings?|shared)\.weight$")
_NO_NEIGHBOURS = "leave 'neighbours' out of data.augment, or name a pretrained model"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """For each word (casefolded) the words that may stand in for it, nearest first."""

    words: Mapping[str, Sequence[str]]

    @classmethod
    def of_model(cls, folder: Path, most: int = 4, minimum: float = 0.4, common: int = 100) -> Neighbours:
        """The nearest words by the cosine of a model's token embeddings, their mean taken off; some seconds.

        Args:
            folder: a model folder with ``tokenizer.json`` and ``*.safetensors``.
            most: neighbours per word.
            minimum: cosine similarity below which a word is no neighbour.
            common: so many of the most frequent words, nearly all function words, stay out of it.

        Raises:
            UserError: the folder has no tokenizer, too few whole words, or no token embeddings.
        """
        ids = _whole_words(folder)
        names = list(ids)[common : common + 30_000]  # the time grows with the square
        if not names:
            raise UserError(f"{folder}: its vocabulary has too few whole words: {_NO_NEIGHBOURS}")
        vectors = _embeddings(folder, max(ids.values()) + 1)[[ids[name] for name in names]]
        vectors -= vectors.mean(axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        near: dict[str, list[tuple[float, str]]] = {}
        for start in range(0, len(names), 1024):
            similar = vectors[start : start + 1024] @ vectors[start:].T
            for row, column in np.argwhere(np.triu(similar >= minimum, 1)).tolist():
                word, other = names[start + row], names[start + column]
                if not _related(word, other):
                    rank = -round(float(similar[row, column]), 4)
                    near.setdefault(word, []).append((rank, other))
                    near.setdefault(other, []).append((rank, word))
        return cls({word: tuple(other for _, other in sorted(pairs)[:most]) for word, pairs in near.items()})

    @classmethod
    def load(cls, where: str | Path | IO[bytes]) -> Neighbours:
        """Read what ``save`` wrote."""
        columns = pq.ParquetFile(where).read().to_pydict()
        return cls(dict(zip(columns["word"], map(tuple, columns["neighbours"]), strict=True)))

    def save(self, where: str | Path | IO[bytes]) -> None:
        """Write a Parquet file: ``word: string, neighbours: list<string>``, ordered by word."""
        words = sorted(self.words)
        columns = [pa.array(words, pa.string()), pa.array([self.words[w] for w in words], pa.list_(pa.string()))]
        pq.write_table(pa.table(columns, names=["word", "neighbours"]), where)


def _whole_words(folder: Path) -> dict[str, int]:
    """The vocabulary's words of three letters or more, casefolded, in its order: tokenizers put frequent ones first."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder} has no tokenizer.json: {_NO_NEIGHBOURS}")
    vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=False)
    # Byte-level BPE and SentencePiece mark where a word begins, WordPiece where it goes on ('##', not alphabetic).
    # A tenth of the tokens, not one: Ġ is a letter of Maltese.
    firsts = Counter(token[:1] for token in vocabulary)
    start = next((mark for mark in "Ġ▁" if 10 * firsts[mark] > len(vocabulary)), "")
    ids: dict[str, int] = {}
    for token, at in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = token.removeprefix(start)
        # Byte-level BPE writes bytes above 127 as other letters: only its ASCII words are what they seem.
        if token.startswith(start) and len(word) >= 3 and word.isalpha() and (start != "Ġ" or word.isascii()):
            ids.setdefault(word.casefold(), at)
    return ids


def _embeddings(folder: Path, rows: int) -> npt.NDArray[np.float32]:
    """The token embeddings, [``rows`` or more, width]: some models pad their vocabulary."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:  # NumPy has no bfloat16
            for name in filter(_EMBEDDINGS.search, tensors.keys()):
                shape = tensors.get_slice(name).get_shape()
                if len(shape) == 2 and shape[0] >= rows:
                    return np.array(tensors.get_tensor(name).float().numpy())
    raise UserError(f"{folder}: no *.safetensors holds token embeddings of {rows} rows or more: {_NO_NEIGHBOURS}")


def _related(a: str, b: str) -> bool:
    """One word holds the other, or they begin alike for six tenths of the shorter: 'rise' and 'rising'."""
    alike = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    return a in b or b in a or alike >= 0.6 * min(len(a), len(b))
