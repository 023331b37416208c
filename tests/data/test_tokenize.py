"""Tokenization against the Hugging Face tokenizer of the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.tokenize import (
    SPECIAL,
    TextTokenizer,
    pad_id,
    train_wordpiece,
    unknown_id,
    wordpiece_vocabulary,
)
from pipeline.errors import UserError

TEXTS = ["Oil prices rise again", "oil shares fall", "股市 上涨", "股市下跌, oil up", "Prices & shares"] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wordpiece")
    assert train_wordpiece(TEXTS, 200, path)["vocab_size"] <= 200
    return path


def test_ids_and_truncation_match_hugging_face(folder: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "", "🙂 unseen ŵords", "oil " * 6, "oil " * 7, "oil " * 50]
    ids, truncated = TextTokenizer(folder, 8).encode(texts)
    assert [i.tolist() for i in ids] == [reference(t, truncation=True, max_length=8)["input_ids"] for t in texts]
    assert truncated == [len(reference(t)["input_ids"]) > 8 for t in texts]
    assert truncated[-3:] == [False, True, True]


def test_common_words_are_one_token_and_chinese_characters_stand_apart(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 32)
    lengths = [len(i) - 2 for i in tokenizer.encode(["oil", "OIL shares", "股市", "rll"])[0]]
    assert lengths == [1, 2, 2, 3]


def test_arrow_ids_are_the_same(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 5)
    ids, truncated = tokenizer.encode(TEXTS)
    array, cut = tokenizer.encode_arrow(pa.array(TEXTS))
    assert array.to_pylist() == [i.tolist() for i in ids]
    assert cut.tolist() == truncated
    assert sum(truncated) > 0
    empty, none = tokenizer.encode_arrow(pa.array([], pa.string()))
    assert (len(empty), len(none)) == (0, 0)


def test_training_is_reproducible_in_any_order(folder: Path, tmp_path: Path) -> None:
    train_wordpiece(TEXTS[::-1], 200, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_vocabulary_is_bounded_and_ranked() -> None:
    words = {"aa": 5, "ab": 5, "b": 2, "once": 1}
    vocabulary = wordpiece_vocabulary(words, 100)
    assert list(vocabulary)[:9] == [*SPECIAL, "a", "##a", "##b", "b"]
    assert "aa" in vocabulary
    assert "once" not in vocabulary
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(wordpiece_vocabulary({f"w{i}": 2 for i in range(500)}, 100)) == 100


def test_pad_id_is_the_tokenizers_own(folder: Path, tmp_path: Path) -> None:
    assert pad_id(folder) == 0
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "<pad>": 3}}}))
    assert pad_id(tmp_path) == 0
    for name in ("<pad>", {"content": "<pad>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": name}))
        assert pad_id(tmp_path) == 3
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<pad>", "id": 7}]}))
    assert pad_id(tmp_path) == 7


def test_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        TextTokenizer(tmp_path, 8)


def test_the_unknown_token_of_every_kind_of_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    bytes_ = {f"<0x{i:02X}>": i + 3 for i in range(256)}
    vocabulary = {"a": 0, "[UNK]": 1, "b": 2, **bytes_}
    scored = [(piece, -1.0) for piece in vocabulary]

    def known(model: object, byte_level: bool = False) -> int | None:
        tokenizer = Tokenizer(model)
        if byte_level:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()])
        return unknown_id(tokenizer)

    assert known(models.WordLevel(vocabulary, unk_token="[UNK]")) == 1
    assert known(models.WordPiece(vocabulary, unk_token="[UNK]")) == 1
    assert known(models.BPE(vocabulary, [], unk_token="[UNK]")) == 1
    assert known(models.BPE(vocabulary, [])) is None
    assert known(models.BPE(vocabulary, [], unk_token="[UNK]", byte_fallback=True)) is None
    assert known(models.BPE(vocabulary, [], unk_token="[UNK]"), byte_level=True) is None
    assert known(models.Unigram(scored, 1, False)) == 1
    assert known(models.Unigram(scored, 1, True)) is None
    assert known(models.Unigram([], None, False)) is None
    tokenizer = TextTokenizer(folder, 32)
    assert tokenizer.unknown_id == 1
    assert [1 in ids for ids in tokenizer.encode(["oil", "ŵ"])[0]] == [False, True]
