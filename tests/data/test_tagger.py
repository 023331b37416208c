import json
import random
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tagger

ENGLISH = [
    ("The cat sat on the mat.", "DET NOUN VERB ADP DET NOUN", "NP VP PP NP"),
    (
        "Three Palestinians were killed by Israeli soldiers in Gaza, officials said.",
        "NUM PROPN VERB VERB ADP ADJ NOUN ADP PROPN NOUN VERB",
        "NP VP PP NP PP NP NP VP",
    ),
    ("She hasn't decided whether to run for president.", "PRON VERB ADV VERB ADP PART VERB ADP NOUN", None),
    ("Google's new phone is very cheap.", "PROPN PART ADJ NOUN VERB ADV ADJ", None),
    ("There is a man who walks his dog every morning.", "PRON VERB DET NOUN PRON VERB PRON NOUN DET NOUN", None),
    ("Wow! They quickly finished the exam.", "INTJ PRON ADV VERB DET NOUN", "NP VP NP"),
    ("Oil and gas prices fell 2.5 percent.", "PROPN CCONJ NOUN NOUN VERB NUM NOUN", None),  # 'Oil': at the start
]
CHINESE = [
    ("我爱北京天安门。", "PRON VERB PROPN PROPN"),
    ("他在上海的一家公司工作了三年", "PRON ADP PROPN PART NUM NOUN VERB PART NUM"),
    ("苹果发布iPhone手机", "NOUN VERB X NOUN"),
]
CATS = ["The old cat slept on the warm mat.", "He gave the dog a bone and it was happy with this."]


@pytest.fixture
def english():
    pytest.importorskip("textblob")


@pytest.fixture
def chinese():
    pytest.importorskip("jieba")


@pytest.mark.usefixtures("english")
@pytest.mark.parametrize(("text", "parts", "chunks"), ENGLISH)
def test_english_sentences(text, parts, chunks):
    _, tag = tagger._english()
    tagged = tag(text)
    assert " ".join(part for sentence, _ in tagged for part in sentence) == parts
    if chunks is not None:
        assert " ".join(chunk for _, found in tagged for chunk in found) == chunks


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(("text", "parts"), CHINESE)
def test_chinese_sentences(text, parts):
    _, tag = tagger._chinese()
    [(found, chunks)] = tag(text)
    assert " ".join(found) == parts
    assert chunks == []


@pytest.mark.usefixtures("english")
def test_shares_by_class():
    texts = ["They walk to the house and then they eat."] * 5 + ["The big red house of the very old man."] * 5
    found = tagger.profile(texts, [0] * 5 + [1] * 5, ["verbs", "adjectives"])
    verbs, adjectives = found["classes"]["verbs"], found["classes"]["adjectives"]
    assert found["language"] == "English"
    assert found["tagger"].startswith("TextBlob ")
    assert verbs["words"] == adjectives["words"] == 45
    assert verbs["parts"]["VERB"] == pytest.approx(2 / 9, abs=1e-4)
    assert adjectives["parts"]["ADJ"] == pytest.approx(3 / 9, abs=1e-4)
    assert "VERB" not in adjectives["parts"]
    for one in found["classes"].values():
        assert sum(one["parts"].values()) == pytest.approx(1, abs=0.001)
        assert sum(one["chunks"].values()) == pytest.approx(1, abs=0.001)
    assert set(found["parts"]) <= set(tagger.PARTS)
    assert found["parts"][0] == "NOUN"
    json.dumps(found, allow_nan=False)


@pytest.mark.usefixtures("english")
def test_the_order_of_the_rows_changes_nothing_even_where_the_sample_is_cut():
    draw = random.Random(2)
    pool = ["the", "of", "and", "cat", "dog", "house", "runs", "quickly", "London", "seven", "with", "they"]
    texts = [" ".join(draw.choices(pool, k=12)) + "." for _ in range(200)]
    labels = [i % 2 for i in range(200)]
    found = tagger.profile(texts, labels, ["a", "b"], words_per_class=100)
    assert found["words_per_class"] == found["classes"]["a"]["words"] == 100
    assert found["words"] == 200
    order = draw.sample(range(200), 200)
    arrow = pa.array([texts[i] for i in order]), np.array([labels[i] for i in order])
    assert tagger.profile(*arrow, ["a", "b"], words_per_class=100) == found


