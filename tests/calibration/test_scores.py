"""Temperature, confidence, reliability and the p(correct) curve, against closed values and slower methods."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import log_softmax, softmax

from cascade.calibration.scores import (
    MAX_KNOTS,
    TEMPERATURE_RANGE,
    brier_score,
    compressed,
    confidence,
    fit_temperature,
    log_probabilities,
    negative_log_likelihood,
    p_correct_curve,
    pooled,
    reliability,
    rounded,
)


def over_confident(rows: int, seed: int, temperature: float = 2.5) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits that are calibrated once divided by ``temperature``."""
    random = np.random.default_rng(seed)
    calibrated = random.normal(scale=1.5, size=(rows, 10))
    labels = (softmax(calibrated, axis=1).cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    return temperature * calibrated, labels


def test_the_temperature_of_four_rows_is_the_known_one() -> None:
    logits = np.array([[2.0, 0, 0], [0, 3, 0], [1, 0, 2], [0, 0, 4]])
    fit = fit_temperature(logits, np.array([0, 1, 0, 2]))
    assert fit.temperature == pytest.approx(0.888147, abs=5e-7)
    assert fit.iterations <= 6


def test_scaling_finds_the_true_temperature_and_removes_the_calibration_error() -> None:
    logits, labels = over_confident(20_000, seed=1)
    fit = fit_temperature(logits, labels)
    right = logits.argmax(axis=1) == labels
    assert fit.temperature == pytest.approx(2.5, abs=0.05)
    assert fit.nll_before == pytest.approx(2.18, abs=0.03)
    assert fit.nll_after == pytest.approx(1.616, abs=0.02)
    assert reliability(confidence(logits, 1.0), right).ece == pytest.approx(0.284, abs=0.01)
    assert reliability(confidence(logits, fit.temperature), right).ece < 0.015
    assert brier_score(logits, labels, fit.temperature) < brier_score(logits, labels, 1.0)


def test_single_precision_finds_the_same_temperature() -> None:
    logits, labels = over_confident(3000, seed=2)
    double, single = fit_temperature(logits, labels), fit_temperature(logits.astype(np.float32), labels)
    assert single.temperature == pytest.approx(double.temperature, rel=1e-5)
    assert single.iterations <= 10


def test_log_probabilities_serve_as_logits() -> None:
    logits, labels = over_confident(500, seed=3)
    logs = log_probabilities(softmax(logits, axis=1))
    assert fit_temperature(logs, labels).temperature == pytest.approx(fit_temperature(logits, labels).temperature)
    np.testing.assert_allclose(confidence(logs, 1.7), confidence(logits, 1.7), rtol=1e-12)


def test_probabilities_of_zero_stay_finite() -> None:
    probs = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    logs = log_probabilities(probs)
    assert np.isfinite(logs).all()
    assert probs[0, 1] == 0
    fit = fit_temperature(logs, np.array([0, 1, 1]))
    assert np.isfinite(fit.nll_after)
    assert fit.temperature > 1


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 60), classes=st.integers(2, 8), scale=st.floats(0.05, 30))
def test_newton_finds_the_minimum(seed: int, rows: int, classes: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=(rows, classes))
    labels = np.where(random.random(rows) < 0.5, logits.argmax(axis=1), random.integers(0, classes, rows))
    fit = fit_temperature(logits, labels)
    bounds = (1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0])
    slow = minimize_scalar(
        lambda beta: negative_log_likelihood(logits, labels, 1 / beta),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert TEMPERATURE_RANGE[0] <= fit.temperature <= TEMPERATURE_RANGE[1]
    assert fit.nll_after <= slow.fun + 1e-5
    assert fit.nll_after <= fit.nll_before + 1e-12


def test_a_stage_that_is_always_right_gets_the_lowest_temperature() -> None:
    logits = np.eye(4) * 3
    assert fit_temperature(logits, np.arange(4)).temperature == pytest.approx(TEMPERATURE_RANGE[0], rel=1e-4)


def test_a_stage_worse_than_chance_gets_the_highest_temperature() -> None:
    logits = np.eye(4) * 3
    assert fit_temperature(logits, np.array([1, 2, 3, 0])).temperature == pytest.approx(TEMPERATURE_RANGE[1], rel=1e-4)


def test_uniform_logits_keep_temperature_one() -> None:
    fit = fit_temperature(np.zeros((5, 3)), np.zeros(5, dtype=np.int64))
    assert (fit.temperature, fit.iterations) == (1.0, 0)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 10))
def test_measures_agree_with_their_definitions(seed: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(scale=3, size=(20, 4)), random.integers(0, 4, 20)
    probs = softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(confidence(logits, temperature), probs.max(axis=1))
    logs = log_softmax(logits / temperature, axis=1)
    assert negative_log_likelihood(logits, labels, temperature) == pytest.approx(-logs[np.arange(20), labels].mean())
    squares = np.square(probs - np.eye(4)[labels]).sum(axis=1)
    assert brier_score(logits, labels, temperature) == pytest.approx(squares.mean())


def test_more_rows_than_one_chunk_give_the_same_measures() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(500, 1000)), random.integers(0, 1000, 500)
    probs = softmax(logits / 2, axis=1)
    np.testing.assert_allclose(confidence(logits, 2.0), probs.max(axis=1))
    assert negative_log_likelihood(logits, labels, 2.0) == pytest.approx(-np.log(probs[np.arange(500), labels]).mean())


