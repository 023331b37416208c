"""Changed copies of training texts, for when labelled rows are few: opt-in, and for the train split only.

``delete`` and ``swap`` come from EDA (Wei and Zou 2019, arXiv 1901.11196); a swap here is of neighbours, so that most
of the order stays. ``typo`` leaves a word's first and last letters (Pruthi et al. 2019, arXiv 1905.11268).
``neighbours`` (``neighbours.Neighbours``) stands in for EDA's synonyms, without a thesaurus.

Every draw comes from a hash of the seed, the row's id and the number of the copy: the same copies come out whatever
the number of workers or the order of rows, and asking for more copies leaves the first ones as they were.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from pipeline.data.neighbours import Neighbours

VERSION = 1  # raise it whenever the copies of a row change: prepared data is then made anew
OPERATIONS = ("delete", "swap", "typo", "neighbours")
MAX_COPIES = 10.0  # per row, to balance classes: still more of the same few texts would be learnt by heart
ATTEMPTS = 3  # draws of an operation before the next one is tried

# Scripts without spaces, where a character with its marks is the unit: Thai, Lao, Myanmar, Khmer, CJK and its
# punctuation, kana, full-width forms. Korean has spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff9f\U00020000-\U0003ffff"
)
_MARKABLE = map(chr, chain(range(0x300, 0x370), range(0xE00, 0x1800), range(0x3000, 0x3100), range(0xFE00, 0xFE10)))
_MARKS = "".join(c for c in _MARKABLE if unicodedata.category(c)[0] == "M")
_UNIT = re.compile(rf"(\s*)([{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+)")
_LETTERS = re.compile(r"[^\W\d_]{3,}")
_KEYBOARD = " qwertyuiop asdfghjkl zxcvbnm "


def copy_rates(rows: Mapping[str, int], copies: float, balance: bool = False) -> dict[str, float]:
    """How many copies each row of a class gets: 1.5 is one each, and another for half of the rows.

    With ``balance`` a smaller class gets as many more as bring it to the size that the largest reaches, but at most
    ``MAX_COPIES`` per row (or ``copies``, if that is more): 3 rows next to 1,000 become 33. It works with 0 copies too.

    Args:
        rows: training rows of each class.
        copies: of each row, 0 or more; with ``balance``, of each row of the largest class.
        balance: raise the smaller classes.
    """
    goal = (1 + copies) * max(rows.values(), default=0)
    most = max(MAX_COPIES, copies)
    return {k: min(most, goal / count - 1) if balance and count else float(copies) for k, count in rows.items()}


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of rows, in the order of their sources.

    Attributes:
        ids: of each copy: its source's id, the operation, its number among the source's copies: ``file.csv:12#typo1``.
        texts: never empty, and never equal to the source or to another copy of it, case ignored.
        sources: the index of the row that each was made of.
        operations: what was done to it.
    """

    ids: list[str]
    texts: list[str]
    sources: list[int]
    operations: list[str]


