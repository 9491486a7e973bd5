"""From a stage's logits to a confidence, and from a confidence to the probability of being right.

Temperature scaling, isotonic curves and the measures of calibration (reliability, NLL, Brier). Works on arrays; knows
no table, no file and no gain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from cascade.policy.gain import Curve

Floats = NDArray[np.floating[Any]]

TEMPERATURE_RANGE = (0.05, 20.0)
"""Where temperatures are sought. A stage that is always right has its optimum at 0 and one worse than chance at
infinity; neither would leave any order among its confidences."""
MAX_KNOTS = 64
"""Most knots of a curve: small enough to read in a file, fine enough that the error it adds is below sampling noise."""
DIGITS = 9
"""Significant digits of every stored number, so that what was fitted equals what is read back."""

_CHUNK_VALUES = 1 << 17  # temporaries of half a megabyte stay in the cache, twice as fast as eight megabytes
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TemperatureFit:
    """Result of `fit_temperature`; NLLs are means over rows, in nats."""

    temperature: float
    iterations: int
    nll_before: float
    nll_after: float


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in bins of (nearly) equal numbers of rows, [B] each."""

    confidence: NDArray[np.float64]
    """Mean confidence of the bin."""
    accuracy: NDArray[np.float64]
    """Share of the bin's rows that are right."""
    count: NDArray[np.int64]
    """Rows in the bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over rows."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def log_probabilities(probs: Floats) -> Floats:
    """Return log probabilities, which serve as logits: softmax(z / T) does not see the constant between the two.

    A stored zero counts as the smallest normal float32, the point below which a float32 softmax has lost the logit.
    """
    clipped = np.maximum(probs, np.asarray(_TINY, dtype=probs.dtype))
    return np.log(clipped, out=clipped)


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> TemperatureFit:
    """Find the temperature that minimises the mean negative log-likelihood of softmax(z / T).

    With beta = 1/T the loss  mean_i [logsumexp(beta z_i) - beta z_i[y_i]]  is convex; its slope is
    mean(E_p z - z_y), its curvature mean(Var_p z) (Guo et al. 2017 propose the model). Newton's method from T = 1; a
    step out of the interval that still holds the root is replaced by halving the way to its end, which makes the
    method certain to converge.

    Args:
        logits: [N, C] logits or log probabilities, finite.
        labels: [N] true classes.
    """
    lowest, highest = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    beta, iterations = 1.0, 0
    nll_before, slope, curvature = _nll_and_derivatives(logits, labels, beta)
    nll = nll_before
    # Uniform logits say nothing at any temperature: their slope is 0 everywhere and T stays 1.
    while slope != 0 and iterations < 100:
        iterations += 1
        if slope > 0:
            highest = beta
        else:
            lowest = beta
        proposed = beta - slope / curvature if curvature > 0 else np.inf
        following = proposed if lowest < proposed < highest else (lowest + highest) / 2
        moved, beta = abs(following - beta), following
        nll, slope, curvature = _nll_and_derivatives(logits, labels, beta)
        if moved <= 1e-6 * beta:
            break
    return TemperatureFit(1 / beta, iterations, nll_before, nll)


def confidence(logits: Floats, temperature: float) -> NDArray[np.float64]:
    """Largest probability of softmax(z / T), [N]."""
    top = np.empty(len(logits))
    for rows, shifted in _shifted(logits):
        top[rows] = 1 / np.exp(shifted / temperature).sum(axis=1, dtype=np.float64)
    return top


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64], temperature: float) -> float:
    """Mean of -log softmax(z / T)[y], in nats."""
    return _nll_and_derivatives(logits, labels, 1 / temperature)[0]


def brier_score(logits: Floats, labels: NDArray[np.int64], temperature: float) -> float:
    """Mean over rows of sum_c (p_c - 1[c = y])^2 with p = softmax(z / T); in [0, 2]."""
    total = 0.0
    for rows, shifted in _shifted(logits):
        weights = np.exp(shifted / temperature)
        probs = weights / weights.sum(axis=1, keepdims=True)
        right = probs[np.arange(len(probs)), labels[rows]]
        total += float((np.square(probs).sum(axis=1, dtype=np.float64) - 2.0 * right + 1.0).sum())
    return total / len(logits)


def reliability(confidences: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Compare confidence and accuracy in at most ``bins`` bins of equal mass; equal confidences share a bin.

    Args:
        confidences: [N].
        correct: [N].
        bins: how many bins to aim at.
    """
    x, y, count = equal_mass_bins(*pooled(confidences, correct.astype(np.float64)), bins)
    return Reliability(x, y, count.astype(np.int64))