def test_reliability_bins_hold_equal_numbers_and_sum_to_the_definition() -> None:
    random = np.random.default_rng(4)
    confidences = random.random(1500)
    right = random.random(1500) < confidences**2
    bins = reliability(confidences, right, bins=10)
    assert set(bins.count) == {150}
    order = np.argsort(confidences).reshape(10, 150)
    gaps = np.abs(right[order].mean(axis=1) - confidences[order].mean(axis=1))
    assert bins.ece == pytest.approx(gaps.mean())


def test_equal_confidences_share_a_bin() -> None:
    bins = reliability(np.array([1.0] * 90 + [0.5] * 10), np.array([True] * 95 + [False] * 5), bins=10)
    assert list(bins.count) == [10, 90]
    assert bins.ece == pytest.approx(0.0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 400),
    levels=st.integers(1, 400),
    rate=st.sampled_from([0.0, 0.3, 1.0, -1.0]),
)
def test_p_correct_rises_and_is_never_certain(seed: int, rows: int, levels: int, rate: float) -> None:
    random = np.random.default_rng(seed)
    confidences = random.integers(0, levels, rows) / levels
    right = random.random(rows) < (confidences if rate < 0 else rate)
    curve = p_correct_curve(confidences, right)
    assert len(curve.x) == len(curve.y) <= MAX_KNOTS
    assert np.all(np.diff(curve.x) > 0)
    assert np.all(np.diff(curve.y) >= 0)
    assert curve.y.min() >= 1 / (rows + 2) - 1e-8
    assert curve.y.max() <= (rows + 1) / (rows + 2) + 1e-8
    np.testing.assert_array_equal(rounded(curve.x), curve.x)


def test_a_block_of_k_right_of_n_counts_as_k_plus_one_of_n_plus_two() -> None:
    curve = p_correct_curve(np.array([0.2] * 8 + [0.9] * 18), np.array([False] * 8 + [True] * 18))
    np.testing.assert_allclose(curve(np.array([0.2, 0.9])), [1 / 10, 19 / 20])


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_a_smooth_truth_is_fitted_better_than_by_steps(power: float) -> None:
    random = np.random.default_rng(5)
    confidences, unseen = random.beta(4, 1.5, size=(10, 3000)), np.linspace(0.3, 0.99, 1000)
    ours, steps = [], []
    for row in confidences:
        right = random.random(3000) < row**power
        ours.append(np.square(p_correct_curve(row, right)(unseen) - unseen**power).mean())
        x, mean, count = pooled(row, right.astype(np.float64))
        stepped = isotonic_regression(mean, weights=count).x
        steps.append(np.square(stepped[np.searchsorted(x, unseen).clip(0, len(x) - 1)] - unseen**power).mean())
    assert np.mean(ours) < np.mean(steps)


def test_a_step_in_the_truth_stays_a_step() -> None:
    random = np.random.default_rng(6)
    confidences = random.random(20_000)
    right = random.random(20_000) < np.where(confidences < 0.6, 0.4, 0.95)
    curve = p_correct_curve(confidences, right)
    np.testing.assert_allclose(curve(np.array([0.2, 0.4, 0.55, 0.65, 0.8])), [0.4, 0.4, 0.4, 0.95, 0.95], atol=0.03)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), points=st.integers(2, 600), shape=st.sampled_from(["even", "steps", "wild"]))
def test_compressing_a_monotone_curve_moves_it_by_a_32nd_of_its_range_at_most(seed: int, points: int, shape: str) -> None:
    random = np.random.default_rng(seed)
    x = np.unique(rounded(random.random(points)))
    rises = {"even": np.ones(len(x)), "steps": random.random(len(x)) < 0.1, "wild": random.pareto(0.5, len(x))}[shape]
    assume(float(np.sum(rises)) > 0)
    y = np.cumsum(rises) / np.sum(rises)
    curve = compressed(x, y)
    assert len(curve.x) <= MAX_KNOTS
    assert np.abs(curve(x) - y).max() <= np.ptp(y) / 32 + 2e-6
    assert np.all(np.diff(curve.y) >= 0)


def test_compressing_a_fitted_curve_hardly_moves_it() -> None:
    random = np.random.default_rng(7)
    confidences = random.random(50_000)
    right = random.random(50_000) < 0.2 + 0.75 * confidences**2
    small, large = (p_correct_curve(confidences, right, max_knots=knots) for knots in (MAX_KNOTS, 10**6))
    assert len(small.x) <= MAX_KNOTS < len(large.x)
    assert np.abs(small(confidences) - large(confidences)).max() < 3e-3
    assert np.abs(small(confidences) - large(confidences)).mean() < 1e-3


def test_a_curve_of_few_knots_is_kept_as_it_is() -> None:
    curve = compressed(np.array([0.1, 0.5, 0.7]), np.array([0.3, 0.2, 0.9]))
    np.testing.assert_array_equal(curve.x, [0.1, 0.5, 0.7])
    np.testing.assert_array_equal(curve.y, [0.3, 0.2, 0.9])
