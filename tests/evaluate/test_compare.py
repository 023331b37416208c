"""Two runs side by side: aligned by row and class, tested exactly, told in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate import compare
from pipeline.evaluate.predictions import Predictions
from pipeline.storage import Place

NAMES = ["a", "b"]


def predictions(guesses: np.ndarray, labels: np.ndarray, names: list[str] | None = None) -> Predictions:
    names = names or NAMES
    scores = np.full((len(labels), len(names)), 0.2 / (len(names) - 1))
    scores[np.arange(len(labels)), guesses] = 0.8
    return Predictions([f"t.csv:{i}" for i in range(len(labels))], labels, scores, names, "test")


def two(rows: int, only_a: int, only_b: int, both_wrong: int = 5) -> tuple[Predictions, Predictions]:
    """Two sides of which one alone is right on so many rows."""
    labels = np.arange(rows) % 2
    at = np.arange(rows)
    wrong_b = (at < only_a) | (at >= rows - both_wrong)
    wrong_a = ((at >= only_a) & (at < only_a + only_b)) | (at >= rows - both_wrong)
    return tuple(predictions(np.where(wrong, 1 - labels, labels), labels) for wrong in (wrong_a, wrong_b))  # type: ignore[return-value]


def test_mcnemar_by_hand() -> None:
    a, b = two(200, 8, 1)
    result = compare.compare(a, b, seed=1)
    assert (result["only_a"], result["only_b"]) == (8, 1)
    # Two-sided: 2 * (C(9,0) + C(9,1)) / 2**9
    assert result["p"] == pytest.approx(2 * 10 / 512)
    assert result["difference"]["value"] == pytest.approx(7 / 200)
    assert result["a"]["accuracy"] == pytest.approx(194 / 200)


def test_the_interval_is_that_of_paired_rows() -> None:
    """Standard error of a paired difference: sqrt((b + c - (b - c)^2 / n)) / n (Agresti 2013, 11.1)."""
    a, b = two(2_000, 90, 50)
    result = compare.compare(a, b, seed=1)
    error = np.sqrt(140 - 40**2 / 2_000) / 2_000
    assert result["difference"]["interval"] == pytest.approx([0.02 - 1.96 * error, 0.02 + 1.96 * error], abs=0.0012)
    low, high = result["difference_macro_f1"]["interval"]
    assert low < result["difference_macro_f1"]["value"] < high


@pytest.mark.parametrize(
    ("only_a", "only_b", "said"),
    [
        (40, 10, "x is better: +1.50 points of accuracy (95% +"),
        (10, 40, "y is better: +1.50 points of accuracy (95% +"),
        (12, 10, "no significant difference: x +0.10 points of accuracy (95% -"),
        (10, 12, "no significant difference: y +0.10 points of accuracy (95% -"),
        (10, 10, "no difference in accuracy, McNemar p=1"),
        (0, 0, "no difference in accuracy, McNemar p=1"),
    ],
)
def test_the_verdict(only_a: int, only_b: int, said: str) -> None:
    result = compare.compare(*two(2_000, only_a, only_b), seed=1)
    assert compare.verdict(result, ("x", "y")).startswith(said)
    table = compare.table(result)
    assert [row[0] for row in table] == ["accuracy", "macro F1", "log loss", "calibration error", "F1 of a", "F1 of b"]


def test_other_orders_of_rows_and_classes_are_aligned(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 0])
    a = predictions(np.array([0, 1, 2, 1]), labels, ["a", "b", "c"])
    order, classes = [2, 0, 3, 1], [1, 2, 0]  # classes c, a, b of the other side
    names = ["c", "a", "b"]
    b = Predictions(
        [a.ids[i] for i in order], np.array([classes[v] for v in labels[order]]),
        a.probabilities[order][:, [2, 0, 1]], names, "test",
    )  # fmt: skip
    b.save(Place.of(tmp_path))
    again = compare.aligned(a, Predictions.load(str(tmp_path)), ("A", "B"))
    assert again.ids == a.ids
    assert again.labels.tolist() == labels.tolist()
    assert again.probabilities == pytest.approx(a.probabilities, abs=1e-6)
    assert again.names == a.names


def test_what_cannot_be_compared() -> None:
    a, _ = two(20, 2, 1)
    fewer, _ = two(15, 2, 1)
    with pytest.raises(UserError, match=r"A and B were tested on different rows \(20 and 15, 15 in common\)"):
        compare.aligned(a, fewer, ("A", "B"))
    with pytest.raises(UserError, match="different classes"):
        compare.aligned(a, predictions(a.labels, a.labels, ["a", "c"]), ("A", "B"))
    changed = a.labels.copy()
    changed[3] = 1 - changed[3]
    with pytest.raises(UserError, match=r"row t.csv:3 is labelled 'b' in A and 'a' in B"):
        compare.aligned(a, predictions(a.labels, changed), ("A", "B"))


def test_predictions_are_found_beside_a_checkpoint_and_missed_with_a_way_out(tmp_path: Path) -> None:
    a, _ = two(20, 2, 1)
    a.save(Place.of(tmp_path / "run"))
    (tmp_path / "run" / "checkpoint").mkdir()
    for where in ("run", "run/checkpoint"):
        assert Predictions.load(str(tmp_path / where)).ids == a.ids
    with pytest.raises(UserError, match="make it with 'broadsheet evaluate"):
        Predictions.load(str(tmp_path / "other"))
    (tmp_path / "run" / "predictions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is damaged"):
        Predictions.load(str(tmp_path / "run"))


def test_predictions_of_weights_that_are_no_more(tmp_path: Path) -> None:
    a, _ = two(20, 2, 1)
    replace(a, training="first", data="d").save(Place.of(tmp_path))
    (tmp_path / "checkpoint").mkdir()
    card = tmp_path / "checkpoint" / "broadsheet.json"
    card.write_text(json.dumps({"training": {"fingerprint": "first"}}))
    assert Predictions.load(str(tmp_path)).data == "d"
    card.write_text(json.dumps({"training": {"fingerprint": "second"}}))
    with pytest.raises(
        UserError, match=r"was trained again since predictions\.parquet was made: run 'broadsheet evaluate"
    ):
        Predictions.load(str(tmp_path))
