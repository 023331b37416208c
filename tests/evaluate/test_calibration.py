"""Temperature scaling recovers the temperature that was planted; the reliability bins sum up to the ECE."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from pipeline.evaluate import calibration, metrics


def drawn(rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits / temperature): the network is over-confident by that factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, 4))
    chances = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return (rng.random((rows, 1)) > chances).sum(axis=1).clip(max=3), logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_planted_temperature_is_found(temperature: float) -> None:
    labels, logits = drawn(20_000, temperature)
    assert calibration.fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.05)


def test_the_minimum_is_that_of_a_general_search() -> None:
    labels, logits = drawn(500, 1.7)
    at = np.arange(500)
    general = minimize(lambda t: -log_softmax(logits / t[0], axis=1)[at, labels].mean(), [1.0], method="Nelder-Mead")
    assert calibration.fit_temperature(labels, logits) == pytest.approx(float(general.x[0]), abs=1e-3)


def test_logits_come_back_from_probabilities_whatever_they_were_scaled_by() -> None:
    labels, logits = drawn(1_000, 2.0)
    fits = []
    for current in (1.0, 1.9):  # a second evaluation sees probabilities at the temperature of the first
        seen = calibration.probabilities_of(logits, current)
        fits.append(calibration.chosen_temperature(labels, calibration.logits_of(seen, current), current)[0])
    assert fits[0] == fits[1]
    certain = calibration.logits_of(np.array([[1.0, 0.0]]), 1.0)
    assert np.isfinite(certain).all()


def test_what_cannot_be_fitted_stays() -> None:
    labels, logits = drawn(99, 1.0)
    assert calibration.chosen_temperature(labels, logits, 1.3) == (
        1.3,
        "not fitted: 99 validation rows, 100 are needed",
    )
    right = np.arange(200) % 3
    value, why = calibration.chosen_temperature(right, 5.0 * np.eye(3)[right], 1.0)
    assert (value, why) == (1.0, "not fitted: 0 mistakes on 200 validation rows, 5 are needed")
    assert calibration.chosen_temperature(np.array([], int), np.zeros((0, 3)), 1.0)[0] == 1.0


def test_reliability_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.86, 0.14], [0.6, 0.4], [0.45, 0.55]])
    labels = np.array([0, 1, 0, 1])
    bins = calibration.reliability(labels, scores, bins=5)
    assert [(b["low"], b["high"], b["rows"]) for b in bins] == [(0.4, 0.6, 2), (0.8, 1.0, 2)]
    assert [b["confidence"] for b in bins] == pytest.approx([0.575, 0.88])
    assert [b["accuracy"] for b in bins] == [1.0, 0.5]
    summed = sum(b["rows"] / 4 * abs(b["accuracy"] - b["confidence"]) for b in bins)
    assert summed == pytest.approx(metrics.expected_calibration_error(labels, scores, bins=5))
    assert calibration.reliability(np.array([], int), np.zeros((0, 2))) == []


def test_scaling_mends_an_overconfident_network_and_changes_no_prediction() -> None:
    labels, logits = drawn(5_000, 3.0)
    done = calibration.report(labels, logits, 1.0, 3.0, "planted")
    assert done["after"]["ece"] < 0.03 < 0.2 < done["before"]["ece"]
    assert done["after"]["log_loss"] < done["before"]["log_loss"]
    same = calibration.probabilities_of(logits, 3.0).argmax(1) == logits.argmax(1)
    assert same.all()