def p_correct_curve(confidences: Floats, correct: NDArray[np.bool_], max_knots: int = MAX_KNOTS) -> Curve:
    """Fit the probability of being right as a non-decreasing function of confidence; see `isotonic_curve`.

    A block with k right of n rows counts as (k + 1) / (n + 2), Laplace's rule of succession: twenty right answers are
    no proof of certainty, and a probability of exactly 1 would say that no dearer stage can ever help.

    Args:
        confidences: [N].
        correct: [N].
        max_knots: most knots of the curve.
    """
    return isotonic_curve(confidences, correct.astype(np.float64), increasing=True, prior=0.5, max_knots=max_knots)


def isotonic_curve(
    x: Floats, y: Floats, *, increasing: bool, prior: float, prior_rows: float = 2.0, max_knots: int = MAX_KNOTS
) -> Curve:
    """Fit a monotone curve by isotonic regression, with shrunk blocks and joined by lines in place of steps.

    Pooling adjacent violators gives blocks of constant value. Each is shrunk to ``prior`` as if it had ``prior_rows``
    more rows of that value, which tames the small blocks at both ends. A block of at most N^(2/3) rows, the size that
    noise alone gives to blocks, then becomes one knot at its centre (centred isotonic regression, Oron and Flournoy
    2017); a longer one keeps its level as a flat stretch. Against plain steps this errs less where the truth is
    smooth, and inputs of different confidence keep different values, which a queue ordered by value needs.

    Args:
        x: [N] confidences.
        y: [N] targets.
        increasing: direction of the curve.
        prior: value to shrink to.
        prior_rows: weight of the prior.
        max_knots: most knots of the curve.
    """
    distinct, mean, count = pooled(x, y)
    block = _isotonic(mean, count, increasing)
    rows = np.bincount(block, weights=count)
    level = (np.bincount(block, weights=mean * count) + prior * prior_rows) / (rows + prior_rows)
    # Shrinking moves small blocks further than large ones and so may break the order: restore it on the shrunk values.
    joined = _isotonic(level, rows + prior_rows, increasing)
    level = np.bincount(joined, weights=level * (rows + prior_rows)) / np.bincount(joined, weights=rows + prior_rows)
    block = joined[block]
    rows = np.bincount(block, weights=count)
    cells = np.ceil(rows / count.sum() ** (2 / 3)).astype(np.int64)
    middle = np.cumsum(count) - count / 2 - (np.cumsum(rows) - rows)[block]
    cell = np.minimum((middle / rows[block] * cells[block]).astype(np.int64), cells[block] - 1)
    knots, values, _ = _merged(distinct, level[block], count, (np.cumsum(cells) - cells)[block] + cell)
    return compressed(knots, values, max_knots)


