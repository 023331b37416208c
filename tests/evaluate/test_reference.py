"""The reference of drift: its bins, its features, and a file that is never trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import UserError
from pipeline.evaluate.reference import BINS, BOUNDS, FILE, HEAVY, LEAST, STEPS, Reference, cuts, make, seen
from pipeline.storage import Place

UNKNOWN = 1
LABELS = ["money", "sport", "科技"]


def rows(count: int, seed: int = 0, unknown: bool = True) -> tuple[np.ndarray, list[np.ndarray], list[bool]]:
    generator = np.random.default_rng(seed)
    ids = [generator.integers(1 if unknown else 2, 40, generator.poisson(20) + 2) for _ in range(count)]
    return generator.dirichlet([3, 1, 0.2], count), ids, [len(row) > 28 for row in ids]


def reference(count: int = 500, unknown_id: int | None = UNKNOWN) -> Reference:
    return make(LABELS, *rows(count), unknown_id)


def test_features_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.4, 0.35, 0.25]])
    ids = [np.array([2, 1, 1, 3]), np.array([2, 3]), np.array([], int)]
    found = seen(probabilities, ids, [True, False, False], UNKNOWN)
    assert {name: values.tolist() for name, values in found.items()} == {
        "label": [0, 2, 0],
        "confidence": [0.7, 0.8, 0.4],
        "tokens": [4, 2, 0],
        "truncated": [1, 0, 0],
        "unknown": [0.5, 0, 0],
    }
    assert "unknown" not in seen(probabilities, ids, [True, False, False], None)


def test_bins_of_many_values_hold_equally_many() -> None:
    values = np.random.default_rng(1).beta(5, 1, 4_000)
    counts = np.histogram(values, [0, *cuts(values, 0.001), 1])[0]
    assert len(counts) == BINS
    assert counts.min() > 0.09 * len(values)


def test_ties_and_heavy_values() -> None:
    sure = np.array([0.9999] * 960 + [0.7] * 40)  # nearly all alike: a bin of its own, and one for what falls below
    assert cuts(sure, 0.001, (0, 1)) == (0.9995,)
    assert cuts(np.zeros(50), 0.0001, (0, 1)) == pytest.approx((0.00005,))  # no unknown token yet: some would be seen
    assert cuts(np.full(50, 7.0), 1.0, (0, np.inf)) == (6.5, 7.5)
    steps = np.array([0.25] * 4 + [0.5] * 45 + [1.0] * 51)  # the first four alone would be too few
    assert cuts(steps, 0.0001, (0, 1)) == pytest.approx((0.99995,))


@given(
    arrays(np.int64, st.integers(1, 300), elements=st.sampled_from([0, 100, 101, 500, 980, 999, 1000])),
    st.sampled_from(sorted(STEPS)),
)
def test_bins_hold_enough_or_stand_beside_a_heavy_value(grid: np.ndarray, name: str) -> None:
    values = grid * STEPS[name]
    edges = cuts(values, STEPS[name], BOUNDS[name])
    bins = np.searchsorted(edges, values, side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    assert sorted(set(edges)) == list(edges)
    heavy = np.bincount(grid).max() >= HEAVY * len(grid)
    assert heavy or (counts >= LEAST * len(values)).all()
    for nudge in (-0.4, 0.4):  # what is the same within a step falls into the same bin
        assert (np.searchsorted(edges, values + nudge * STEPS[name], side="right") == bins).all()


@pytest.mark.parametrize("unknown_id", [UNKNOWN, None])
def test_kept_and_read_again(tmp_path: Path, unknown_id: int | None) -> None:
    place = Place.of(tmp_path)
    assert Reference.load(place) is None
    made = reference(unknown_id=unknown_id)
    made.save(place)
    assert Reference.load(place) == made
    assert ("unknown" in made.features) == (unknown_id is not None)
    assert made.rows == 500
    assert made.names("label") == LABELS
    for name, feature in made.features.items():
        assert len(made.names(name)) == len(feature.counts)
        assert feature.shares.sum() == pytest.approx(1)


def test_one_row_and_one_label() -> None:
    made = make(["all"], np.ones((1, 1)), [np.array([5])], [False], None)
    assert made.features["label"].counts == (1,)
    assert made.names("label") == ["all"]


def _set(*path: Any, to: Any) -> Any:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = to

    return change


DAMAGES = [
    (_set("format", to=2), "format"),
    (_set("rows", to=0), "rows"),
    (_set("rows", to=501), "rows in its bins, of 501"),
    (_set("rows", to="500"), "rows"),
    (_set("labels", to=[]), "labels"),
    (_set("labels", to=["a", "b"]), "label"),
    (_set("labels", to=["a", "a", "b"]), "alike"),
    (_set("unknown_id", to=-1), "unknown_id"),
    (_set("unknown_id", to=None), "the features are"),
    (_set("more", to=1), "more"),
    (_set("features", "label", "edges", to=[0.5, 1.0]), "other bins"),
    (_set("features", "truncated", "edges", to=[1.5]), "other bins"),
    (_set("features", "tokens", "edges", 0, to=10**6), "do not rise"),
    (_set("features", "tokens", "edges", 0, to=float("nan")), "edges"),
    (_set("features", "tokens", "edges", to=[]), "0 edges"),
    (_set("features", "tokens", "counts", 0, to=-1), "counts"),
    (_set("features", "tokens", "counts", 0, to=1.5), "counts"),
    (_set("features", "other", to={"edges": [], "counts": [500]}), "other"),
    (lambda tree: tree["features"].pop("tokens"), "the features are"),
    (lambda tree: tree.pop("labels"), "labels"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_file_names_what_is_wrong(tmp_path: Path, damage: Any, said: str) -> None:
    reference().save(Place.of(tmp_path))
    tree = json.loads((tmp_path / FILE).read_text())
    damage(tree)
    (tmp_path / FILE).write_text(json.dumps(tree))
    with pytest.raises(UserError, match=rf"reference.json is damaged \(.*{said}.*\): delete it and run"):
        Reference.load(Place.of(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1'])
def test_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        Reference.load(Place.of(tmp_path))
