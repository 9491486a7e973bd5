"""The expected gain of asking a dearer stage, as a function of how sure the present one is.

For stages k < j the gain curve is g_kj(c) = E[1(h_j right) - 1(h_k right) | confidence of k = c]; a request defers where
its gain exceeds the price. Works on arrays; knows no table, no file and no price plan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.scores import MAX_KNOTS, Floats, equal_mass_bins, isotonic_curve, pooled, rounded
from cascade.policy.gain import Curve

Method = Literal["isotonic", "binned"]

FOLDS = 5
"""Parts of the cross-validation that chooses between the estimators."""


@dataclass(frozen=True)
class GainFit:
    """A gain curve and how it was chosen."""

    curve: Curve
    method: Method
    held_out: dict[Method, float]
    """Mean squared error of each estimator tried, on rows it was not fitted on; its floor is the variance of the gain."""


@dataclass(frozen=True, eq=False)
class DeferralCurve:
    """What deferring the first share of rows adds to accuracy, linear between its points."""

    share: NDArray[np.float64]
    """[M] share of rows deferred, from 0 to 1."""
    gain: NDArray[np.float64]
    """[M] accuracy minus the cheap stage's own accuracy at that share."""

    def __call__(self, share: float) -> float:
        """Return the gain at a budget of deferrals."""
        return float(np.interp(share, self.share, self.gain))


def isotonic_gain(confidences: Floats, difference: Floats) -> Curve:
    """Fit a gain that never rises with confidence; see `cascade.calibration.scores.isotonic_curve`.

    Right where a surer stage leaves less to fix. Wrong where the least sure inputs are ones that no stage can solve.
    Blocks shrink towards no gain, which keeps their sign: inputs on which the stages never differed defer at no price.

    Args:
        confidences: [N] confidence of the cheaper stage.
        difference: [N] 1(dearer right) - 1(cheaper right), in {-1, 0, 1}.
    """
    return isotonic_curve(confidences, difference, increasing=False, prior=0.0)


def binned_gain(confidences: Floats, difference: Floats) -> Curve:
    """Fit a gain of any shape: bin means joined by lines, shrunk towards the mean over all rows.

    About 2 N^(1/3) bins of equal mass. A bin's mean m_b of n_b rows with variance s_b^2 has sampling noise
    v_b = s_b^2 / n_b; what the means vary beyond that is t^2. The value is (t^2 m_b + v_b m) / (t^2 + v_b) with m the
    mean over all rows (empirical Bayes): the fewer and noisier the rows, the nearer to m; a flat truth is a flat curve.

    Args:
        confidences: [N] confidence of the cheaper stage.
        difference: [N] 1(dearer right) - 1(cheaper right), in {-1, 0, 1}.
    """
    overall = float(np.mean(difference))
    bins = min(MAX_KNOTS, int(np.ceil(2 * len(difference) ** (1 / 3))))
    x, mean, count = equal_mass_bins(*pooled(confidences, difference), bins)
    _, square, _ = equal_mass_bins(*pooled(confidences, np.square(difference)), bins)
    noise = np.maximum(square - np.square(mean), 0.0) / count
    between = float(np.average(np.square(mean - overall) - noise, weights=count))
    if between <= 0:
        return Curve(rounded(x[:1]), rounded(np.array([overall])))
    knots, values, _ = pooled(rounded(x), (between * mean + noise * overall) / (between + noise))
    return Curve(knots, rounded(values))


_ESTIMATORS: dict[Method, Callable[[Floats, Floats], Curve]] = {"isotonic": isotonic_gain, "binned": binned_gain}


def fit_gain(
    confidences: Floats, difference: Floats, *, seed: int = 0, folds: int = FOLDS, method: Method = "isotonic"
) -> GainFit:
    """Fit both estimators and keep the one with the smaller cross-validated squared error (isotonic on ties).

    Args:
        confidences: [N] confidence of the cheaper stage, at least ``folds`` rows.
        difference: [N] 1(dearer right) - 1(cheaper right), in {-1, 0, 1}.
        seed: of the division into folds.
        folds: how many; 0 tries nothing and fits ``method``.
        method: the estimator where nothing is tried.
    """
    if not folds:
        return GainFit(_ESTIMATORS[method](confidences, difference), method, {})
    fold = np.random.default_rng(seed).permutation(len(difference)) % folds
    errors: dict[Method, float] = {}
    for name, estimator in _ESTIMATORS.items():
        squared = 0.0
        for held_out in range(folds):
            test = fold == held_out
            curve = estimator(confidences[~test], difference[~test])
            squared += float(np.square(difference[test] - curve(confidences[test])).sum())
        errors[name] = squared / len(difference)
    method = min(errors, key=lambda name: errors[name])
    return GainFit(_ESTIMATORS[method](confidences, difference), method, errors)


def deferral_curve(priority: Floats, difference: Floats, weights: Floats | None = None) -> DeferralCurve:
    """Accuracy added by deferring rows in descending order of ``priority``, for every share deferred.

    acc(G) - acc_k = P(G and only j right) - P(G and only k right) for a deferred set G. Rows of equal priority are
    deferred together, in proportion.

    Args:
        priority: [N] what decides the order.
        difference: [N] realised or expected gain of each row.
        weights: [N] mass of each row; equal where left out.
    """
    mass = np.full(len(priority), 1 / len(priority)) if weights is None else np.asarray(weights) / np.sum(weights)
    _, tie = np.unique(-np.asarray(priority), return_inverse=True)
    share = np.concatenate([[0.0], np.cumsum(np.bincount(tie, weights=mass))])
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(tie, weights=mass * difference))])
    return DeferralCurve(share, gain)
