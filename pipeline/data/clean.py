"""The cleaning rules: small pure functions, each with a name and a reason, applied in a fixed order.

Training and serving call the same ``clean``; a checkpoint records ``VERSION`` and the rules it was trained
with, so that a served text is cleaned exactly as the training rows were.
"""

from __future__ import annotations

import html
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.entities import html5
from unicodedata import combining, normalize

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.fixes import fix_character_width

VERSION = 3  # raise it whenever a rule's output changes: prepared data is then made anew


@dataclass(frozen=True, slots=True)
class Rule:
    """One cleaning rule.

    Attributes:
        name: the word used in the configuration, the report and the checkpoint.
        reason: why the rule exists, in one sentence.
        guard: a regular expression; where it finds nothing, ``apply`` would return the text unchanged. Written in what
            Python's ``re`` and RE2 have in common, and without ``\\s``, which differs between the two.
        apply: the rule itself.
        optional: applied only when ``data.extra_rules`` names it.
        touches: the same test for one text, by what Python's strings do fastest.
    """

    name: str
    reason: str
    guard: str
    apply: Callable[[str], str]
    optional: bool = False
    touches: Callable[[str], object] = bool


# Only complete entities: html.unescape alone would read the '&copy' of '?a=1&copy=2' as a copyright sign.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Each pattern begins with a literal character, which is what makes Python's search fast; the look behind it follows.
_LOST_NUMERIC = re.compile(r"#(?<![&\w]#)([0-9]{2,5});")
_LOST_APOSTROPHE = re.compile(r"#(?<!&#)(?:39|146|8217);(?=(?:s|t|d|m|re|ve|ll)\b)")
_SPACED_APOSTROPHE = re.compile(r" #(?:39|146|8217);(?=(?:s|t|d|m|re|ve|ll)\b)")
_NAMES = ("quot", "amp", "lt", "gt", "nbsp", "hellip", "mdash", "ndash", "rsquo", "lsquo", "rdquo", "ldquo", "eacute")
_LOST_NAMED = re.compile("(" + "|".join(rf"{n[0]}(?<![&\w]{n[0]}){n[1:]}" for n in _NAMES) + ");")


def _entity(match: re.Match[str]) -> str:
    whole = match[0]
    return html.unescape(whole) if whole[1] == "#" or whole[1:] in html5 else whole


def _entities(text: str) -> str:
    text = _ENTITY.sub(_entity, text)
    return _ENTITY.sub(_entity, text)  # once more: feeds escape twice, '&amp;lt;b&amp;gt;'


def _lost_entities(text: str) -> str:
    if "#" in text:
        text = _SPACED_APOSTROPHE.sub("'", text)
        text = _LOST_APOSTROPHE.sub("'", text)
        text = _LOST_NUMERIC.sub(lambda m: html.unescape(f"&#{m[1]};"), text)
    if any(part.endswith(_NAMES) for part in text.split(";")):  # far faster than the search for the names
        text = _LOST_NAMED.sub(lambda m: html.unescape(f"&{m[1]};"), text)
    return text


# Only real HTML elements: "List<String>" and "a <b" keep their angle brackets.
_ELEMENTS = (
    "a|abbr|acronym|address|article|aside|b|base|big|blockquote|body|br|button|caption|center|cite|code|col|dd|del|"
    "div|dl|dt|em|embed|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|"
    "link|main|meta|nav|noscript|object|ol|option|p|param|pre|q|s|script|section|select|small|span|strike|strong|"
    "style|sub|sup|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video"
)
_TAG = re.compile(rf"</?(?:{_ELEMENTS})(?:\s[^<>]{{0,2000}})?/?>", re.IGNORECASE)
_LONGEST_COMMENT = 2_000


def _tags(text: str) -> str:
    """Comments first: a tag holds no '<', and so none of them. By hand, as a pattern would look for the end of each of
    100,000 comments that are never closed."""
    parts, begin, at, end = [], 0, text.find("<!--"), -1
    while at >= 0:
        if end < at + 4:
            end = text.find("-->", at + 4)
            if end < 0:
                break
        if end - at - 4 <= _LONGEST_COMMENT:
            parts.append(text[begin:at])
            begin = end + 3
        at = text.find("<!--", max(begin, at + 4))
    if parts:
        text = " ".join([*parts, text[begin:]])
    return _TAG.sub(" ", text)


_ESCAPED = re.compile(r"\\(?=[$\"'&#%_])")
_FTFY = ftfy.TextFixerConfig(unescape_html=False, fix_character_width=False, normalization=None, explain=False)
# Sorting a run of combining marks takes time that grows with its square: Unicode's stream-safe text (UAX #15) has
# thirty at most. All that has a combining class, or comes apart into what has one; none lies beyond U+1FFFF.
_MARKS = f"[{''.join(c for c in map(chr, range(0x300, 0x20000)) if combining(normalize('NFKD', c)[0]))}]"
_STACKED = re.compile(f"({_MARKS}{{30}}){_MARKS}+")


