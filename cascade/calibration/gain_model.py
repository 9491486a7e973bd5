"""A gain learned from several features of the evidence: multinomial logistic regression. Knows no table and no curve.

With mended = "dearer right, this wrong" and spoilt = "dearer wrong, this right", the gain is P(mended | x) - P(spoilt | x).
This is the post-hoc deferral rule of Jitkrittum et al. (NeurIPS 2023, arXiv 2307.02764) with a linear model. What the model
says is then calibrated by a curve that never falls (a single-index model).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from cascade.calibration.scores import Floats, isotonic_curve, rounded
from cascade.policy.gain import Curve, LogisticGain

MAX_CLASSES = 100
"""With more classes each has too few rows for a weight of its own."""
LEAST_SPREAD = 1e-6
"""A feature whose standard deviation is below this is a constant with rounding errors."""
RIDGE = 1e-3
"""Weight of half the sum of squares of the standardised weights, beside the mean log-likelihood."""

_IDENTITY = Curve.of([-1.0, 1.0], [-1.0, 1.0])


def fit_logistic_gain(features: Floats, difference: Floats) -> LogisticGain:
    """Maximise the penalised likelihood of mended, spoilt or neither given the features; convex, by L-BFGS.

    Args:
        features: [N, F] as `cascade.policy.gain.evidence_features` makes them.
        difference: [N] 1(dearer right) - 1(this right), in {-1, 0, 1}.
    """
    centre = features.mean(axis=0)
    scale = features.std(axis=0)
    used = scale > LEAST_SPREAD  # a class never predicted, or the agreement at the first stage, gets no weight
    design = np.column_stack([np.ones(len(features)), (features[:, used] - centre[used]) / scale[used]])
    events = np.column_stack([difference > 0, difference < 0]).astype(np.float64)
    width = design.shape[1]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(width, 2)
        scores = np.zeros((len(design), 3))
        scores[:, :2] = design @ weights
        own = (scores[:, :2] * events).sum(axis=1)
        top = scores.max(axis=1)
        scores -= top[:, None]
        np.exp(scores, out=scores)
        mass = scores.sum(axis=1)
        likelihood = float((np.log(mass) + top - own).mean())
        slope = design.T @ (scores[:, :2] / mass[:, None] - events) / len(design)
        slope[1:] += RIDGE * weights[1:]
        return likelihood + RIDGE / 2 * float(np.square(weights[1:]).sum()), slope.ravel()

    found = minimize(loss, np.zeros(2 * width), jac=True, method="L-BFGS-B")
    weights = found.x.reshape(width, 2)
    # Undo the standardisation, so that the model reads features as they come.
    slopes = np.zeros((features.shape[1], 2))
    slopes[used] = weights[1:] / scale[used, None]
    constants = weights[0] - centre @ slopes
    mended = rounded(np.concatenate([constants[:1], slopes[:, 0]]))
    spoilt = rounded(np.concatenate([constants[1:], slopes[:, 1]]))
    index = LogisticGain(mended, spoilt, _IDENTITY).index(features)
    return LogisticGain(mended, spoilt, isotonic_curve(index, difference, increasing=True, prior=0.0))