def augmented(
    ids: Sequence[str], texts: Sequence[str], labels: Sequence[int], rates: Sequence[float],
    operations: Sequence[str], share: float, seed: int, neighbours: Neighbours | None = None,
) -> Copies:  # fmt: skip
    """Make the copies of some training rows.

    The operations take turns; where one cannot change a text, or only into what is there already, the next one does.
    A text that none can change further gets fewer copies.

    Args:
        ids: [rows], distinct in the whole data set.
        texts: [rows], cleaned.
        labels: [rows] class ids.
        rates: [classes] copies per row, from ``copy_rates``.
        operations: one or more of ``OPERATIONS``, in any order.
        share: of a text's words that are changed, 0..1; at least one is.
        seed: of the configuration.
        neighbours: for the operation of that name.

    Raises:
        ValueError: an operation is unknown, there is none, or 'neighbours' is asked for without them.
    """
    turns = [name for name in OPERATIONS if name in operations]
    if not turns or len(turns) < len(set(operations)) or (neighbours is None and "neighbours" in turns):
        raise ValueError(f"operations must be of {', '.join(OPERATIONS)} (this with neighbours), got {operations}")
    copies = Copies([], [], [], [])
    for source, (row_id, text, label) in enumerate(zip(ids, texts, labels, strict=True)):
        whole, part = divmod(rates[label], 1)
        count = int(whole) + (_hash(seed, row_id) < part * 2**64)
        first = _hash(seed, row_id, "first")
        seen = {text.casefold()}
        for number in range(1, count + 1):
            for attempt in range(ATTEMPTS * len(turns)):
                operation = turns[(first + number + attempt // ATTEMPTS) % len(turns)]
                draw = np.random.default_rng(_hash(seed, row_id, number, operation, attempt))
                made = vary(text, operation, share, draw, neighbours)
                if made is not None and made.casefold() not in seen:
                    seen.add(made.casefold())
                    copies.ids.append(f"{row_id}#{operation}{number}")
                    copies.texts.append(made)
                    copies.sources.append(source)
                    copies.operations.append(operation)
                    break
    return copies


def _hash(*parts: object) -> int:
    """64 bits that depend on nothing but the parts."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def vary(
    text: str, operation: str, share: float, draw: np.random.Generator, neighbours: Neighbours | None = None
) -> str | None:
    """One text changed by one operation, or None where that cannot change it; arguments as in ``augmented``."""
    cut = _UNIT.findall(text)
    units = [unit for _, unit in cut]
    # Punctuation that stands apart is no word; an emoji is one.
    words = [i for i, unit in enumerate(units) if any(c.isalnum() or unicodedata.category(c)[0] == "S" for c in unit)]
    count = max(1, round(share * len(words)))
    order = draw.permutation(words).tolist()
    if operation == "delete":
        for at in order[: min(count, len(words) - 1)]:
            units[at] = ""
    elif operation == "swap":
        _swap(units, dict(pairwise(words)), order, max(1, count // 2))
    elif operation == "typo":
        _rewrite(units, order, count, lambda word: _typo(word, draw))
    elif neighbours is not None:
        known = neighbours.words
        _rewrite(units, order, count, lambda word: _neighbour(word, known.get(word.casefold(), ()), draw))
    out = gap = ""
    for (before, _), unit in zip(cut, units, strict=True):
        gap = before or gap  # what is taken out leaves its space
        if unit:
            out, gap = out + gap * bool(out) + unit, ""
    return out if out.casefold().split() != text.casefold().split() else None


def _swap(units: list[str], following: Mapping[int, int], order: Sequence[int], count: int) -> None:
    """Swap ``count`` words with the ones that follow, none twice."""
    moved: set[int] = set()
    for at in order:
        to = following.get(at, at)
        if moved.isdisjoint((at, to)) and units[at].casefold() != units[to].casefold():
            units[at], units[to] = units[to], units[at]
            moved |= {at, to}
        if len(moved) == 2 * count:
            return


def _rewrite(units: list[str], order: Sequence[int], count: int, change: Callable[[str], str]) -> None:
    """Change the first run of letters of units in this order, until ``count`` of them are other than before."""
    for at in order:
        before = units[at]
        units[at] = _LETTERS.sub(lambda match: change(match[0]), before, count=1)
        count -= units[at] != before
        if count == 0:
            return


def _typo(word: str, draw: np.random.Generator) -> str:
    """Transpose two letters inside a word, or leave one out, or hit the key beside it."""
    if len(word) < 4:
        return word
    at = int(draw.integers(1, len(word) - 2))
    here, after = word[at], word[at + 1]
    key = _KEYBOARD.find(here.lower())
    beside = (_KEYBOARD[key - 1] + _KEYBOARD[key + 1]).strip() if key > 0 else ""
    ways = [after + here, after, *(other + after for other in beside)]
    made = word[:at] + ways[int(draw.integers(len(ways)))] + word[at + 2 :]
    return made.upper() if word.isupper() else made


def _neighbour(word: str, near: Sequence[str], draw: np.random.Generator) -> str:
    """One of the words near, in the case of this one; the word itself where there is none."""
    if not near:
        return word
    new = near[int(draw.integers(len(near)))]
    return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new