def pooled(x: Floats, y: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Merge equal ``x``: ascending distinct values, mean ``y`` at each, and how many rows it has, [U] each."""
    distinct, where, rows = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True, return_counts=True)
    count = rows.astype(np.float64)
    return distinct, np.bincount(where, weights=y).astype(np.float64) / count, count


def equal_mass_bins(
    x: NDArray[np.float64], y: NDArray[np.float64], count: NDArray[np.float64], bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Divide pooled points into at most ``bins`` runs of equal mass; mean x, mean y and mass of each run."""
    middle = np.cumsum(count) - count / 2
    where = np.minimum((middle / count.sum() * bins).astype(np.int64), bins - 1)
    return _merged(x, y, count, where)


def compressed(x: NDArray[np.float64], y: NDArray[np.float64], max_knots: int = MAX_KNOTS) -> Curve:
    """Keep at most ``max_knots`` of a piecewise linear curve's knots, and round them to `DIGITS` digits.

    The smallest tolerance is sought (by bisection, to 2^-20 of the range of y) at which runs, each as long as its
    chord stays within the tolerance of every knot it skips, are few enough. For a monotone curve and 64 knots the added
    error is at most (range of y) / 32, because any two neighbouring runs rise by more than the tolerance together; on
    curves fitted to 50,000 rows it is about 0.002.

    Args:
        x: [M] ascending.
        y: [M].
        max_knots: at least 2.
    """
    kept = np.arange(len(x))
    if len(x) > max_knots:
        too_fine, enough = 0.0, float(np.ptp(y))
        for _ in range(20):
            tolerance = (too_fine + enough) / 2
            if len(_runs(x, y, tolerance, max_knots)) > max_knots:
                too_fine = tolerance
            else:
                enough = tolerance
        kept = np.array(_runs(x, y, enough, max_knots))
    knots, values, _ = pooled(rounded(x[kept]), rounded(y[kept]))
    return Curve(knots, rounded(values))


def rounded(values: Floats) -> NDArray[np.float64]:
    """Round to `DIGITS` significant digits."""
    return np.array([significant(value) for value in values], dtype=np.float64)


def significant(value: float) -> float:
    """Round one number to `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _isotonic(y: Floats, weights: Floats, increasing: bool) -> NDArray[np.int64]:
    """Return the number of each point's block in the weighted isotonic regression of ``y``, from 0 upwards."""
    blocks = isotonic_regression(y, weights=weights, increasing=increasing).blocks
    return np.repeat(np.arange(len(blocks) - 1), np.diff(blocks)).astype(np.int64)


def _runs(x: NDArray[np.float64], y: NDArray[np.float64], tolerance: float, enough: int) -> list[int]:
    """Return the ends of greedy runs whose chords stay within ``tolerance``; gives up beyond ``enough`` of them.

    From a start, the slopes of admissible chords form an interval that shrinks with each knot passed; the run may end
    at any knot whose own slope lies inside.
    """
    ends, start, last = [0], 0, len(x) - 1
    while start < last and len(ends) <= enough:
        dx = x[start + 1 :] - x[start]
        dy = y[start + 1 :] - y[start]
        low = np.maximum.accumulate((dy - tolerance) / dx)
        high = np.minimum.accumulate((dy + tolerance) / dx)
        passed_low = np.concatenate([[-np.inf], low[:-1]])
        passed_high = np.concatenate([[np.inf], high[:-1]])
        slope = dy / dx
        admissible = (slope >= passed_low) & (slope <= passed_high)
        start += 1 + int(np.flatnonzero(admissible)[-1])
        ends.append(start)
    return ends


def _merged(
    x: NDArray[np.float64], y: NDArray[np.float64], count: NDArray[np.float64], where: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weighted means of x and y, and the mass, of each non-empty run in ``where``."""
    every = np.bincount(where, weights=count)
    some = every > 0
    mass = every[some].astype(np.float64)
    return (
        np.bincount(where, weights=x * count)[some] / mass,
        np.bincount(where, weights=y * count)[some] / mass,
        mass,
    )


def _shifted(logits: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield runs of rows of ``z - max z``, so that temporaries stay small."""
    step = max(1, _CHUNK_VALUES // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        yield rows, logits[rows] - logits[rows].max(axis=1, keepdims=True)


def _nll_and_derivatives(logits: Floats, labels: NDArray[np.int64], beta: float) -> tuple[float, float, float]:
    """Mean NLL of softmax(beta z) and its first and second derivative in beta."""
    nll = slope = curvature = 0.0
    for rows, shifted in _shifted(logits):
        moment = np.exp(beta * shifted)
        mass = moment.sum(axis=1).astype(np.float64)
        moment *= shifted
        mean = moment.sum(axis=1).astype(np.float64) / mass
        moment *= shifted
        square = moment.sum(axis=1).astype(np.float64) / mass
        own = shifted[np.arange(len(shifted)), labels[rows]].astype(np.float64)
        nll += float((np.log(mass) - beta * own).sum())
        slope += float((mean - own).sum())
        curvature += float((square - np.square(mean)).sum())
    return nll / len(logits), slope / len(logits), curvature / len(logits)
