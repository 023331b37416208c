"""Ids by the word equal the tokenizer's own, for every family that is cut, on texts made to break it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.data import wordcache
from pipeline.data.clean import clean
from pipeline.data.tokenize import TextTokenizer, train_wordpiece

TORTURE = [
    "", " ", "a", "the cup, the cup. (the cup)", "[CLS] a [SEP] b[SEP]c [MASK] [UNK]x[PAD]", "[ SEP]", "U.S.-led",
    "naïve café e\u0301 e \u0301x \u0301", "ΣΑΣ ΣΑΣ. İstanbul ǅ ß ﬁ", "👩\u200d🔬 🏳️\u200d🌈 🇩🇪a 😀😀",
    "股市 上涨oil股 ", "a股b", "ｆｕｌｌ　ｗｉｄｔｈ １２３", "﹏。、《书》“引”", "ab\x00c\x07d\ufffd\x85e\x1cf",
    "\u3400\U00020000\uf900\U0002f800 \u2ceb", "a\u00a0b\u2003c\u2028d\u200be\u3000f\u180eg", "tab\tnew\nline\r\nend",
    "x" * 99, "x" * 100, "x" * 101, "好" * 300, "0x1F $10.50 #39;s a_b a-b a--b 'tis it's", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "مرحبا بالعالم", "שָׁלוֹם",
    "한국어 각", "q\u0323\u0307 q\u0307\u0323", "ｶﾞ ｶ\uff9e",
    "\ufeffbom \u2060joiner", "a  b   c", " lead and trail ", "\U0010ffff \ue000",
]  # fmt: skip
PIECES = [
    "a", "oil", "股", "好", " ", "  ", "\t", "\n", "\u3000", "\xa0", "\u0301", "\u200d", "[SEP]", "[", "]", "'s", "'",
    "Σ", "Oil", "OIL_", "_", "U.S.", "x1Y", "-", "!\u0338", "İ", "😀", ".", ",", "é", "1", "\x00", "\x85", "\u2028",
    "the", "<mask>", "Ġ", "\u180e", "\ufeff",
]  # fmt: skip
texts = st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=12), max_size=6)


def wordpiece(folder: Path) -> Path:
    train_wordpiece([*TORTURE, "the oil cup is in the news"] * 3, 900, folder)
    return folder


def cased(folder: Path) -> Path:
    """BERT without lower case, without Chinese characters apart, with an added token that is an ordinary word."""
    wordpiece(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False, strip_accents=False)
    tokenizer.add_tokens([AddedToken("oil", single_word=True), AddedToken("U.S.", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def bytelevel(folder: Path) -> Path:
    """The shape of RoBERTa: byte-level BPE, ``<s>`` and ``</s>``, a mask that swallows the space before it."""
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", AddedToken("<mask>", lstrip=True)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([*TORTURE, "the oil cup is in the news " * 4], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=[wordpiece, cased, bytelevel])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("tokenizer"))  # type: ignore[no-any-return]


def same(tokenizer: TextTokenizer, rows: list[str]) -> None:
    ids, truncated = tokenizer.encode(rows)
    array, cut = tokenizer.encode_arrow(pa.array(rows, pa.string()))
    assert array.to_pylist() == [i.tolist() for i in ids]
    assert cut.tolist() == truncated


@pytest.mark.parametrize("max_tokens", [3, 8, 512])
def test_torture(folder: Path, max_tokens: int) -> None:
    tokenizer = TextTokenizer(folder, max_tokens)
    assert tokenizer._cache is not None
    same(tokenizer, TORTURE)
    same(tokenizer, TORTURE[::-1])  # now from memory


def test_any_text(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 16)

    @given(texts)
    @settings(max_examples=300, deadline=None)
    def check(rows: list[str]) -> None:
        same(tokenizer, rows)

    check()


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordcache, "MAX_PIECES", 50)
    monkeypatch.setattr(wordcache, "BLOCK_TEXTS", 7)
    tokenizer = TextTokenizer(folder, 64)
    rows = [f"{t} {i} {i * 7919}" for i, t in enumerate(TORTURE * 3)]
    same(tokenizer, rows)
    assert tokenizer._cache is not None
    assert len(tokenizer._cache.cache._at) < 250


def test_what_is_not_proven_is_not_cut(folder: Path) -> None:
    def family(change: object) -> object:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(tokenizer)  # type: ignore[operator]
        return wordcache.cutting(tokenizer)

    assert family(lambda t: None) is not None
    assert family(lambda t: t.add_tokens(["New York"])) is None
    assert family(lambda t: t.add_tokens([AddedToken("greedy", rstrip=True)])) is None
    assert family(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace())) is None
    assert family(lambda t: setattr(t, "normalizer", normalizers.NFKC())) is None


def test_an_added_ideograph_is_not_cut_apart(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(wordpiece(tmp_path) / "tokenizer.json"))
    tokenizer.add_tokens(["股市"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    same(TextTokenizer(tmp_path, 32), ["股市上涨", "a股市b 股 市"])


@pytest.mark.skipif("BROADSHEET_DATA" not in os.environ, reason="reads real news from BROADSHEET_DATA")
def test_real_news(folder: Path) -> None:
    data = Path(os.environ["BROADSHEET_DATA"])
    tokenizer = TextTokenizer(folder, 128)
    same(tokenizer, [clean(t) for t in pq.read_table(data / "ag_news/test.parquet")["text"].to_pylist()])
    lines = (data / "thucnews/test.txt").read_text(encoding="utf-8").splitlines()
    same(tokenizer, [line.rpartition("\t")[0] for line in lines])


def test_raw_tokens_that_are_plain_words_are_found(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(wordpiece(tmp_path) / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("xxbos", special=True, normalized=False), AddedToken("<mask>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    same(TextTokenizer(tmp_path, 32), ["xxbos", "XXBOS", "a xxbos b", "a <MASK> b", "a <mask> b"])
