"""Copies of training texts: what each operation may do, and that nothing but seed, id and number decides."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import augment
from pipeline.data.augment import OPERATIONS, augmented, copy_rates, vary
from pipeline.data.neighbours import Neighbours
from pipeline.errors import UserError

NEAR = Neighbours({"oil": ("petroleum", "gasoline"), "company": ("firm",), "страна": ("держава",)})
NEWS = "The oil company said on Monday that its profits had fallen by a third in the last quarter."


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def copies_of(
    texts: list[str], *operations: str, rate: float = 4, share: float = 0.1, seed: int = 17
) -> augment.Copies:
    ids = [f"file.csv:{i}" for i in range(len(texts))]
    return augmented(ids, texts, [0] * len(texts), [rate], operations or OPERATIONS, share, seed, NEAR)


def test_delete_takes_out_a_share_of_the_words_and_keeps_their_order() -> None:
    words = NEWS.split()
    for seed in range(20):
        after = (vary(NEWS, "delete", 0.2, draw(seed)) or "").split(" ")
        assert len(after) == len(words) - round(0.2 * len(words))
        left = iter(words)
        assert all(word in left for word in after)


def test_delete_leaves_a_word() -> None:
    assert {vary("oil rises", "delete", 1.0, draw(seed)) for seed in range(20)} == {"oil", "rises"}


def test_swap_moves_neighbours_only() -> None:
    seen = {vary("one two three", "swap", 0.1, draw(seed)) for seed in range(20)}
    assert seen == {"two one three", "one three two"}
    assert Counter((vary(NEWS, "swap", 0.5, draw()) or "").split()) == Counter(NEWS.split())


def test_swap_of_equal_words_is_no_change() -> None:
    assert vary("ha Ha ha", "swap", 0.5, draw()) is None


def test_typo_keeps_the_first_and_last_letter_of_each_word() -> None:
    for seed in range(50):
        after = vary(NEWS, "typo", 0.3, draw(seed)) or ""
        pairs = list(zip(NEWS.split(), after.split(), strict=True))
        changed = [(a, b) for a, b in pairs if a != b]
        assert len(changed) == round(0.3 * len(pairs))
        for before, typed in changed:
            assert (typed[0], typed[-1]) == (before[0], before[-1])
            assert len(before) - len(typed) in (0, 1)


def test_typo_keeps_capitals_and_knows_other_alphabets() -> None:
    assert all((vary("MICROSOFT", "typo", 0.1, draw(seed)) or "").isupper() for seed in range(20))
    assert all(re.fullmatch(r"с[а-я]+а", vary("страна", "typo", 0.1, draw(seed)) or "") for seed in range(20))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("company", "firm"),
        ("Company", "Firm"),
        ("COMPANY", "FIRM"),
        ("(company's),", "(firm's),"),
        ("СТРАНА", "ДЕРЖАВА"),
    ],
)
def test_neighbours_keep_case_and_what_stands_around(before: str, after: str) -> None:
    assert vary(before, "neighbours", 0.1, draw(), NEAR) == after


def test_only_known_words_have_neighbours() -> None:
    after = vary(NEWS, "neighbours", 1.0, draw(), NEAR) or ""
    changed = [(a, b) for a, b in zip(NEWS.split(), after.split(), strict=True) if a != b]
    assert [a for a, _ in changed] == ["oil", "company"]
    assert all(b in NEAR.words[a] for a, b in changed)
    assert vary("nothing known here", "neighbours", 1.0, draw(), NEAR) is None


def test_chinese_is_changed_by_the_character() -> None:
    text = "北京股市今天上涨，成交放大。"
    for seed in range(20):
        shorter, swapped = (vary(text, name, 0.1, draw(seed)) or "" for name in ("delete", "swap"))
        assert len(shorter) == len(text) - 1
        assert "，" in shorter  # punctuation is not a word
        assert shorter.endswith("。")
        assert sorted(swapped) == sorted(text)
        assert sum(a != b for a, b in zip(swapped, text, strict=True)) == 2
    assert vary(text, "typo", 0.1, draw()) is None
    assert vary("股", "delete", 0.1, draw()) is None


def test_chinese_with_latin_words_keeps_them_whole_and_its_spaces() -> None:
    for seed in range(20):
        assert "iPhone" in (vary("苹果发布 iPhone 手机", "swap", 0.1, draw(seed)) or "")
        after = vary("苹果 iPhone 手机", "delete", 0.2, draw(seed))
        assert after in ("果 iPhone 手机", "苹 iPhone 手机", "苹果 手机", "苹果 iPhone 机", "苹果 iPhone 手")


def test_thai_marks_stay_with_their_letter() -> None:
    assert {vary("ที่นี่", "delete", 0.1, draw(seed)) for seed in range(20)} == {"ที่", "นี่"}


@pytest.mark.parametrize("text", ["", " ", "...", "a", "oil!", "股", "😀", "👩‍👩‍👧", "12", " oil ", "股\u3000"])
def test_a_text_of_one_word_is_not_emptied(text: str) -> None:
    for operation in ("delete", "swap", "typo"):
        assert vary(text, operation, 1.0, draw(), NEAR) is None


def test_emoji_are_words_and_stay_whole() -> None:
    assert {vary("👩‍👩‍👧 😀", "delete", 0.5, draw(seed)) for seed in range(20)} == {"👩‍👩‍👧", "😀"}
    assert vary("👩‍👩‍👧 😀", "swap", 0.5, draw()) == "😀 👩‍👩‍👧"
    assert copies_of(["😀"]).texts == []


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["oil", "Company", "ha", "HA", "ß", "SS", "股", "市", "،", "...", "😀", "İstanbul"])).map(
        " ".join
    ),
    st.text("股市上涨，。 ab", max_size=12),
)


@given(TEXTS, st.sampled_from(OPERATIONS), st.floats(0, 1), st.integers(0, 2**32))
def test_no_operation_empties_a_text_or_returns_it(text: str, operation: str, share: float, seed: int) -> None:
    after = vary(text, operation, share, draw(seed), NEAR)
    assert after is None or (after.strip() and after.casefold() != text.casefold())


@given(st.lists(TEXTS, max_size=4), st.floats(0, 1), st.integers(0, 2**31 - 1), st.floats(0, 6))
def test_copies_are_new_to_their_source_and_trace_back_to_it(
    texts: list[str], share: float, seed: int, rate: float
) -> None:
    copies = copies_of(texts, rate=rate, share=share, seed=seed)
    assert len(set(copies.ids)) == len(copies.ids) == len(copies.texts)
    assert copies.sources == sorted(copies.sources)
    per_source: dict[int, list[str]] = {}
    for copy_id, text, source, operation in zip(
        copies.ids, copies.texts, copies.sources, copies.operations, strict=True
    ):
        assert re.fullmatch(rf"file\.csv:{source}#{operation}[1-9]", copy_id)
        assert text.strip()
        per_source.setdefault(source, [texts[source].casefold()]).append(text.casefold())
    for keys in per_source.values():
        assert len(set(keys)) == len(keys) <= 1 + np.ceil(rate)


def test_order_of_rows_and_operations_and_blocks_do_not_matter() -> None:
    ids, texts, labels = [f"x:{i}" for i in range(30)], [f"{NEWS} {i}" for i in range(30)], [i % 2 for i in range(30)]

    def made(order: list[int], operations: tuple[str, ...] = OPERATIONS, seed: int = 3) -> dict[str, str]:
        chosen = [[column[i] for i in order] for column in (ids, texts, labels)]
        copies = augmented(*chosen, [1.5, 3.0], operations, 0.1, seed, NEAR)
        assert [copy_id.split("#")[0] for copy_id in copies.ids] == [chosen[0][s] for s in copies.sources]
        return dict(zip(copies.ids, copies.texts, strict=True))

    whole = made(list(range(30)))
    assert made(list(range(29, -1, -1)), OPERATIONS[::-1]) == whole
    assert made(list(range(11))) | made(list(range(11, 30))) == whole
    assert made(list(range(30)), seed=4) != whole


def test_more_copies_leave_the_first_ones_as_they_were() -> None:
    few, many = (copies_of([NEWS], rate=rate) for rate in (2, 5))
    assert many.texts[:2] == few.texts
    assert many.ids[:2] == few.ids
    assert len(many.ids) == 5


def test_operations_take_turns_and_stand_in_for_each_other() -> None:
    assert Counter(copies_of([NEWS] * 50, rate=4).operations) == dict.fromkeys(OPERATIONS, 50)
    assert set(copies_of(["股市上涨"], rate=4).operations) == {"delete", "swap"}


def test_a_text_with_few_variants_gets_each_once() -> None:
    assert sorted(copies_of(["oil rises"], "delete", rate=9).texts) == ["oil", "rises"]


def test_fractions_of_a_copy_are_that_share_of_the_rows_of_the_class() -> None:
    texts, labels = [NEWS] * 2000, [0, 1] * 1000
    ids = [f"x:{i}" for i in range(2000)]
    copies = augmented(ids, texts, labels, [0.25, 2.5], ["delete"], 0.1, 1)
    per_row = Counter(copies.sources)
    assert {per_row[i] for i in range(0, 2000, 2)} == {0, 1}
    assert {per_row[i] for i in range(1, 2000, 2)} == {2, 3}
    assert sum(per_row[i] for i in range(0, 2000, 2)) == pytest.approx(250, abs=50)
    assert sum(per_row[i] for i in range(1, 2000, 2)) == pytest.approx(2500, abs=50)


@pytest.mark.parametrize("operations", [[], ["delete", "shout"], ["neighbours"]])
def test_wrong_operations_are_refused(operations: list[str]) -> None:
    with pytest.raises(ValueError, match="operations must be of delete"):
        augmented(["a"], [NEWS], [0], [1.0], operations, 0.1, 1)


@pytest.mark.parametrize(
    ("copies", "balance", "rates"),
    [
        (0, False, {"a": 0, "b": 0, "c": 0, "d": 0}),
        (1.5, False, {"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5}),
        (0, True, {"a": 0, "b": 1.5, "c": 10, "d": 0}),  # 40 x 2.5 = 100; 2 rows stop at 22
        (1, True, {"a": 1, "b": 4, "c": 10, "d": 1}),
        (12, True, {"a": 12, "b": 12, "c": 12, "d": 12}),
    ],
)
def test_rates(copies: float, balance: bool, rates: dict[str, float]) -> None:
    assert copy_rates({"a": 100, "b": 40, "c": 2, "d": 0}, copies, balance) == pytest.approx(rates)
    assert copy_rates({}, copies, balance) == {}


VOCABULARY = ["[UNK]", "the", "oil", "petroleum", "oils", "goal", "score", "##oil", "fig", "up", "Ġ", "café"]
WORDPIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}


def model_folder(
    folder: Path, name: str, vocabulary: list[str] = VOCABULARY, kind: str = "WordPiece", rows: int | None = None
) -> Path:
    """A made-up model: even ids point one way, odd ids nearly so, by pairs."""
    import torch
    from safetensors.torch import save_file

    model = dict(WORDPIECE) if kind == "WordPiece" else {"type": "BPE", "merges": []}
    model["vocab"] = {token: i for i, token in enumerate(vocabulary)}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    vectors = torch.full((len(vocabulary) if rows is None else rows, 4), 0.01)
    for token, axis in (("oil", 0), ("petroleum", 0), ("oils", 0), ("goal", 1), ("score", 1), ("café", 2), ("fig", 2)):
        for start in ("", "Ġ", "▁"):
            if start + token in vocabulary and vocabulary.index(start + token) < len(vectors):
                vectors[vocabulary.index(start + token), axis] = 1.0
    wrong = {"position_embeddings.weight": torch.zeros(512, 4), "encoder.dense.weight": torch.ones(64, 4)}
    save_file({name: vectors.to(torch.bfloat16), **wrong}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "embed_tokens.weight", "embedding.weight"])
def test_neighbours_of_a_model(name: str, tmp_path: Path) -> None:
    found = Neighbours.of_model(model_folder(tmp_path, name), common=1)
    near = {"oil": {"petroleum"}, "oils": {"petroleum"}, "petroleum": {"oil", "oils"}, "goal": {"score"}}
    near |= {"score": {"goal"}, "fig": {"café"}, "café": {"fig"}}  # neither 'the', 'up', 'Ġ' nor '##oil'
    assert {word: set(others) for word, others in found.words.items()} == near
    assert all(len(others) == 1 for others in Neighbours.of_model(tmp_path, most=1, common=1).words.values())


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_neighbours_of_marked_vocabularies_are_words_that_begin_with_the_mark(mark: str, tmp_path: Path) -> None:
    tokens = [mark + token for token in ("the", "oil", "petroleum", "goal", "score")]
    folder = model_folder(tmp_path, "wte.weight", [*tokens, "oils", "leum"], "BPE", rows=64)  # a padded vocabulary
    assert Neighbours.of_model(folder, common=1).words == {
        "oil": ("petroleum",), "petroleum": ("oil",), "goal": ("score",), "score": ("goal",)
    }  # fmt: skip


def test_neighbours_round_trip(tmp_path: Path) -> None:
    found = Neighbours.of_model(model_folder(tmp_path, "wte.weight"), common=1)
    found.save(tmp_path / "neighbours.parquet")
    assert Neighbours.load(tmp_path / "neighbours.parquet") == found
    again = io.BytesIO()
    found.save(again)
    again.seek(0)
    assert Neighbours.load(again) == found
    Neighbours({}).save(tmp_path / "none.parquet")
    assert Neighbours.load(tmp_path / "none.parquet") == Neighbours({})


def test_a_folder_without_embeddings_or_words_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer.json: leave 'neighbours' out"):
        Neighbours.of_model(tmp_path)
    with pytest.raises(UserError, match="too few whole words"):
        Neighbours.of_model(model_folder(tmp_path, "wte.weight"))
    with pytest.raises(UserError, match="token embeddings of 12 rows or more"):
        Neighbours.of_model(model_folder(tmp_path, "head.weight"), common=1)
    with pytest.raises(UserError, match="token embeddings of 12 rows or more"):
        Neighbours.of_model(model_folder(tmp_path, "wte.weight", rows=5), common=1)
