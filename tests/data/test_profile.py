"""Sums of shard facts, token lengths and the warnings about classes."""

from __future__ import annotations

import numpy as np

from pipeline.data.profile import HISTOGRAM_BINS, label_collisions, merged, percentile, token_profile, warnings


def test_merged_adds_up_nested_counts() -> None:
    facts = [{"read": 2, "kept": {"train": 1}, "samples": ["a"]}, {"read": 3, "kept": {"train": 1, "test": 2}},
             {"read": 0, "kept": {}, "samples": ["b"]}]  # fmt: skip
    assert merged(facts) == {"read": 5, "kept": {"train": 2, "test": 2}, "samples": ["a", "b"]}
    assert facts[0] == {"read": 2, "kept": {"train": 1}, "samples": ["a"]}
    assert merged([]) == {}


def test_percentile_matches_a_sorted_list() -> None:
    lengths = np.random.default_rng(0).integers(0, 50, 1000)
    counts = np.bincount(lengths).tolist()
    for share in (0.5, 0.95, 0.99, 1.0):
        assert percentile(counts, share) == np.quantile(lengths, share, method="inverted_cdf")
    assert percentile([], 0.5) == 0


def test_token_profile() -> None:
    profile = token_profile({3: 5, 100: 5}, 2)
    assert (profile["rows"], profile["mean"], profile["p50"], profile["p95"], profile["max"]) == (10, 51.5, 3, 100, 100)
    assert profile["truncated_share"] == 0.2
    edges, counts = profile["histogram"]["edges"], profile["histogram"]["counts"]
    assert len(edges) == len(counts) + 1 <= HISTOGRAM_BINS + 1
    assert sum(counts) == 10
    assert edges[-1] > 100
    assert token_profile({}, 0)["rows"] == 0


def test_warnings_name_the_classes() -> None:
    classes = {"train": {"a": 9, "b": 1, "c": 4}, "validation": {"a": 1, "d": 1}, "test": {"a": 1}}
    single, none, rejected, untested = warnings(classes, {"e": 1200})
    assert "class 'b' with a single training row" in single
    assert "class 'd' without any training row" in none
    assert "label 'e'" in rejected
    assert "1,200 rows" in rejected
    assert "class 'c' without a test row" in untested
    many = warnings({"train": {f"{i}": 1 for i in range(7)}, "validation": {}, "test": {}}, {})
    assert many[0].startswith("classes '0', '1', '2', '3', '4' and 2 more")
    assert warnings({"train": {"a": 9}, "validation": {"a": 1}, "test": {"a": 1}}, {}) == []


def test_labels_that_look_alike_are_named() -> None:
    said = label_collisions(["caf\u00e9", "cafe\u0301", "sport", "sport\u200b", "Tech", "tech ", "other"])
    assert len(said) == 3
    assert label_collisions(["a", "b"]) == []
