"""Near-duplicates through the whole of prepare: what falls, for whom, with which reason, however it is laid out."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from preparing import prepared, write_csv

from pipeline.data import dedup, near_pass
from pipeline.data.prepared import Prepared
from pipeline.data.read import Source

WORDS = [f"word{i}" for i in range(4_000)]


def sentence(generator: random.Random, words: int = 40) -> list[str]:
    return generator.choices(WORDS, k=words)


def listed(done: Prepared) -> list[dict[str, Any]]:
    return done.table("duplicates").to_pylist() if done.shards("duplicates") else []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """200 different texts to train on; the first ten again, lightly edited, in each place where they can be."""
    generator = random.Random(11)
    folder = tmp_path_factory.mktemp("rows")
    texts = [sentence(generator) for _ in range(200)]

    def edited(k: int) -> str:
        words = list(texts[k])
        words[20] = "edited"
        return " ".join(words).upper()

    label = "ab"
    train = [(" ".join(t), label[i % 2]) for i, t in enumerate(texts)]
    train += [(edited(k), label[k % 2]) for k in range(4)]  # lines 202 to 205
    train += [(edited(4), label[1]), (edited(4), label[1])]  # 206, 207: another label, and twice
    tests = [(edited(k), label[k % 2]) for k in (5, 6, 7)] + [(edited(7) + " more", "b")]
    tests += [(" ".join(sentence(generator)), label[i % 2]) for i in range(20)]
    validation = [(edited(7) + " less", "b"), (edited(8), "a")]
    validation += [(" ".join(sentence(generator)), label[i % 2]) for i in range(20)]
    parts = {"train": train, "validation": validation, "test": tests}
    return {split: write_csv(folder / f"{split}.csv", rows) for split, rows in parts.items()}


@pytest.fixture(scope="module")
def done(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("done"), files)


def test_each_falls_for_the_best_like_it(done: Prepared) -> None:
    found = {r["id"]: (r["kept_id"], r["kept_split"], r["reason"]) for r in listed(done)}
    # The originals in lines 2 to 11: those like a test or validation row fall for it, whatever stands first.
    assert found == {
        **{f"train.csv:{202 + k}": (f"train.csv:{2 + k}", "train", dedup.NEAR) for k in range(4)},
        "train.csv:206": ("train.csv:6", "train", dedup.NEAR_CONFLICT),
        "train.csv:207": ("train.csv:6", "train", dedup.NEAR_CONFLICT),
        **{f"train.csv:{7 + k}": (f"test.csv:{2 + k}", "test", dedup.NEAR_LEAK) for k in range(3)},
        "train.csv:10": ("validation.csv:3", "validation", dedup.NEAR_LEAK),
        "validation.csv:2": ("test.csv:4", "test", dedup.NEAR_LEAK),
    }  # test.csv:5 is like test.csv:4, but a test set that was given is not thinned out
    assert all(0.8 <= r["similarity"] < 1 for r in listed(done))
    ledger = done.ledger
    assert ledger["read"] == sum(ledger["kept"].values()) + ledger["duplicates"]
    assert ledger["kept"]["test"] == 24
    kept = {i for s in ("train", "validation", "test") for i in done.table(s)["id"].to_pylist()}
    assert not kept & set(found)
    assert {kept_id for kept_id, *_ in found.values()} <= kept


def test_leaks_only_and_keep(files: dict[str, str], tmp_path: Path) -> None:
    leaks = listed(prepared(tmp_path, files, "data.near_duplicates=leaks"))
    assert {r["reason"] for r in leaks} == {dedup.NEAR_LEAK, dedup.SAME}
    assert len(leaks) == 6  # train.csv:207 is the very text of 206
    keep = listed(prepared(tmp_path, files, "data.near_duplicates=keep"))
    assert [(r["id"], r["similarity"]) for r in keep] == [("train.csv:207", 1.0)]
    stricter = listed(prepared(tmp_path, files, "data.near_threshold=0.95"))
    assert sorted(r["id"] for r in stricter) == ["train.csv:207", "validation.csv:2"]


@pytest.mark.parametrize("megabytes", [0, 64], ids=["on Ray", "in process"])
def test_the_same_however_it_is_laid_out(
    megabytes: int,
    files: dict[str, str],
    done: Prepared,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(near_pass.near, "BLOCK_TEXTS", 37)
    again = prepared(tmp_path, files, f"data.in_process_mb={megabytes}")
    assert listed(again) == listed(done)


def test_a_template_repeated_a_thousand_times(tmp_path: Path) -> None:
    generator = random.Random(2)
    body = sentence(generator, 60)
    rows = [(" ".join([*body, str(i)]), "ab"[i % 2]) for i in range(1_000)]
    rows += [(" ".join(sentence(generator)), "ab"[i % 2]) for i in range(50)]
    random.Random(3).shuffle(rows)
    done = prepared(tmp_path, {"train": write_csv(tmp_path / "rows.csv", rows)})
    kept = [t for s in ("train", "validation", "test") for t in done.table(s)["text"].to_pylist()]
    assert sum(body[0] in t and body[1] in t for t in kept) == 1
    assert len(kept) == 51


@pytest.mark.parametrize("changed", [150, 4_000], ids=["alike", "unlike"])
def test_long_texts_are_compared_by_a_sample(changed: int, tmp_path: Path) -> None:
    generator = random.Random(4)
    long = [f"{generator.getrandbits(40):x}" for _ in range(9_000)]
    other = list(long)
    for k in range(changed):
        other[k * 2] = "new"
    rows = [(" ".join(long), "a"), (" ".join(other), "a"), *((" ".join(sentence(generator)), "b") for _ in range(8))]
    done = prepared(tmp_path, {"train": write_csv(tmp_path / "rows.csv", rows)})
    real = 1 - 2 * changed / 9_000
    found = [r["similarity"] for r in listed(done)]
    if changed == 150:
        assert found == pytest.approx([real / (2 - real)], abs=0.04)
    else:
        assert not found


def test_a_repetitive_text_is_judged_by_its_distinct_ngrams(tmp_path: Path) -> None:
    generator = random.Random(6)
    lines = [" ".join(sentence(generator, 12)) for _ in range(6)]
    one, two = [*lines[:4] * 200, lines[4]], [*lines[:4] * 200, lines[5]]
    rows = [(" ".join(one), "a"), (" ".join(two), "b"), *((" ".join(sentence(generator)), "b") for _ in range(8))]
    grams = [{(a, b) for a, b in itertools.pairwise(" ".join(t).split())} for t in (one, two)]
    real = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert 0.5 < real < 0.69
    assert not listed(prepared(tmp_path, {"train": write_csv(tmp_path / "rows.csv", rows)}))
    found = listed(prepared(tmp_path, {"train": str(tmp_path / "rows.csv")}, f"data.near_threshold={real - 0.01:.3f}"))
    assert [r["similarity"] for r in found] == pytest.approx([real])


def test_many_copies_leave_no_leak_behind_whatever_is_drawn(tmp_path: Path) -> None:
    """Rows that are like a row drawn to the test fall for it, however many there are and whichever stand first."""
    generator = random.Random(9)
    body = sentence(generator, 60)
    copies = []
    for _ in range(300):
        words = list(body)
        words[generator.randrange(60)] = generator.choice(WORDS)
        copies.append((" ".join(words), "a"))
    others = [(" ".join(sentence(generator)), "b") for _ in range(60)]
    path = write_csv(tmp_path / "rows.csv", [*copies, *others])
    dead = write_csv(tmp_path / "test.csv", [(c[0] + " dead", "never trained") for c in copies[:40]] + others[:2])
    for files in ({"train": path}, {"train": path, "test": dead}):
        done = prepared(tmp_path / str(len(files)), files, "data.near_threshold=0.8")
        kept = [t for s in ("train", "validation", "test") for t in done.table(s)["text"].to_pylist()]
        assert sum(len(set(t.split()) & set(body)) > 30 for t in kept) <= 12
        assert dedup.NEAR_LEAK not in done.ledger["duplicates_by_reason"], "a draw of ours makes no leak"


def test_few_pairs_at_a_time(
    files: dict[str, str], done: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_pass, "GRAMS_AT_ONCE", 50)
    assert listed(prepared(tmp_path, files)) == listed(done)


def test_codes_fill_all_buckets() -> None:
    codes = near_pass.near.band_codes(pa.array([" ".join(sentence(random.Random(i))) for i in range(400)]), 2, 0.7)
    counts = np.bincount(near_pass.exchange.bucket_of(codes.ravel(), 4), minlength=4)
    assert counts.min() > 0.8 * counts.mean()


def test_orders_of_preference() -> None:
    splits, source, row = np.array([0, 1, 2, 2]), np.array([5, 0, 3_000_000, 1]), np.array([9, 2**39, 1, 7])
    order = near_pass.orders(splits, source, row)
    assert np.argsort(order).tolist() == [3, 2, 1, 0], "test before validation before train"
    assert near_pass.split_of(order).tolist() == splits.tolist()
    assert [x.tolist() for x in near_pass.place_of(order)] == [source.tolist(), row.tolist()]


def test_no_pairs_no_texts_fall() -> None:
    empty = near_pass.compare(near_pass.PAIRS.empty_table(), near_pass.SETS.empty_table(), 0.8)
    assert empty.schema == near_pass.ALIKE
    fallen = near_pass.decide(empty, [Source("/a", "a", "train", "csv", 1)], "drop")
    assert fallen.schema == near_pass.FALLEN
    assert fallen.num_rows == 0
    assert isinstance(fallen, pa.Table)
