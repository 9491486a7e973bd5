"""Answers that only get better: any-time predictors, how often ordinary exits break that promise, and learned halting.

Works on arrays of exits' outputs, [N, M, C]: N rows, M exits in order, C classes. Knows no table, policy or network.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from cascade.errors import ConfigError

Floats = NDArray[np.float64]


def product_anytime(logits: NDArray[Any]) -> Floats:
    """Product-anytime posteriors: p_m(y) proportional to prod_{k<=m} max(0, f_k(y)) (Jazbec et al., NeurIPS 2023).

    A class that some exit gives no positive logit is out for good, so probability mass can only concentrate. Where no
    class is left, p_m is the softmax of exit m. Early posteriors are under-confident by construction: not calibrated.

    Args:
        logits: [N, M, C] class scores f of every exit.

    Returns:
        [N, M, C] posteriors after each exit.
    """
    logits = _exits("logits", logits)
    # Sums of logarithms: the product itself leaves the range of a float after some dozens of exits.
    positive = logits > 0
    summed = np.cumsum(np.log(logits, out=np.full(logits.shape, -np.inf), where=positive), axis=1)
    nothing_left = ~np.isfinite(summed).any(axis=2, keepdims=True)
    return np.asarray(softmax(np.where(nothing_left, logits, summed), axis=2))


def caching_anytime(probs: NDArray[Any], confidence: NDArray[Any] | None = None) -> Floats:
    """Keep the answer of the most confident exit so far; the earlier one on ties.

    Args:
        probs: [N, M, C] class probabilities of every exit.
        confidence: [N, M] how sure each exit is of its answer; its largest probability where left out.

    Returns:
        [N, M, C] probabilities served after each exit.
    """
    probs = _exits("probs", probs)
    kept = surest(probs.max(axis=2) if confidence is None else confidence)
    return np.take_along_axis(probs, kept[:, :, None], axis=1)


def surest(confidence: NDArray[Any]) -> NDArray[np.intp]:
    """The most confident exit so far, after each exit; the earlier one on ties, [N, M] -> [N, M]."""
    best = np.maximum.accumulate(confidence, axis=1)
    new = np.column_stack([np.ones(len(best), dtype=np.bool_), confidence[:, 1:] > best[:, :-1]])
    return np.asarray(np.maximum.accumulate(np.where(new, np.arange(best.shape[1]), 0), axis=1))


def violations(probs: NDArray[Any], labels: NDArray[Any], tau: float) -> float:
    """Share of rows whose probability of the true class falls by more than ``tau`` between any two exits.

    Args:
        probs: [N, M, C] probabilities after each exit.
        labels: [N] true classes.
        tau: tolerated fall, from 0 to 1.
    """
    probs = _exits("probs", probs)
    if np.shape(labels) != (len(probs),):
        raise ConfigError(f"labels: expected one for each of {len(probs)} rows, got shape {np.shape(labels)}")
    of_truth = np.take_along_axis(probs, np.asarray(labels)[:, None, None], axis=2)[:, :, 0]
    fall = (np.maximum.accumulate(of_truth, axis=1) - of_truth).max(axis=1)
    return float((fall > tau).mean())


@dataclass(frozen=True, eq=False)
class Halting:
    """When an adaptively halting network stops, and what that costs."""

    weights: Floats
    """[M] weight of each step's output; sums to 1."""
    cost: float
    """ACT: ponder cost N + R. PonderNet: expected number of steps."""


def act(halting: Floats, epsilon: float = 0.01) -> Halting:
    """Adaptive computation time (Graves 2016): stop at the first N with h_1 + ... + h_N >= 1 - epsilon.

    Step i < N weighs h_i, step N the remainder R = 1 - sum_{i<N} h_i; the ponder cost is N + R. The last step stops anyway.

    Args:
        halting: [M] halting probability h of each step.
        epsilon: lets a single step suffice.
    """
    halting = _probabilities("halting", halting)
    enough = np.cumsum(halting) >= 1 - epsilon
    last = int(enough.argmax()) if enough.any() else len(halting) - 1
    weights = np.where(np.arange(len(halting)) < last, halting, 0.0)
    weights[last] = 1 - weights.sum()
    return Halting(weights, last + 1 + float(weights[last]))


def ponder(halting: Floats) -> Halting:
    """PonderNet (Banino et al. 2021): p_n = lambda_n prod_{j<n} (1 - lambda_j); the last step takes what remains.

    Args:
        halting: [M] probability lambda of stopping at each step once it is reached.
    """
    halting = _probabilities("halting", halting)
    reach = np.concatenate([[1.0], np.cumprod(1 - halting[:-1])])
    weights = reach * np.append(halting[:-1], 1.0)
    return Halting(weights, float(weights @ np.arange(1, len(weights) + 1)))


def ponder_divergence(halting: Floats, prior: float) -> float:
    """KL(p || q) in nats of PonderNet's p from a geometric q_n = prior (1 - prior)^(n-1), cut at M and rescaled to 1.

    Args:
        halting: [M] lambda of each step; see `ponder`.
        prior: lambda of the geometric distribution, above 0 and below 1.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior: expected a probability above 0 and below 1, got {prior}")
    geometric = prior * (1 - prior) ** np.arange(len(halting))
    return float(rel_entr(ponder(halting).weights, geometric / geometric.sum()).sum())


def _exits(name: str, outputs: NDArray[Any]) -> Floats:
    values = np.asarray(outputs, dtype=np.float64)
    if values.ndim != 3 or 0 in values.shape[1:] or not np.all(np.isfinite(values)):
        raise ConfigError(f"{name}: expected finite values [rows, exits, classes], got shape {values.shape}")
    return values


def _probabilities(name: str, values: Floats) -> Floats:
    shares = np.asarray(values, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not np.all((shares >= 0) & (shares <= 1)):
        raise ConfigError(f"{name}: expected probabilities between 0 and 1, got {shares.tolist()}")
    return shares
