"""The cascade: which share the linear model may answer, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from pipeline.evaluate import cascade, report
from pipeline.evaluate.baseline import SHARED, Baseline
from pipeline.evaluate.cascade import (
    BOUND,
    MIN_ROWS,
    SURE,
    Both,
    Point,
    Record,
    chosen,
    curve,
    judge,
    measured,
    settled,
)

FIRST = range(32)
BASE: Any = Baseline({"tokens": SHARED}, np.empty((0, 3)), None, None, {}, 32)  # type: ignore[arg-type]


def both(rows: int, linear: float, network: float, seed: int = 1, classes: int = 3) -> Both:
    """Two models that are right about so often; the linear one is surer where it is right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)

    def answers(right: float) -> np.ndarray:
        logits = generator.normal(0, 1, (rows, classes))
        logits[np.arange(rows), labels] += generator.exponential(1, rows) * 4 * right
        return logits

    return Both(labels, answers(linear), softmax(answers(network), axis=1))


@st.composite
def rows_of_two_models(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few distinct confidences, so that many rows are tied."""
    rows = draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = generator.integers(0, 3, rows)
    levels = draw(st.sampled_from([2, 5, 1000]))
    noise = draw(st.floats(0.2, 6))
    linear = softmax(np.round(generator.normal(0, 1, (rows, 3)) * levels) / levels * noise + np.eye(3)[labels] * 2, 1)
    network = softmax(generator.normal(0, 1, (rows, 3)) + np.eye(3)[labels] * draw(st.floats(0, 6)), 1)
    return labels, linear, network


@given(rows_of_two_models())
def test_the_curve_is_what_serving_would_do(given: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, linear, network = given
    points = curve(labels, linear, network)
    assert 1 <= len(points) <= cascade.STEPS
    shares, thresholds = [p.share for p in points], [p.threshold for p in points]
    assert shares == sorted(set(shares))
    assert thresholds == sorted(set(thresholds), reverse=True)
    assert (shares[-1], thresholds[-1]) == (1.0, 0.0)
    alone = network.argmax(1) == labels
    for point in points:
        sure = settled(linear, point.threshold)
        right = np.where(sure, linear.argmax(1), network.argmax(1)) == labels
        assert point.share == pytest.approx(sure.mean())
        assert point.accuracy == pytest.approx(right.mean())
        assert point.lost == (alone & ~right).sum()
        assert point.gained == (right & ~alone).sum()


@given(rows_of_two_models())
def test_accuracy_on_the_rows_that_chose_never_falls_by_more_than_the_bound(
    given: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, linear, network = given
    points = curve(labels, linear, network)
    best = chosen(points, len(labels))
    if best is None:
        return
    assert float((network.argmax(1) == labels).mean()) - best.accuracy <= BOUND + 1e-12
    for point in points:  # nothing stricter is worse than it may be, and the next step would be
        might_fall = point.lost - point.gained + SURE * math.sqrt(point.lost + point.gained)
        if point.share <= best.share:
            assert might_fall <= BOUND * len(labels) + 1e-9
        else:
            assert might_fall > BOUND * len(labels)
            break


def points_of(*lost_and_gained: tuple[int, int]) -> tuple[Point, ...]:
    n = len(lost_and_gained)
    return tuple(
        Point(threshold=1 - (i + 1) / n, share=(i + 1) / n, accuracy=0.5, lost=lost, gained=gained)
        for i, (lost, gained) in enumerate(lost_and_gained)
    )


def test_the_choice_by_hand() -> None:
    assert chosen(points_of((0, 0), (1, 0), (9, 0)), 2_645) == points_of((0, 0), (1, 0), (9, 0))[1]  # 1 + 1.645
    assert chosen(points_of((0, 0), (1, 0)), 2_644) == points_of((0, 0), (1, 0))[0]
    assert chosen(points_of((1, 0), (0, 9)), 500) is None  # what comes behind a bad point does not count
    tail = points_of((0, 3), (1, 6), (8, 9))
    assert chosen(tail, 100) == tail[1]  # 1 - 6 + 4.4 is below nought, 8 - 9 + 6.8 is not
    assert chosen((), 100) is None


def test_rows_of_one_confidence_go_together() -> None:
    labels = np.zeros(100, int)
    linear = np.tile([[0.9, 0.1]], (100, 1))
    linear[:3] = [0.95, 0.05]
    network = np.tile([[0.8, 0.2]], (100, 1))
    assert [p.share for p in curve(labels, linear, network)] == [1.0]  # 3 rows are no twentieth
    first, second = curve(labels[:40], linear[:40], network[:40])
    assert (first.share, second.share) == (3 / 40, 1.0)
    assert 0.9 < first.threshold < 0.95


def test_a_good_linear_model_may_answer_and_a_bad_one_may_not() -> None:
    good = judge("v", BASE, both(3_000, 1.0, 1.0), both(2_000, 1.0, 1.0, seed=2), FIRST)
    assert good.threshold is not None
    assert good.validation is not None
    assert good.test is not None
    assert good.validation.share >= cascade.MIN_SHARE
    assert good.validation.fall <= BOUND
    assert good.validation.accuracy == pytest.approx(good.validation.network - good.validation.fall)
    assert good.test.rows == 2_000
    low, high = good.test.interval
    assert low <= good.test.fall <= high
    assert len(good.golden) == 32
    bad = judge("v", BASE, both(3_000, 0.1, 3.0), None, FIRST)
    assert (bad.threshold, bad.validation, bad.golden) == (None, None, ())
    assert "could answer 0% of the validation rows" in str(bad.reason)
    assert bad.curve  # the curve says why


def test_too_few_rows_or_no_linear_model_is_said() -> None:
    few = judge("v", BASE, both(MIN_ROWS - 1, 1.0, 1.0), None, FIRST)
    assert few.reason == "499 validation rows, 500 are needed to decide on a threshold"
    assert judge("v", BASE, None, None, FIRST).reason == "0 validation rows, 500 are needed to decide on a threshold"
    assert "no linear model" in str(judge("v", None, both(900, 1, 1), None, FIRST).reason)
    assert judge("v", BASE, both(MIN_ROWS, 1.0, 0.2), None, FIRST).threshold is not None


def test_figures_of_known_rows() -> None:
    labels = np.array([0, 0, 0, 1])
    linear = np.array([[4.0, 0], [0, 4], [1, 0], [1, 0]])
    network = np.array([[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    found = measured(Both(labels, linear, network), 1.0, 0.9)
    assert (found.rows, found.share, found.accuracy, found.network, found.fall) == (4, 0.5, 0.75, 0.75, 0.0)
    assert found.interval[1] == -found.interval[0] == pytest.approx(1.96 * math.sqrt(0.5 / 4))


def test_it_is_said_in_a_line_and_in_the_report() -> None:
    good = judge("v", BASE, both(3_000, 1.0, 1.0), both(2_000, 1.0, 1.0, seed=2), FIRST).figures()
    assert "the linear model answers where its confidence is" in cascade.line(good)
    assert "test accuracy" in cascade.line(good)
    none = Record(network="v", reason="too weak").figures()
    assert cascade.line(none) == "no cascade: too weak"
    for figures, words in ((good, "in use"), (none, "None: too weak.")):
        page = report.write_html({"title": "t", "cascade": figures})
        assert '<section id="cascade">' in page
        assert words in page
    assert 'id="cascade"' not in report.write_html({"title": "t", "cascade": None})
