"""The words of the training rows: the most frequent ones, and those that tell the classes apart.

Works for every script: a word is a run of letters, digits and combining marks, case-folded, with an apostrophe inside
('don't'). Chinese and Japanese write no spaces. Ideographs are cut by jieba where it is installed and they are more
than a few, and otherwise, like kana, into pairs of neighbouring characters; the result says which. Thai, Lao, Khmer
and Burmese runs stay whole, so their 'words' are phrases.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from heapq import nsmallest
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FREQUENT = 50  # most frequent words listed
TELLING = 12  # telling words listed for each class
PRIOR_SHARE = 0.1  # weight of the prior, as a share of all words read
LONGEST = 40  # characters of a listed word; a longer one (a hash, base64) is counted whole and shown cut
JIEBA_FROM = 0.05  # share of ideographs from which jieba's dictionary is worth the second that it takes to load
JIEBA_CHARACTERS = 100_000  # segmented at most: about a second

IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f\u3005\u3007"
KANA = "\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff"
_IDEOGRAPH_RUN = re.compile(f"[{IDEOGRAPHS}]+")
_KANA_RUN = re.compile(f"[{KANA}]+")
_SPACELESS_RUN = re.compile(f"[{IDEOGRAPHS}{KANA}]+")
_ASCII_WORD = re.compile("[a-z0-9]+(?:'[a-z0-9]+)*")


def profile(
    texts: pa.Array | pa.ChunkedArray | Sequence[str],
    labels: npt.ArrayLike,
    names: Sequence[str],
    *,
    frequent: int = FREQUENT,
    telling: int = TELLING,
) -> dict[str, Any]:
    """Word facts of a sample of rows. They do not depend on the order of the rows.

    Args:
        texts: [rows] cleaned texts, no nulls.
        labels: [rows] class ids, indexes into ``names``.
        names: of the classes; one without a row gets zeros.
        frequent: how many of the most frequent words to list.
        telling: how many telling words to list for each class, at most.

    Returns:
        A JSON-able dict: ``rows`` read ``of`` those given (fewer where jieba had to segment very many), ``cut`` (how
        words were found, a phrase), ``total`` and ``distinct`` words, ``distinct_share`` (distinct / total: falls as a
        sample grows), ``once`` (words seen once) and ``once_share`` (once / distinct), ``frequent`` ([word, count],
        most first), and ``classes``: name -> ``rows``, ``total``, ``distinct``, ``distinct_share``, ``once``,
        ``once_share`` and ``telling`` ({word, score, count}, see ``telling_words``; empty for a single class).
    """
    rows: list[str] = texts.to_pylist() if isinstance(texts, (pa.Array, pa.ChunkedArray)) else list(texts)
    ids = np.asarray(labels, dtype=np.int64)
    chosen, spaced, cut = _cutter(rows)
    by_class: list[list[str]] = [[] for _ in names]
    for i in chosen:
        by_class[ids[i]].append(rows[i])
    counts = [Counter(_words(group, spaced)) for group in by_class]
    everything: Counter[str] = Counter()
    for count in counts:
        everything.update(count)
    return {
        "rows": len(chosen),
        "of": len(rows),
        "cut": cut,
        **_facts(everything),
        "frequent": [[_shown(word), n] for word, n in nsmallest(frequent, everything.items(), _most_first)],
        "classes": {
            name: {
                "rows": len(group),
                **_facts(count),
                "telling": [
                    {"word": _shown(word), "score": round(score, 2), "count": count[word]}
                    for word, score in telling_words(count, everything, telling)
                ],
            }
            for name, group, count in zip(names, by_class, counts, strict=True)
        },
    }


def telling_words(count: Mapping[str, int], everything: Mapping[str, int], most: int) -> list[tuple[str, float]]:
    """The words that a class uses more than the others do, most telling first.

    The score is the z-score of the weighted log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and
    Quinn 2008, "Fightin' Words: Lexical Feature Selection and Evaluation for Identifying the Content of Political
    Conflict", Political Analysis 16(4), equations 16, 20 and 22). For a word with y of the n words of the class, and y'
    of the n' words of the other classes::

        delta = log((y + a) / (n + a0 - y - a)) - log((y' + a) / (n' + a0 - y' - a))
        score = delta / sqrt(1 / (y + a) + 1 / (y' + a))

    The prior a is the word's share of all words times a0 = ``PRIOR_SHARE`` * (n + n'): it draws rare words, of which
    the sample says little, towards no difference, without a list of stop words. Beyond 1.96, a difference of this size
    would come by chance for one word in twenty.

    Args:
        count: word -> count in the class.
        everything: word -> count in all classes, this one too.
        most: how many words to return.

    Returns:
        (word, score) with score > 0, by falling score, then by word. Empty where there is nothing to compare: no words
        in the class, none in the others, or one and the same word everywhere.
    """
    words = list(count)
    inside = np.fromiter(count.values(), np.float64, len(words))
    overall = np.fromiter((everything[word] for word in words), np.float64, len(words))
    n, total = inside.sum(), float(sum(everything.values()))
    if n in (0.0, total) or len(everything) == 1:
        return []
    outside, prior = overall - inside, PRIOR_SHARE * overall
    rest = PRIOR_SHARE * (total - overall)  # a0 - a, above zero as there is another word
    odds = (inside + prior) / (n - inside + rest)
    odds_outside = (outside + prior) / (total - n - outside + rest)
    delta = np.log(odds) - np.log(odds_outside)
    scores = delta / np.sqrt(1.0 / (inside + prior) + 1.0 / (outside + prior))
    return nsmallest(most, ((words[i], float(scores[i])) for i in np.flatnonzero(scores > 0)), _most_first)


def in_fixed_order(texts: Sequence[str]) -> list[int]:
    """Row numbers by the texts' hashes: the first k are a random sample that no order of the rows can change."""
    keys = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return sorted(range(len(texts)), key=keys.__getitem__)


def jieba_tokenizer() -> Any:
    """jieba's segmenter with its default dictionary, read once from the text file in the package (about a second).

    Raises:
        ImportError: jieba is not installed.
    """
    with warnings.catch_warnings():
        # jieba 0.42 (2020) imports pkg_resources, which warns, and has invalid escapes in its regular expressions,
        # which warn where it is compiled on import. Neither is ours to mend.
        warnings.simplefilter("ignore")
        tokenizer = importlib.import_module("jieba").dt
    if not tokenizer.initialized:
        # What its initialize() does, without the part that loads a marshalled cache, of a name that anyone may write,
        # from the shared temporary folder, and without its lines on stderr.
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
        tokenizer.initialized = True
    return tokenizer


def _cutter(texts: Sequence[str]) -> tuple[Sequence[int], Callable[[str], str], str]:
    """Which rows to read, what sets spaces into scripts without them, and how that is called."""
    runs = "runs of letters and digits"
    foreign = [text for text in texts if not text.isascii()]
    characters = sum(map(len, texts))
    ideographs = sum(len(run) for text in foreign for run in _IDEOGRAPH_RUN.findall(text))
    everything = range(len(texts))
    if ideographs > JIEBA_FROM * characters:
        try:
            segment = jieba_tokenizer().lcut
        except ImportError:
            pass
        else:
            chosen = _up_to(texts, JIEBA_CHARACTERS) if characters > JIEBA_CHARACTERS else everything
            spaced = _spacer((_IDEOGRAPH_RUN, segment), (_KANA_RUN, _pairs))
            return chosen, spaced, f"{runs}; Chinese by jieba {version('jieba')}"
    if not any(_SPACELESS_RUN.search(text) for text in foreign):
        return everything, str, runs
    return everything, _spacer((_SPACELESS_RUN, _pairs)), f"{runs}; Chinese and Japanese as pairs of characters"


def _up_to(texts: Sequence[str], characters: int) -> list[int]:
    """Rows of a random sample with so many characters in all, or a little more, at least one."""
    order = in_fixed_order(texts)
    ends = np.cumsum([len(texts[i]) for i in order])
    return order[: int(np.searchsorted(ends, characters)) + 1]


def _spacer(*cuts: tuple[re.Pattern[str], Callable[[str], Iterable[str]]]) -> Callable[[str], str]:
    def spaced(text: str) -> str:
        for run, cut in cuts:
            text = run.sub(lambda match, cut=cut: f" {' '.join(cut(match[0]))} ", text)  # type: ignore[misc]
        return text

    return spaced


def _pairs(run: str) -> list[str]:
    return [a + b for a, b in pairwise(run)] or [run]


def _words(texts: Sequence[str], spaced: Callable[[str], str]) -> list[str]:
    text = "\n".join(texts).casefold().replace("_", " ").replace("’", "'")
    if text.isascii():
        return _ASCII_WORD.findall(text)
    # Python's \w lacks the combining marks, which are the vowels of Hindi, Thai and others. A set of all of them makes
    # the search several times slower, so only those that occur are added.
    marks = "".join(sorted(c for c in set(text) if unicodedata.category(c)[0] == "M"))
    return re.findall(rf"\w[\w{marks}]*(?:'\w[\w{marks}]*)*", spaced(text))


def _facts(count: Mapping[str, int]) -> dict[str, Any]:
    total, distinct, once = sum(count.values()), len(count), sum(n == 1 for n in count.values())
    return {
        "total": total,
        "distinct": distinct,
        "distinct_share": round(distinct / total, 4) if total else 0.0,
        "once": once,
        "once_share": round(once / distinct, 4) if distinct else 0.0,
    }


def _most_first(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def _shown(word: str) -> str:
    return word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"
