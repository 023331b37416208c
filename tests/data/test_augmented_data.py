"""Changed copies in prepared data: beside the training rows only, traced to their rows, the same however made."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from preparing import prepared, write_csv

from pipeline.data.prepared import Prepared
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """90 rows of class a, 30 of class b."""
    generator = random.Random(8)
    words = [f"{generator.getrandbits(20):x}" for _ in range(500)]
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    texts = (" ".join(generator.choices(words, k=12)) for _ in range(120))
    return {"train": write_csv(path, ((text, "ab"[i % 4 == 0]) for i, text in enumerate(texts)))}


def listed(done: Prepared, split: str = "train") -> list[dict[str, Any]]:
    return done.table(split).drop_columns(["input_ids"]).to_pylist()


def test_copies_are_traced_and_only_in_train(rows: dict[str, str], tmp_path: Path) -> None:
    plain = prepared(tmp_path / "plain", rows)
    done = prepared(tmp_path, rows, "data.augment=delete,swap", "data.augment_copies=2")
    train = {r["id"]: r for r in listed(done)}
    copies = [r for r in train.values() if r["augmentation"]]
    originals = [r for r in train.values() if not r["augmentation"]]
    assert originals == listed(plain)
    assert len(copies) == 2 * len(originals)
    assert Counter(r["augmentation"] for r in copies) == done.ledger["augmented"]
    assert set(done.ledger["augmented"]) == {"delete", "swap"}
    for copy in copies:
        source = train[copy["augmented_from"]]
        assert copy["label"] == source["label"]
        assert copy["text"] != source["text"]
        assert copy["id"].startswith(source["id"] + "#" + copy["augmentation"])
    for split in ("validation", "test"):
        assert listed(done, split) == listed(plain, split)
    assert done.ledger["kept"] == plain.ledger["kept"], "what was made is no part of what was read"
    assert done.rows("train") == len(train) == len(done.tokens("train"))
    assert done.profile["classes"] == plain.profile["classes"]


def test_small_classes_are_raised(rows: dict[str, str], tmp_path: Path) -> None:
    sets = ["data.augment=delete,swap,typo", "data.augment_copies=0", "data.augment_balance=true"]
    counts = Counter(r["label"] for r in listed(prepared(tmp_path, rows, *sets)))
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_on_ray_the_same(
    rows: dict[str, str], tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sets = ["data.augment=typo", "data.augment_copies=0.5"]
    one, two = (prepared(tmp_path / mb, rows, *sets, f"data.in_process_mb={mb}") for mb in ("0", "64"))
    assert listed(one) == listed(two)
    assert any(r["augmentation"] for r in listed(one))


def test_an_unknown_operation_is_refused(rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.augment"):
        prepared(tmp_path, rows, "data.augment=paraphrase")
