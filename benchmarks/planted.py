"""Near-duplicates with a known answer: real texts, and lightly changed copies of some of them.

Each copy is changed in one of the ways in which news repeats itself. Near-duplicates that the base texts hold among
themselves count as mistakes of whoever finds them: a precision measured here is a lower bound.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Words = list[str]


def _share(words: Words) -> int:
    """One word in twenty, at least one."""
    return max(1, len(words) // 20)


def _replaced(words: Words, draw: random.Random) -> Words:
    changed = list(words)
    for at in draw.sample(range(len(words)), _share(words)):
        changed[at] = f"w{draw.randrange(10**6)}"
    return changed


def _deleted(words: Words, draw: random.Random) -> Words:
    gone = set(draw.sample(range(len(words)), _share(words)))
    return [w for i, w in enumerate(words) if i not in gone]


def _swapped(words: Words, draw: random.Random) -> Words:
    at = draw.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


SHORT = 20  # words; of a shorter text one word is more than one in twenty, and only the first three ways are taken
WAYS: dict[str, Callable[[Words, random.Random], Words]] = {
    "case and punctuation": lambda words, draw: [w.upper() if draw.random() < 0.5 else f"{w}," for w in words],
    "an agency before it": lambda words, draw: ["WASHINGTON", "(Reuters)", "-", *words],
    "a source behind it": lambda words, draw: [*words, "(AP)"],
    "its end cut off": lambda words, draw: words[: len(words) - _share(words)],
    "words replaced": _replaced,
    "words deleted": _deleted,
    "two words swapped": _swapped,
}


def planted(texts: list[str], copies: int, seed: int, apart: str = " ") -> tuple[list[str], dict[int, tuple[int, str]]]:
    """Texts with changed copies among them.

    Args:
        texts: the base texts, distinct.
        copies: how many to add, of distinct base texts of eight words or more.
        seed: of the draw.
        apart: what stands between words: a space, or nothing, and then each character or number is a word.

    Returns:
        All texts, shuffled; and for each copy (its place among them) the place of its original and how it was changed.
    """
    draw = random.Random(seed)
    cut = [t.split() if apart else re.findall(r"[A-Za-z0-9]+|.", t) for t in texts]
    originals = draw.sample([i for i, words in enumerate(cut) if len(words) >= 8], copies)
    ways = [draw.choice(list(WAYS)[: 3 if len(cut[i]) < SHORT else None]) for i in originals]
    made = [apart.join(WAYS[way](cut[i], draw)) for i, way in zip(originals, ways, strict=True)]
    order = list(range(len(texts) + copies))
    draw.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    everything = texts + made
    answer = {place[len(texts) + k]: (place[i], ways[k]) for k, i in enumerate(originals)}
    return [everything[old] for old in order], answer