def _mojibake(text: str) -> str:
    """ftfy until nothing changes, with NFC apart: what ftfy removes or decodes may bring marks together."""
    while True:
        fixed = normalize("NFC", _STACKED.sub(r"\1", ftfy.fix_text(text, _FTFY)))
        if fixed == text:
            return fixed
        text = fixed


# What ftfy leaves as it is, whatever stands around it: unified ideographs and the punctuation of Chinese. No step of
# ftfy looks for them (its tables hold Latin letters and symbols), and NFC maps each to itself.
_IDEOGRAPHIC = "\u4e00-\u9fff\u3001\u3002\u300a-\u3011\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
# C0 and C1 controls but tab and line ends, zero-width space, word joiner, BOM. The joiners U+200C and U+200D
# stay: emoji and several scripts need them.
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\u200b\u2060\ufeff]")
# What str.split() splits at, but U+0020.
_ODD_SPACE = "\\t-\\r\\x1c-\\x1f\\x85\\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# ASCII only: Chinese text runs on right after an address, without a space.
_URL = re.compile(  # no IGNORECASE: under it the class of all foreign letters also takes in 'i', 's' and 'k'
    r"(?<![A-Za-z0-9])(?:[hH][tT][tT][pP][sS]?://|[fF][tT][pP]://|[wW]{3}\.)[^\s<>\"'\x7f-\U0010ffff]{1,2000}"
    r"(?<![.,;:!?)\]])"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._+-])[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"
    r"(?![A-Za-z0-9-])"
)
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_AGENCIES = r"(?:Reuters|AP|AFP|UPI|PA|Xinhua|Bloomberg|Canadian Press|USATODAY\.com|SPACE\.com|washingtonpost\.com)"
_AGENCY = re.compile(rf"\({_AGENCIES}\)(?:\s*(?:-{{1,2}}|[–—])(?=\s))?|(?<!\S){_AGENCIES} (?:-{{1,2}}|[–—])(?=\s)")


def _public_ip(replacement: str) -> Callable[[str], str]:
    def replaced(match: re.Match[str]) -> str:
        try:
            return replacement if ipaddress.IPv4Address(match[0]).is_global else match[0]
        except ValueError:  # an octet above 255: a version number, not an address
            return match[0]

    return lambda text: _IP.sub(replaced, text)


def _nfkc(text: str) -> str:
    return normalize("NFKC", text)


def _holds(character: str) -> Callable[[str], bool]:
    return lambda text: character in text


def _is_plain(text: str) -> bool:
    """Printable ASCII only."""
    return text.isascii() and text.isprintable()


_NON_ASCII = r"[^\x00-\x7f]"
_FOREIGN = re.compile(f"[^\\t\\n\\x20-\\x7e{_IDEOGRAPHIC}]")
_HAS_ODD = re.compile(f"[{_ODD_SPACE}]")

