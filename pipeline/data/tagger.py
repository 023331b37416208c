"""Parts of speech and shallow syntax of the training rows, class by class, by a tagger that needs no network.

English is tagged with the lexicon, suffix rules and chunker of Pattern (De Smedt and Daelemans 2012, "Pattern for
Python", JMLR 13), plain text files inside TextBlob's wheel; Chinese with jieba's dictionary and hidden Markov model.
Both come with ``broadsheet[profile]``; without them the result says why it is empty. Shares of a few thousand words by
taggers of this kind compare classes well; they are no analysis of a single sentence.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.words import IDEOGRAPHS, KANA, in_fixed_order, jieba_tokenizer

WORDS_PER_CLASS = 3_000  # a share of one half is then known to within 1.8 points, 19 times in 20
WORDS_IN_ALL = {"English": 24_000, "Chinese": 5_000}  # half a second each, next to a second or two of loading
CHARACTERS = 2_000  # read of one text at most
SENTENCE = 100  # tokens; the chunker's time grows with the square of a sentence's length
SEEN = 2_000  # texts that the language is told by

# Universal Dependencies v2, coarser where the tag sets below do not tell: VERB takes in AUX, ADP takes in SCONJ.
# Punctuation and symbols are not words and not counted.
PARTS = ("NOUN", "PROPN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CCONJ", "PART", "INTJ", "X")
CHUNKS = ("NP", "VP", "PP", "ADJP", "ADVP")

# Penn Treebank tags. TO is decided by what follows.
_PENN = {
    tag: part
    for part, tags in {
        "NOUN": "NN NNS",
        "PROPN": "NNP NNPS",
        "VERB": "MD VB VBD VBG VBN VBP VBZ",
        "ADJ": "JJ JJR JJS",
        "ADV": "RB RBR RBS WRB",
        "PRON": "PRP PRP$ WP WP$ EX",
        "DET": "DT PDT WDT",
        "ADP": "IN RP",
        "NUM": "CD",
        "CCONJ": "CC",
        "PART": "POS",
        "INTJ": "UH",
    }.items()
    for tag in tags.split()
}
# ICTCLAS flags by their first two letters or the first one: 'nr' are names, and any other 'n' a noun.
_ICTCLAS = {
    flag: part
    for part, flags in {
        "PROPN": "nr ns nt nz",
        "NOUN": "n t s f q j",  # also times, places, sides, measure words, abbreviations
        "VERB": "v",
        "ADJ": "a b z",
        "ADV": "d",
        "PRON": "r",
        "ADP": "p",
        "NUM": "m",
        "CCONJ": "c",
        "PART": "u y h k",  # auxiliaries such as 的, modal particles, prefixes and suffixes
        "INTJ": "e o",
        "X": "en un",  # Latin letters, unknown
    }.items()
    for flag in flags.split()
}

# Frequent, short, and not words of the languages that are easily taken for English.
_FUNCTION_WORDS = (
    "the of and to that with from this are by not it its his their they you which would been has but your about what "
    "who how when after into than more could should there will said i'm don't it's"
)
_FUNCTION_WORD = re.compile(rf"(?<!\w)(?:{_FUNCTION_WORDS.replace(' ', '|')})(?!\w)", re.IGNORECASE)
_ENGLISH_FROM = 0.08  # share of such words
_IDEOGRAPH, _KANA = re.compile(f"[{IDEOGRAPHS}]"), re.compile(f"[{KANA}]")
_RUN = re.compile(r"\w+")
# As in the Penn Treebank "don't" is "do" and "n't". TextBlob's own tokenizer takes the apostrophe off, and the meaning.
_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}|\w+(?=n't\b)|n't\b|'(?:s|d|m|re|ve|ll)\b|\w+(?:[-.,]\w+)*|[^\w\s]", re.IGNORECASE
)
Tagged = list[tuple[list[str], list[str]]]  # of each sentence the parts of its words, and its chunks


def installed() -> list[str]:
    """The taggers that are installed, with their versions: what ``profile`` says depends on them."""
    found = []
    for name in ("textblob", "jieba"):
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found


def profile(
    texts: pa.Array | pa.ChunkedArray | Sequence[str],
    labels: npt.ArrayLike,
    names: Sequence[str],
    *,
    words_per_class: int = WORDS_PER_CLASS,
) -> dict[str, Any]:
    """Shares of parts of speech and of chunk types, by class. They do not depend on the order of the rows.

    Args:
        texts: [rows] cleaned texts, no nulls.
        labels: [rows] class ids, indexes into ``names``.
        names: of the classes.
        words_per_class: tagged at most; fewer where the classes are so many that ``WORDS_IN_ALL`` is reached.

    Returns:
        A JSON-able dict: ``tagger`` (its name and version; None where nothing was tagged, with a sentence ``why``),
        ``language`` ("English", "Chinese" or None), ``words_per_class`` (the bound), ``words`` tagged, ``parts`` and
        ``chunks`` (the categories met, most frequent first; no chunks in Chinese), and ``classes``: name -> ``words``,
        ``parts`` (category -> share of the words) and ``chunks`` (type -> share of the chunks).
    """
    rows: list[str] = texts.to_pylist() if isinstance(texts, (pa.Array, pa.ChunkedArray)) else list(texts)
    order = in_fixed_order(rows)
    spoken = language([rows[i] for i in order[:SEEN]])
    if spoken is None:
        return {"tagger": None, "language": None, "why": "neither English nor Chinese: no tagger for it"}
    try:
        name, tag = (_english if spoken == "English" else _chinese)()
    except ImportError:
        package = "TextBlob" if spoken == "English" else "jieba"
        why = f"install broadsheet[profile] to have parts of speech ({package} is not installed)"
        return {"tagger": None, "language": spoken, "why": why}
    bound = max(1, min(words_per_class, WORDS_IN_ALL[spoken] // max(1, len(names))))
    ids = np.asarray(labels, dtype=np.int64)
    by_class: list[list[str]] = [[] for _ in names]
    for i in order:
        by_class[ids[i]].append(rows[i])
    counts = [_count(map(tag, group), bound) for group in by_class]
    parts, chunks = (sum((pair[k] for pair in counts), Counter[str]()) for k in (0, 1))
    return {
        "tagger": name,
        "language": spoken,
        "words_per_class": bound,
        "words": parts.total(),
        "parts": [part for part in sorted(PARTS, key=lambda part: -parts[part]) if parts[part]],
        "chunks": [chunk for chunk in sorted(CHUNKS, key=lambda chunk: -chunks[chunk]) if chunks[chunk]],
        "classes": {
            name: {"words": pair[0].total(), "parts": _shares(pair[0], PARTS), "chunks": _shares(pair[1], CHUNKS)}
            for name, pair in zip(names, counts, strict=True)
        },
    }


def language(texts: Sequence[str]) -> str | None:
    """Tell English and Chinese from everything else, by the texts alone.

    Chinese: at least half of the letters are ideographs, and kana, which Japanese cannot do without, under a twentieth.
    English: at least eight in a hundred words are function words such as 'the', 'of' and 'would'.
    """
    text = "\n".join(text[:CHARACTERS] for text in texts)
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    if len(_IDEOGRAPH.findall(text)) >= letters / 2:
        return "Chinese" if len(_KANA.findall(text)) < letters / 20 else None
    found = len(_FUNCTION_WORD.findall(text.replace("’", "'")))
    return "English" if found >= _ENGLISH_FROM * len(_RUN.findall(text)) else None


def _english() -> tuple[str, Callable[[str], Tagged]]:
    """What tags one English text.

    Pattern's rules of context are left out, as TextBlob itself does: they took most of the time and, held against a
    perceptron tagger, made tags worse.

    Raises:
        ImportError: TextBlob is not installed.
    """
    parser = importlib.import_module("textblob.en").parser
    with warnings.catch_warnings():
        # TextBlob leaves the file of its lexicon to the garbage collector to close, when it first looks up a word.
        warnings.simplefilter("ignore", ResourceWarning)
        len(parser.lexicon)

    def tag(text: str) -> Tagged:
        tokens = _TOKEN.findall(text[:CHARACTERS].replace("’", "'"))
        tagged = []
        for sentence in _sentences(tokens):
            words = [[word, penn.split("|")[0]] for word, penn in parser.find_tags(sentence)]
            following = [penn for _, penn in words[1:]] + [""]
            parts = [
                ("PART" if after == "VB" else "ADP") if penn == "TO" else _PENN.get(penn, "X")
                for (_, penn), after in zip(words, following, strict=True)
            ]
            chunks = [chunk[2:] for _, _, chunk, _ in parser.find_chunks(words) if chunk.startswith("B-")]
            tagged.append(([part for part, token in zip(parts, sentence, strict=True) if _is_word(token)], chunks))
        return tagged

    return f"TextBlob {version('textblob')} (the lexicon and chunker of Pattern)", tag


def _chinese() -> tuple[str, Callable[[str], Tagged]]:
    """What tags one Chinese text.

    Raises:
        ImportError: jieba is not installed.
    """
    jieba_tokenizer()  # posseg's tagger asks this one, which must not load itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same escapes as in jieba itself
        cut = importlib.import_module("jieba.posseg").dt.cut

    def tag(text: str) -> Tagged:
        return [([_from_flag(flag) for word, flag in cut(text[:CHARACTERS]) if _is_word(word)], [])]

    return f"jieba {version('jieba')}", tag


def _sentences(tokens: Iterable[str]) -> Iterable[list[str]]:
    """Cut after '.', '!' and '?', and wherever a sentence gets longer than ``SENTENCE``."""
    number = length = 0
    numbered = []
    for token in tokens:
        numbered.append((number, token))
        length += 1
        if token in ".!?" or length == SENTENCE:
            number, length = number + 1, 0
    return ([token for _, token in group] for _, group in groupby(numbered, key=lambda pair: pair[0]))


def _is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


def _from_flag(flag: str) -> str:
    return _ICTCLAS.get(flag[:2]) or _ICTCLAS.get(flag[:1], "X")


def _count(texts: Iterable[Tagged], bound: int) -> tuple[Counter[str], Counter[str]]:
    """Parts and chunks, until ``bound`` words are reached; what goes beyond is the rest of a sentence."""
    parts: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for tagged in texts:
        for found, phrases in tagged:
            if parts.total() >= bound:
                return parts, chunks
            parts.update(found[: bound - parts.total()])
            chunks.update(phrases)
    return parts, chunks


def _shares(count: Counter[str], names: Sequence[str]) -> dict[str, float]:
    total = count.total()
    return {name: round(count[name] / total, 4) for name in names if count[name]}
