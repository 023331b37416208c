import json
import math
import random
import sys
import time
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import words

FILLER = ["the", "a", "of", "to", "in", "on", "said", "it", "was", "that", "new", "year"]


@pytest.fixture
def no_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)


def planted(rows=600, seed=5):
    """Two classes of the same filler, each with a word of its own, which the other one has now and then."""
    draw = random.Random(seed)
    texts, labels = [], []
    for i in range(rows):
        own, other = ("Goal", "profit") if i % 2 else ("profit", "Goal")
        body = draw.choices(FILLER, k=12)
        body.insert(4, own if draw.random() < 0.5 else draw.choice(FILLER))
        body.insert(2, other if draw.random() < 0.05 else draw.choice(FILLER))
        texts.append(" ".join(body))
        labels.append(i % 2)
    return texts, labels


def telling(found, name):
    return [one["word"] for one in found["classes"][name]["telling"]]


def test_planted_words_tell_the_classes_apart():
    found = words.profile(*planted(), ["business", "sports"])
    assert telling(found, "sports")[0] == "goal"
    assert telling(found, "business")[0] == "profit"
    first = found["classes"]["sports"]["telling"]
    assert first[0]["score"] > 5
    assert all(one["score"] < 3.5 for one in first[1:])  # the filler differs by chance only
    assert first[0]["count"] == sum("Goal" in text for text, label in zip(*planted(), strict=True) if label)


def test_score_is_the_formula_of_the_paper():
    count, everything = {"x": 6, "y": 4}, {"x": 8, "y": 22}
    [(word, score)] = words.telling_words(count, everything, 9)
    a, a0 = 0.1 * 8, 0.1 * 30
    delta = math.log((6 + a) / (10 + a0 - 6 - a)) - math.log((2 + a) / (20 + a0 - 2 - a))
    assert word == "x"
    assert score == pytest.approx(delta / math.sqrt(1 / (6 + a) + 1 / (2 + a)))


def test_a_rare_word_of_one_class_does_not_beat_a_frequent_one():
    texts = ["market market market the"] * 50 + ["game the"] * 50 + ["onlyonce market the"]
    found = words.profile(texts, [0] * 50 + [1] * 50 + [0], ["a", "b"])
    assert telling(found, "a")[0] == "market"


