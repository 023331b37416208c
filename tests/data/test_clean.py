"""The cleaning rules on the debris they were written for, and what holds for any text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.clean import RULE_NAMES, RULES, Rule, Tally, clean, select

DEBRIS = [
    "#39;", " #39;s", " #36;10", "quot;", "&", "&amp;", "&lt;", "&gt;", "&#", "x1F;", "#10;", "#128;", "nbsp;", " ",
    "\t", "\r\n", "\\", "$", "<b>", "</A >", "<", ">", "<!--", "-->", "\x00", "\x0c", "\x1c", "\x85", "\u200b",
    "\u2028", "\ufeff", "\xa0", "\u3000", "é", "â€™", "ﬁ", "a\u0301", "好", "\x1b[0m", "&#xD800;", "word", "s",
]  # fmt: skip
texts = st.lists(st.sampled_from(DEBRIS) | st.text(max_size=5), max_size=8).map("".join) | st.text()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The nation #39;s banks don #39;t", "The nation's banks don't"),
        ("up by #36;10 a barrel", "up by $10 a barrel"),
        ("said quot;no quot; again", 'said "no " again'),
        ("AT amp;T", "AT &T"),
        ("&lt;b&gt;bold&lt;/b&gt; move", "bold move"),
        ('<A HREF="http://x.com/?a=1">Reuters</A> - oil', "Reuters - oil"),
        ("one\\two", "one two"),
        ("a fee of \\$5", "a fee of $5"),
        ("a List<String> of 3 <b 4", "a List<String> of 3 <b 4"),
        ("see <!-- hidden\nwords --> this", "see this"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("itâ€™s", "it's"),
        ("a\t b\r\n\u3000c", "a b c"),
        ("R#38; #1 song; issue #7", "R#38; #1 song; issue #7"),
        ("股市 &amp; 汇市", "股市 & 汇市"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("<br/>&nbsp;", ""),
    ],
)
def test_known_debris(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@given(texts)
@settings(max_examples=400, deadline=None)
@example("&#xD800;")
def test_any_text_comes_out_clean(text: str) -> None:
    out = clean(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in out)
    assert not any(c in out for c in "\u200b\u2060\ufeff")
    assert "  " not in out
    assert out == out.strip()


@pytest.mark.parametrize("rule", RULES, ids=RULE_NAMES)
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_guard_is_exact(rule: Rule, text: str) -> None:
    if rule.touches.search(text) is None:
        assert rule.apply(text) == text


def test_guards_let_no_character_through() -> None:
    for rule in RULES:
        for code in (*range(0xD800), *range(0xE000, 0x11000)):
            character = chr(code)
            if rule.touches.search(character) is None:
                assert rule.apply(character) == character, (rule.name, hex(code))


def test_tally_counts_changes_and_samples_the_first() -> None:
    tally = Tally()
    for i in range(4):
        clean(f"{'x' * 100} &lt; {i}", tally=tally)
    clean("plain", tally=tally)
    assert tally.changed == {"entities": 4}
    assert len(tally.samples) == 2
    assert "&lt; 0" in tally.samples[0]["before"]
    assert "< 0" in tally.samples[0]["after"]


def test_select_keeps_the_order_of_the_rules() -> None:
    assert [r.name for r in select(["space", "tags"])] == ["tags", "space"]
    assert clean("<b>a</b>  &amp;", select(["tags"])) == " a   &amp;"
    with pytest.raises(ValueError, match="unknown cleaning rule 'tag'"):
        select(["tag"])
