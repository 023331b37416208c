"""The cleaning rules: small pure functions, each with a name and a reason, applied in a fixed order.

Training and serving call the same ``clean``; a checkpoint records ``VERSION`` and the rules it was trained
with, so that a served text is cleaned exactly as the training rows were.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ftfy

VERSION = 1  # raise it whenever a rule's output changes: prepared data is then made anew


@dataclass(frozen=True, slots=True)
class Rule:
    """One cleaning rule.

    Attributes:
        name: the word used in the configuration, the report and the checkpoint.
        reason: why the rule exists, in one sentence.
        touches: a cheap test; when it finds nothing, ``apply`` would return the text unchanged.
        apply: the rule itself.
    """

    name: str
    reason: str
    touches: re.Pattern[str]
    apply: Callable[[str], str]


_LOST_NUMERIC = re.compile(r"(?<![&\w])#(\d{2,5});")
_LOST_APOSTROPHE = re.compile(r"\s?(?<!&)#(?:39|146|8217);(?=(?:s|t|d|m|re|ve|ll)\b)")
_LOST_NAMED = re.compile(r"(?<![&\w])(quot|amp|lt|gt|nbsp|hellip|mdash|ndash|rsquo|lsquo|rdquo|ldquo|eacute);")


def _lost_entities(text: str) -> str:
    text = _LOST_APOSTROPHE.sub("'", text)
    text = _LOST_NUMERIC.sub(lambda m: html.unescape(f"&#{m[1]};"), text)
    return _LOST_NAMED.sub(lambda m: html.unescape(f"&{m[1]};"), text)


# Only real HTML elements: "List<String>" and "a <b" keep their angle brackets.
_ELEMENTS = (
    "a|abbr|acronym|address|article|aside|b|base|big|blockquote|body|br|button|caption|center|cite|code|col|dd|del|"
    "div|dl|dt|em|embed|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|"
    "link|main|meta|nav|noscript|object|ol|option|p|param|pre|q|s|script|section|select|small|span|strike|strong|"
    "style|sub|sup|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video"
)
_TAG = re.compile(rf"</?(?:{_ELEMENTS})(?:\s[^<>]{{0,2000}})?/?>|<!--.{{0,2000}}?-->", re.IGNORECASE | re.DOTALL)
_ESCAPED = re.compile(r"\\(?=[$\"'&#%_])")
_FTFY = ftfy.TextFixerConfig(unescape_html=False, fix_character_width=False, explain=False)
# C0 and C1 controls but tab and line ends, zero-width space, word joiner, BOM. The joiners U+200C and U+200D
# stay: emoji and several scripts need them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
_SPACE = re.compile(r"\s+")

RULES: tuple[Rule, ...] = (
    Rule(
        "lost_entities",
        "AG News and other scraped feeds hold entities that lost their ampersand: ' #39;s', ' #36;10', 'quot;'.",
        re.compile(r"#\d{2,5};|(?:quot|amp|[lg]t|nbsp|hellip|[mn]dash|[lr][sd]quo|eacute);"),
        _lost_entities,
    ),
    Rule("entities", "HTML entities stand for characters: '&lt;', '&#233;'.", re.compile("&"), html.unescape),
    Rule(
        "tags",
        "Mark-up is not language: '<b>', '<A HREF=...>' (the words between tags stay).",
        re.compile("<"),
        lambda t: _TAG.sub(" ", t),
    ),
    Rule(
        "backslashes",
        r"AG News writes '\' where a line break was, and '\$' for '$'.",
        re.compile(r"\\"),
        lambda t: _ESCAPED.sub("", t).replace("\\", " "),
    ),
    Rule(
        "mojibake",
        "Text decoded with the wrong code page ('â€™' for an apostrophe), ligatures, NFC (ftfy).",
        re.compile(r"[^\x00-\x7f]|[\x00-\x08\x0b-\x1f\x7f]"),
        lambda t: ftfy.fix_text(t, _FTFY),
    ),
    Rule(
        "control",
        "Control and zero-width characters carry no meaning and split words.",
        _CONTROL,
        lambda t: _CONTROL.sub("", t),
    ),
    Rule(
        "space",
        "Runs of white space, line ends and tabs become one space.",
        re.compile(r"\s\s|[^\S ]|^\s|\s$"),
        lambda t: _SPACE.sub(" ", t).strip(),
    ),
)
RULE_NAMES = tuple(rule.name for rule in RULES)


@dataclass(slots=True)
class Tally:
    """How often each rule changed a text, with the first few before/after samples."""

    changed: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    samples_per_rule: int = 2

    def note(self, rule: Rule, before: str, after: str) -> None:
        """Count one change."""
        n = self.changed[rule.name] = self.changed.get(rule.name, 0) + 1
        if n <= self.samples_per_rule:
            at = next((i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), len(after))
            cut = slice(max(0, at - 40), at + 60)
            self.samples.append({"rule": rule.name, "before": before[cut], "after": after[cut]})


def clean(text: str, rules: Sequence[Rule] = RULES, tally: Tally | None = None) -> str:
    """Apply the rules in order.

    Args:
        text: any string without lone surrogates.
        rules: a subset of ``RULES``, in their order (see ``select``).
        tally: counts what each rule changed, when given.

    Returns:
        The cleaned text; it may be empty.
    """
    for rule in rules:
        if rule.touches.search(text) is None:
            continue
        after = rule.apply(text)
        if tally is not None and after != text:
            tally.note(rule, text, after)
        text = after
    return text


def select(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules with these names, in the order of ``RULES``.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [n for n in names if n not in RULE_NAMES]
    if unknown:
        raise ValueError(f"unknown cleaning rule {unknown[0]!r}; the rules are {', '.join(RULE_NAMES)}")
    return tuple(rule for rule in RULES if rule.name in names)