@pytest.mark.usefixtures("english")
def test_many_classes_share_the_bound():
    texts = CATS * 300
    found = tagger.profile(texts, [i % 600 for i in range(600)], [f"c{i}" for i in range(600)])
    assert found["words_per_class"] == tagger.WORDS_IN_ALL["English"] // 600
    assert found["words"] <= tagger.WORDS_IN_ALL["English"]


@pytest.mark.usefixtures("english")
def test_a_class_without_rows_and_an_only_class():
    found = tagger.profile(CATS, [0, 0], ["a", "empty"])
    assert found["classes"]["empty"] == {"words": 0, "parts": {}, "chunks": {}}
    assert tagger.profile(CATS, [0, 0], ["only"])["classes"]["only"]["words"] == 20


@pytest.mark.parametrize("texts", [[], ["😀", "🎉🎉"], ["", "..."], ["yes", "no"], ["123", "4"]])
def test_texts_that_tell_no_language(texts):
    found = tagger.profile(texts, list(range(len(texts))), ["a", "b"])
    assert (found["tagger"], found["language"]) == (None, None)
    assert found["why"]


@pytest.mark.usefixtures("english")
def test_odd_texts_among_english_ones():
    odd = ["", "word", "😀🎉", "x" * 500_000, "'" * 5_000, "very " * 3_000, "a/b/c w/o and/or", "NN|JJ &slash; / //"]
    start = time.perf_counter()
    found = tagger.profile(CATS * 40 + odd, [0] * 80 + [1] * len(odd), ["a", "odd"])
    assert time.perf_counter() - start < 10
    assert found["classes"]["odd"]["words"] > 400
    assert sum(found["classes"]["odd"]["parts"].values()) == pytest.approx(1, abs=0.001)


@pytest.mark.usefixtures("english")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*"aI.,'!?-/&|$%0 7\n’Üह", " very", " not", " will", " do", "n't", "'s", " the", " to"]))
)
def test_any_text_can_be_tagged(pieces):
    _, tag = tagger._english()
    for parts, chunks in tag("".join(pieces)):
        assert set(parts) <= set(tagger.PARTS)
        assert set(chunks) <= set(tagger.CHUNKS)


@pytest.mark.usefixtures("chinese")
def test_chinese_shares(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    texts = [text for text, _ in CHINESE]
    found = tagger.profile(texts, [0, 0, 1], ["a", "b"])
    assert found["language"] == "Chinese"
    assert found["tagger"].startswith("jieba ")
    assert found["chunks"] == []
    assert found["classes"]["b"]["parts"] == {"NOUN": 0.5, "VERB": 0.25, "X": 0.25}
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "language", "package"), [(CATS, "English", "TextBlob"), ([CHINESE[1][0]], "Chinese", "jieba")]
)
def test_without_a_tagger_the_result_says_what_to_install(texts, language, package, monkeypatch):
    for module in ("textblob", "textblob.en", "jieba", "jieba.posseg"):
        monkeypatch.setitem(sys.modules, module, None)
    found = tagger.profile(texts, [0] * len(texts), ["a"])
    assert (found["tagger"], found["language"]) == (None, language)
    assert "install broadsheet[profile]" in found["why"]
    assert package in found["why"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wall St. Bears Claw Back Into the Black", "English"),
        ("I can’t believe that it's over, and you?", "English"),
        ("词汇阅读是关键 08年考研暑期英语复习全指南", "Chinese"),
        ("上证50ETF净申购突增", "Chinese"),
        ("東京で新しい映画が公開された。彼はとても喜んでいる。", None),
        ("Die Regierung hat beschlossen, in diesem Jahr mehr Geld für die Schulen auszugeben.", None),
        ("Regeringen har besluttet at skære ned, og det er ikke for sent at gøre noget for dem her.", None),
        ("Le gouvernement a décidé de réduire les aides, mais on ne sait pas encore pour qui.", None),
        ("Правительство решило сократить расходы.", None),
        ("", None),
    ],
)
def test_language(text, language):
    assert tagger.language([text]) == language


def test_a_few_english_texts_do_not_make_german_english():
    german = "Die Regierung hat beschlossen, in diesem Jahr mehr Geld für die Schulen auszugeben."
    assert tagger.language([german] * 20 + CATS) is None