RULES: tuple[Rule, ...] = (
    Rule("entities", "HTML entities stand for characters: '&lt;', '&#233;'.", "&", _entities, touches=_holds("&")),
    Rule(
        "lost_entities",
        "AG News and other scraped feeds hold entities that lost their ampersand: ' #39;s', ' #36;10', 'quot;'.",
        "[a-z0-9];",
        _lost_entities,
        touches=_holds(";"),
    ),
    Rule(
        "tags",
        "Mark-up is not language: '<b>', '<A HREF=...>' (the words between tags stay).",
        "<",
        _tags,
        touches=_holds("<"),
    ),
    Rule(
        "backslashes",
        r"AG News writes '\' where a line break was, and '\$' for '$'.",
        r"\\",
        lambda t: _ESCAPED.sub("", t).replace("\\", " "),
        touches=_holds("\\"),
    ),
    Rule(
        "mojibake",
        "Text decoded with the wrong code page ('â€™' for an apostrophe), ligatures, NFC (ftfy).",
        _FOREIGN.pattern,
        _mojibake,
        touches=lambda t: not _is_plain(t) and _FOREIGN.search(t),
    ),
    Rule(
        "width",
        "Full-width letters and digits, half-width katakana, the ideographic space: one form of each (ftfy).",
        _NON_ASCII,
        fix_character_width,
        optional=True,
        touches=lambda t: not t.isascii(),
    ),
    Rule(
        "nfkc",
        "Compatibility forms ('①', '㎏', 'ｆｕｌｌ') become plain ones.",
        _NON_ASCII,
        _nfkc,
        True,
        lambda t: not t.isascii(),
    ),
    Rule(
        "agencies",
        "The agency's name gives the label away without being news: '(Reuters)', 'AP - '.",
        r"[A-Za-z](?:\)| [-–—])",
        lambda t: _AGENCY.sub(" ", t),
        optional=True,
    ),
    Rule("emails", "E-mail addresses are removed.", "@", lambda t: _EMAIL.sub(" ", t), True, _holds("@")),
    Rule("mask_emails", "E-mail addresses become [email].", "@", lambda t: _EMAIL.sub("[email]", t), True, _holds("@")),
    Rule("urls", "Web addresses are removed.", "[:wW]", lambda t: _URL.sub(" ", t), True),
    Rule("mask_urls", "Web addresses become [url].", "[:wW]", lambda t: _URL.sub("[url]", t), True),
    Rule("ips", "Public IPv4 addresses are removed.", r"[^\x00-/:-~]\.", _public_ip(" "), True),
    Rule("mask_ips", "Public IPv4 addresses become [ip].", r"[^\x00-/:-~]\.", _public_ip("[ip]"), True),
    Rule(
        "control",
        "Control and zero-width characters carry no meaning and split words.",
        _CONTROL.pattern,
        lambda t: _CONTROL.sub("", t),
        touches=lambda t: not _is_plain(t) and _CONTROL.search(t),
    ),
    Rule(
        "space",
        "Runs of white space, line ends and tabs become one space.",
        f"  |[{_ODD_SPACE}]|^ | $",
        lambda t: " ".join(t.split()),
        touches=lambda t: (
            "  " in t or t[:1] == " " or t[-1:] == " " or not (_is_plain(t) or _HAS_ODD.search(t) is None)
        ),
    ),
)
EXTRA_NAMES = tuple(rule.name for rule in RULES if rule.optional)
RULE_NAMES = tuple(rule.name for rule in RULES)
DEFAULT = tuple(rule for rule in RULES if not rule.optional)
SAMPLES_PER_RULE = 3


@dataclass(slots=True)
class Tally:
    """How often each rule changed a text, with a few before/after samples.

    The samples are the shortest texts that a rule changed: the same ones in whatever order the texts come, and in
    however many blocks.
    """

    changed: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)

    def note(self, rule: Rule, before: str, after: str) -> None:
        """Count one change."""
        self.changed[rule.name] = self.changed.get(rule.name, 0) + 1
        chosen = self.chosen.setdefault(rule.name, [])
        if len(chosen) < SAMPLES_PER_RULE or len(before) <= chosen[-1][0]:
            at = next((i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), len(after))
            cut = slice(max(0, at - 40), at + 60)
            chosen.append((len(before), before[cut], after[cut]))
            self.chosen[rule.name] = fewest(chosen)


def fewest(samples: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The samples that stay, of all that were chosen so far: distinct, by rising length."""
    return sorted(set(samples))[:SAMPLES_PER_RULE]


def clean(text: str, rules: Sequence[Rule] = DEFAULT, tally: Tally | None = None) -> str:
    """Apply the rules in order.

    Args:
        text: any string without lone surrogates.
        rules: a subset of ``RULES``, in their order (see ``select``).
        tally: counts what each rule changed, when given.

    Returns:
        The cleaned text; it may be empty.
    """
    for rule in rules:
        if not rule.touches(text):
            continue
        after = rule.apply(text)
        if tally is not None and after != text:
            tally.note(rule, text, after)
        text = after
    return text


def clean_column(texts: pa.StringArray, rules: Sequence[Rule] = DEFAULT, tally: Tally | None = None) -> pa.StringArray:
    """``clean`` for every text of a column without nulls, the same to the last byte.

    RE2 finds the texts that some rule's ``guard`` matches; the others no rule would change. Later rules see
    what earlier ones made of a text, but an untouched text reaches them all as it is.
    """
    pattern = "|".join(f"(?:{rule.guard})" for rule in rules)
    touched = pc.match_substring_regex(texts, pattern)
    at = np.flatnonzero(touched.to_numpy(zero_copy_only=False))
    if not len(at):
        return texts
    cleaned = [clean(text, rules, tally) for text in texts.take(pa.array(at)).to_pylist()]
    return pc.replace_with_mask(texts, touched, pa.array(cleaned, texts.type))


def select(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules with these names, in the order of ``RULES``.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [n for n in names if n not in RULE_NAMES]
    if unknown:
        raise ValueError(f"unknown cleaning rule {unknown[0]!r}; the rules are {', '.join(RULE_NAMES)}")
    return tuple(rule for rule in RULES if rule.name in names)


def chosen(extra: Sequence[str]) -> tuple[Rule, ...]:
    """The default rules and the optional ones named, in the order of ``RULES``."""
    return tuple(rule for rule in RULES if not rule.optional or rule.name in extra)
