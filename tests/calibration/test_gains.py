"""Gain curves, the choice between their estimators, and what deferring by gain is worth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascade.calibration.gains import binned_gain, deferral_curve, fit_gain, isotonic_gain
from cascade.calibration.scores import MAX_KNOTS

Floats = NDArray[np.float64]


def rightness(probability: Floats, random: np.random.Generator) -> Floats:
    return (random.random(len(probability)) < probability).astype(np.float64)


class TestTheDeferralRuleOnFourInputs:
    """Four inputs with known chances, small enough to try all sixteen deferral sets."""

    mass = np.array([0.4, 0.3, 0.2, 0.1])
    cheap = np.array([0.95, 0.7, 0.4, 0.5])
    dear = np.array([0.97, 0.9, 0.45, 0.95])

    @pytest.mark.parametrize(
        ("price", "deferred", "accuracy", "objective"),
        [
            (0.0, {0, 1, 2, 3}, 0.843, 0.843),
            (0.03, {1, 2, 3}, 0.835, 0.817),
            (0.06, {1, 3}, 0.825, 0.801),
            (0.15, {1, 3}, 0.825, 0.765),
            (0.25, {3}, 0.765, 0.740),
        ],
    )
    def test_deferring_where_gain_exceeds_price_is_best(
        self, price: float, deferred: set[int], accuracy: float, objective: float
    ) -> None:
        chosen = self.dear - self.cheap > price
        assert set(np.flatnonzero(chosen)) == deferred
        assert self.accuracy(chosen) == pytest.approx(accuracy)
        assert self.accuracy(chosen) - price * self.mass[chosen].sum() == pytest.approx(objective)
        for bits in range(16):
            other = np.array([bool(bits >> k & 1) for k in range(4)])
            assert self.accuracy(other) - price * self.mass[other].sum() <= objective + 1e-12

    def test_at_every_budget_the_order_of_gain_beats_that_of_uncertainty(self) -> None:
        gain = self.dear - self.cheap
        base = float(self.mass @ self.cheap)
        by_uncertainty = deferral_curve(-self.cheap, gain, self.mass)
        by_gain = deferral_curve(gain, gain, self.mass)
        budgets = (0.1, 0.2, 0.3, 0.4)
        assert [base + by_uncertainty(b) for b in budgets] == pytest.approx([0.725, 0.730, 0.775, 0.795])
        assert [base + by_gain(b) for b in budgets] == pytest.approx([0.765, 0.785, 0.805, 0.825])

    def accuracy(self, deferred: NDArray[np.bool_]) -> float:
        return float(self.mass @ np.where(deferred, self.dear, self.cheap))


def unsolvable_fifth(rows: int, seed: int) -> tuple[Floats, Floats]:
    """A fifth of the inputs defeat both stages and look it: the cheap one is least sure of them."""
    random = np.random.default_rng(seed)
    unsolvable = random.random(rows) < 0.2
    confidence = np.where(unsolvable, random.uniform(0.1, 0.3, rows), random.uniform(0.3, 1.0, rows))
    cheap = rightness(np.where(unsolvable, 0.1, confidence), random)
    dear = rightness(np.where(unsolvable, 0.1, 0.97), random)
    return confidence, dear - cheap


def test_where_the_least_sure_inputs_are_unsolvable_the_bins_are_chosen_and_order_better() -> None:
    for seed in range(20):
        fit = fit_gain(*unsolvable_fifth(2000, seed))
        assert fit.method == "binned"
        assert fit.held_out["binned"] < fit.held_out["isotonic"]
    confidence, difference = unsolvable_fifth(50_000, seed=100)
    by_gain = deferral_curve(fit.curve(confidence), difference)
    by_uncertainty = deferral_curve(-confidence, difference)
    # The first fifth of deferrals goes to inputs that nothing can solve when uncertainty decides.
    assert by_uncertainty(0.2) < 0.01
    assert by_gain(0.2) > 0.09
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert by_gain(share) > by_uncertainty(share) + 0.02


def test_where_surer_means_less_to_fix_the_monotone_curve_is_chosen() -> None:
    chosen = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        confidence = random.beta(2.5, 1, size=2000)
        difference = rightness(np.full(2000, 0.97), random) - rightness(confidence, random)
        chosen.append(fit_gain(confidence, difference).method)
    assert chosen.count("isotonic") >= 18


def test_with_a_specialist_the_fitted_order_is_near_bayes_and_uncertainty_is_worse() -> None:
    """The dear stage is strong on what the cheap one half knows, and worse than it elsewhere."""
    random = np.random.default_rng(11)

    def draw(rows: int) -> tuple[Floats, Floats, Floats]:
        confidence = random.beta(2.5, 1, size=rows)
        dear = np.where(confidence < 0.4, 0.3, np.where(confidence < 0.7, 0.95, 0.8))
        return confidence, dear - confidence, rightness(dear, random) - rightness(confidence, random)

    confidence, _, difference = draw(5000)
    fit = fit_gain(confidence, difference)
    confidence, bayes, difference = draw(200_000)
    fitted = deferral_curve(fit.curve(confidence), difference)
    optimal = deferral_curve(bayes, difference)
    uncertain = deferral_curve(-confidence, difference)
    at_twenty = fitted(0.2), optimal(0.2), uncertain(0.2)
    assert at_twenty[1] - at_twenty[0] < 0.01
    assert at_twenty[0] - at_twenty[2] > 0.02
    assert optimal(1.0) < optimal.gain.max() - 0.02, "deferring everything is worse than deferring enough"


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(5, 300),
    levels=st.integers(1, 300),
    cheap=st.floats(0, 1),
    dear=st.floats(0, 1),
)
def test_every_gain_curve_is_a_gain(seed: int, rows: int, levels: int, cheap: float, dear: float) -> None:
    random = np.random.default_rng(seed)
    confidence = random.integers(0, levels, rows) / levels
    difference = rightness(np.full(rows, dear), random) - rightness(np.full(rows, cheap), random)
    for curve in (isotonic_gain(confidence, difference), binned_gain(confidence, difference)):
        assert 1 <= len(curve.x) == len(curve.y) <= MAX_KNOTS
        assert np.all(np.diff(curve.x) > 0)
        assert min(difference.min(), 0) - 1e-8 <= curve.y.min()
        assert curve.y.max() <= max(difference.max(), 0) + 1e-8
    assert np.all(np.diff(isotonic_gain(confidence, difference).y) <= 0)
    fit = fit_gain(confidence, difference, seed=seed)
    assert fit.held_out[fit.method] == min(fit.held_out.values())


def test_bins_without_signal_shrink_to_the_overall_mean() -> None:
    random = np.random.default_rng(12)
    confidence = random.random(4000)
    difference = rightness(np.full(4000, 0.9), random) - rightness(np.full(4000, 0.7), random)
    curve = binned_gain(confidence, difference)
    assert np.abs(curve(confidence) - difference.mean()).max() < 0.05


def test_a_gain_that_only_one_confidence_has_is_its_mean() -> None:
    fit = fit_gain(np.full(50, 0.5), np.array([1.0] * 20 + [0.0] * 30))
    assert fit.curve(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.4, 0.4, 0.4])


def test_the_same_seed_gives_the_same_choice() -> None:
    confidence, difference = unsolvable_fifth(500, seed=3)
    first, again = fit_gain(confidence, difference, seed=9), fit_gain(confidence, difference, seed=9)
    assert first.held_out == again.held_out
    np.testing.assert_array_equal(first.curve.y, again.curve.y)


def test_rows_of_equal_priority_are_deferred_in_proportion() -> None:
    curve = deferral_curve(np.array([1.0, 1.0, 0.0]), np.array([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(curve.share, [0, 2 / 3, 1])
    np.testing.assert_allclose(curve.gain, [0, 0, 1 / 3], atol=1e-15)
    assert curve(5 / 6) == pytest.approx(1 / 6)
