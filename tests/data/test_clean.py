"""The cleaning rules on the debris they were written for, and what holds for any text."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.clean import EXTRA_NAMES, RULE_NAMES, RULES, Rule, Tally, chosen, clean, clean_column, select

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
        ("&amp;lt;b&amp;gt;twice", "twice"),
        ("?a=1&copy=2 &notit; Q&A;", "?a=1&copy=2 &notit; Q&A;"),
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
    if not rule.touches(text) or re.search(rule.guard, text) is None:
        assert rule.apply(text) == text


def test_guards_let_no_character_through() -> None:
    for rule in RULES:
        for code in (*range(0xD800), *range(0xE000, 0x11000)):
            character = chr(code)
            if not rule.touches(character) or re.search(rule.guard, character) is None:
                assert rule.apply(character) == character, (rule.name, hex(code))


def test_tally_counts_changes_and_samples_the_same_in_any_order() -> None:
    rows = [f"{'x' * 100} &lt; {i}" for i in range(20)]
    one, two = Tally(), Tally()
    for text in [*rows, "plain"]:
        clean(text, tally=one)
    for text in rows[::-1]:
        clean(text, tally=two)
    assert one.changed == two.changed == {"entities": 20}
    assert one.chosen == two.chosen
    samples = one.chosen["entities"]
    assert len(samples) == 3
    assert all("&lt;" in before and "<" in after and len(before) <= 100 for _, before, after in samples)


@given(st.lists(texts, max_size=6), st.sets(st.sampled_from(EXTRA_NAMES)))
@settings(max_examples=300, deadline=None)
def test_a_column_is_cleaned_as_its_rows_are(rows: list[str], extra: set[str]) -> None:
    rules = chosen(sorted(extra))
    one, two = Tally(), Tally()
    expected = [clean(text, rules, one) for text in rows]
    assert clean_column(pa.array(rows, pa.string()), rules, two).to_pylist() == expected
    assert one == two


@pytest.mark.parametrize("rule", RULES, ids=RULE_NAMES)
def test_both_engines_read_the_guards_alike(rule: Rule) -> None:
    characters = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x11000), 0x1F600, 0x20000)]
    for text in (characters, [f"1{c}." for c in characters], [f"a{c} - #10;" for c in characters]):
        found = pc.match_substring_regex(pa.array(text), rule.guard).to_pylist()
        assert found == [re.search(rule.guard, t) is not None for t in text]


SAFE = "".join(c for c in map(chr, range(0x3000, 0xFF60)) if not RULES[4].touches(c))


@given(st.text(alphabet=st.sampled_from(SAFE) | st.characters(min_codepoint=32, max_codepoint=126)))
@settings(max_examples=500, deadline=None)
def test_ftfy_leaves_plain_chinese_alone(text: str) -> None:
    assert RULES[4].name == "mojibake"
    assert len(SAFE) > 20_000
    assert RULES[4].apply(text) == text


@pytest.mark.parametrize(
    ("extra", "raw", "expected"),
    [
        ("width", "ＡＢＣ１２３，股市", "ABC123,股市"),
        ("nfkc", "①㎏ ｆｕｌｌ", "1kg full"),
        ("agencies", "NEW YORK (Reuters) - Oil fell. AP - The AP said", "NEW YORK Oil fell. The AP said"),
        ("agencies", "a pre-AP - course (CNN)", "a pre-AP - course (CNN)"),
        ("urls", "see https://x.com/a?b=1, or www.y.org.", "see , or ."),
        ("mask_urls", "见https://x.com/a路径，好", "见[url]路径，好"),
        ("mask_urls", "at http://x.com!", "at [url]!"),
        ("mask_urls", "https://www.example.com/this http://is.gd www.kiss.com", "[url] [url] [url]"),
        ("emails", "mail a.b+c@d-e.co.uk now", "mail now"),
        ("mask_emails", "联系a@b.cn。", "联系[email]。"),
        ("mask_emails", "x@y is none, x@y.de is", "x@y is none, [email] is"),
        (
            "ips",
            "from 8.8.8.8 to 192.168.0.1, v1.2.3.4.5 and 300.1.1.1",
            "from to 192.168.0.1, v1.2.3.4.5 and 300.1.1.1",
        ),
        ("mask_ips", "8.8.4.4", "[ip]"),
    ],
)
def test_optional_rules(extra: str, raw: str, expected: str) -> None:
    assert clean(raw, chosen([extra])) == expected


def test_select_keeps_the_order_of_the_rules() -> None:
    assert [r.name for r in select(["space", "tags"])] == ["tags", "space"]
    assert clean("<b>a</b>  &amp;", select(["tags"])) == " a   &amp;"
    with pytest.raises(ValueError, match="unknown cleaning rule 'tag'"):
        select(["tag"])


def test_marks_of_every_class_are_stacked_thirty_high_at_most() -> None:
    """Sorting more of them takes time that grows with the square of their number: a request of seconds, on purpose."""
    classes = {unicodedata.combining(c): c for c in map(chr, range(0x110000))}
    del classes[0]
    below = "\u0334"  # of the lowest class: each other one has to be moved behind it
    for mark in [*classes.values(), "\u0f73", "\uff9e"]:  # these two come apart into marks
        assert len(clean("x" + (mark + below) * 1_000)) < 80, hex(ord(mark))
    assert clean("x" + (below + "\u0301") * 10) == "x" + below * 10 + "\u0301" * 10


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<!--", "-->", "-", ">", "<b>", "<", "x", "y" * 1_999, "y" * 2_001]), max_size=9))
def test_comments_end_where_a_pattern_says_so(parts: list[str]) -> None:
    text = "".join(parts)
    (tags,) = select(["tags"])
    assert tags.apply(text) == re.sub(r"</?b>|<!--.{0,2000}?-->", " ", text, flags=re.DOTALL)