def test_counts_and_shares():
    found = words.profile(["One two TWO", "two three"], [0, 0], ["only"])
    assert (found["total"], found["distinct"], found["once"]) == (5, 3, 2)
    assert (found["distinct_share"], found["once_share"]) == (0.6, 0.6667)
    assert found["frequent"] == [["two", 3], ["one", 1], ["three", 1]]
    assert (found["rows"], found["of"]) == (2, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop: it’s 42nd_street!", ["don't", "it's", "stop", "42nd", "street"]),
        ("STRASSE straße", ["strasse"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("naïve cafe\u0301", ["naïve", "cafe\u0301"]),
        ("rock-n-roll 'quoted'", ["n", "quoted", "rock", "roll"]),
        ("❤️ 😀😀 👩‍💻", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    found = words.profile([text], [0], ["all"])
    assert sorted(word for word, _ in found["frequent"]) == sorted(expected)
    assert all(unicodedata.category(word[0])[0] in "LN" for word, _ in found["frequent"])


def test_the_order_of_the_rows_changes_nothing():
    texts, labels = planted()
    texts += ["中国新闻 说 今天"] * 3
    labels += [0, 1, 1]
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = words.profile([texts[i] for i in order], [labels[i] for i in order], ["a", "b"])
    assert shuffled == words.profile(texts, labels, ["a", "b"])


def test_arrow_columns_and_lists_are_the_same():
    texts, labels = planted(50)
    expected = words.profile(texts, labels, ["a", "b"])
    assert words.profile(pa.array(texts), pa.array(labels), ["a", "b"]) == expected
    assert words.profile(pa.chunked_array([texts[:20], texts[20:]]), np.array(labels), ["a", "b"]) == expected


def test_a_class_without_rows_an_only_class_and_no_rows_at_all():
    with_empty = words.profile(["red apple", "blue sky"], [0, 2], ["a", "empty", "b"])
    assert with_empty["classes"]["empty"]["total"] == 0
    assert with_empty["classes"]["empty"]["telling"] == []
    assert telling(with_empty, "a") == ["apple", "red"]
    assert words.profile(["red apple"], [0], ["only"])["classes"]["only"]["telling"] == []
    nothing = words.profile([], [], ["a", "b"])
    assert nothing["total"] == nothing["rows"] == 0
    assert nothing["frequent"] == []
    assert nothing["classes"]["a"]["once_share"] == 0.0
    assert words.profile([], [], [])["classes"] == {}


@pytest.mark.parametrize("texts", [["yes", "no"], ["😀", "🎉🎉"], ["", "..."], ["x" * 200_000, "y"]])
def test_odd_texts(texts):
    found = words.profile(texts, [0, 1], ["a", "b"])
    json.dumps(found, allow_nan=False)
    assert all(len(word) <= words.LONGEST for word, _ in found["frequent"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.integers(0, 2)), max_size=12))
def test_any_text_gives_finite_facts_that_add_up(rows):
    found = words.profile([text for text, _ in rows], [label for _, label in rows], ["a", "b", "c"])
    json.dumps(found, allow_nan=False)
    assert sum(one["total"] for one in found["classes"].values()) == found["total"]


def test_the_same_word_everywhere_tells_nothing():
    found = words.profile(["0", "0", "0 0"], [0, 1, 1], ["a", "b"])
    assert telling(found, "a") == telling(found, "b") == []
    assert found["frequent"] == [["0", 4]]


def test_the_lists_are_as_long_as_asked():
    found = words.profile(*planted(), ["a", "b"], frequent=3, telling=2)
    assert len(found["frequent"]) == 3
    assert len(found["classes"]["a"]["telling"]) == 2


@pytest.mark.usefixtures("no_jieba")
def test_chinese_without_jieba_is_cut_into_pairs():
    found = words.profile(["中国人在场", "股A跌", "カメラ"], [0, 1, 1], ["a", "b"])
    assert "pairs of characters" in found["cut"]
    assert {word for word, _ in found["frequent"]} == {"中国", "国人", "人在", "在场", "股", "a", "跌", "カメ", "メラ"}


def test_chinese_by_jieba_without_its_cache_or_its_noise(tmp_path, monkeypatch, capfd):
    jieba = pytest.importorskip("jieba")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(jieba.dt, "initialized", False)
    (tmp_path / "jieba.cache").write_bytes(b"planted by somebody else")
    texts = ["北京天安门广场", "我们在北京看书", "足球开始", "今天有足球"]
    found = words.profile(texts, [0, 0, 1, 1], ["place", "sport"])
    assert "jieba" in found["cut"]
    assert telling(found, "sport")[0] == "足球"
    assert telling(found, "place")[0] == "北京"
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]
    assert capfd.readouterr() == ("", "")


def test_jieba_segments_a_bounded_sample(monkeypatch):
    pytest.importorskip("jieba")
    monkeypatch.setattr(words, "JIEBA_CHARACTERS", 60)
    texts = [f"第{i}次足球比赛" for i in range(100)]
    found = words.profile(texts, [0] * 100, ["all"])
    assert found["of"] == 100
    assert 6 <= found["rows"] <= 9
    assert words.profile(texts[::-1], [0] * 100, ["all"]) == found


def test_a_few_ideographs_do_not_load_jieba(monkeypatch):
    def refuse():
        raise AssertionError("loaded")

    monkeypatch.setattr(words, "jieba_tokenizer", refuse)
    assert words.profile(["a long English text about the town of 北京"], [0], ["all"])["distinct"] == 9


def test_twenty_thousand_rows_take_well_under_a_second():
    draw = np.random.default_rng(1)
    vocabulary = [f"w{i}" for i in range(30_000)]
    ranks = np.minimum(draw.zipf(1.2, 20_000 * 38), 30_000) - 1
    texts = [" ".join(vocabulary[i] for i in row) for row in ranks.reshape(20_000, 38)]
    start = time.perf_counter()
    words.profile(texts, draw.integers(0, 4, 20_000), list("abcd"))
    assert time.perf_counter() - start < 5  # 0.5 s on an idle core; far off means not vectorised any more
