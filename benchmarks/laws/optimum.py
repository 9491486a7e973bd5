"""The fluid optimum: the most correct answers per offered request that any router with the same scores could give.

Knows the truth of the synthetic ladder and the capacities; no law and no queue. At lambda requests/s and C_k rows/s

    theta = min(1, C_0 / lambda)                                    share let in; every row let in is worth something
    A*    = max over exit rules of theta E[right at the exit]       s.t.  lambda theta P(visit k) <= C_k,  k = 1, 2

Its Lagrangian dual in the prices mu of a visit is convex, and a row's best way at given prices is optimal stopping:

    after stage 1:  on iff  g_12(s_0, s_1) > mu_2
    after stage 0:  on iff  v(s_0) = g_01(s_0) + E[max(0, g_12 - mu_2) | s_0] - mu_1 > 0
    D(mu) = E[right_0] + E[max(0, v)] + (mu_1 C_1 + mu_2 C_2) / (lambda theta),   A* = theta min D over mu >= 0

Scores are continuous, so the rule at the best prices meets the capacities and attains D: there is no duality gap.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.laws.synthetic import Floats, Sample

BINS = 500
"""Bins of equal mass in which E[. | s_0] is taken."""


class Optimum(NamedTuple):
    """The optimum of one constant phase.

    Attributes:
        accuracy: A*, correct answers per offered request.
        theta: share let in.
        prices: [3] what a visit to each stage must promise; the first is 0.
        visits: share of the rows let in that visit each stage, [3].
    """

    accuracy: float
    theta: float
    prices: Floats
    visits: Floats


@dataclass(frozen=True, eq=False)
class World:
    """A large sample in the form that the dual needs.

    Attributes:
        acc0: mean of right_0.
        edges: [BINS - 1] of s_0.
        g01: [BINS] true gain of stage 1 after stage 0.
        g12: [BINS, M] true gain of stage 2 after stages 0 and 1, of the rows of each bin.
    """

    acc0: float
    edges: Floats
    g01: Floats
    g12: Floats

    @classmethod
    def of(cls, sample: Sample) -> "World":
        """Sort a sample into bins of s_0; rows that do not fill all bins evenly are left out."""
        rows = len(sample.scores) // BINS * BINS
        order = np.argsort(sample.scores[:rows, 0])
        first, second = sample.true_p(1)[:rows][order], sample.true_p(2)[:rows][order]
        by_bin = sample.scores[:rows, 0][order].reshape(BINS, -1)
        return cls(
            acc0=float(first[:, 0].mean()),
            edges=(by_bin[:-1, -1] + by_bin[1:, 0]) / 2,
            g01=(first[:, 1] - first[:, 0]).reshape(BINS, -1).mean(axis=1),
            g12=(second[:, 2] - second[:, 1]).reshape(BINS, -1),
        )

    def value(self, mu1: float, mu2: float) -> Floats:
        """Value of going on to stage 1 from each bin, [BINS]."""
        return np.asarray(self.g01 + np.maximum(self.g12 - mu2, 0.0).mean(axis=1) - mu1)

    def solve(self, rate: float, capacity: Floats) -> Optimum:
        """Minimise the dual.

        Args:
            rate: requests a second.
            capacity: [3] rows/s of each stage; 0 where it is out.
        """
        theta = min(1.0, capacity[0] / rate)
        room = capacity[1:] / (rate * theta)

        def dual(mu: Floats) -> tuple[float, Floats]:
            value = self.value(*mu)
            goes = value > 0
            visits = np.array([goes.mean(), np.where(goes, (self.g12 > mu[1]).mean(axis=1), 0.0).mean()])
            return float(np.maximum(value, 0.0).mean() + mu @ room), room - visits

        found = minimize(dual, x0=np.array([0.02, 0.1]), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * 2)
        simplex = np.clip(found.x + np.array([[0, 0], [0.01, 0], [0, 0.01]]), 0, 1)
        # The sampled dual is piecewise linear: its kinks can stop a line search early, a simplex then finishes.
        found = minimize(
            lambda mu: dual(mu)[0],
            x0=found.x,
            method="Nelder-Mead",
            bounds=[(0.0, 1.0)] * 2,
            options={"xatol": 1e-6, "fatol": 1e-9, "initial_simplex": simplex},
        )
        visits = room - dual(found.x)[1]
        return Optimum(theta * (self.acc0 + float(found.fun)), theta, np.array([0.0, *found.x]), np.array([1.0, *visits]))

    def worth_of_skipping(self, rate: float, capacity: Floats) -> float:
        """How much higher the optimum would be if rows might also go from stage 0 straight to stage 2.

        The same dual with a second way on from stage 0, of value E[g_01 + g_12 | s_0] - mu_2.
        """
        best = self.solve(rate, capacity)
        room = capacity[1:] / (rate * best.theta)
        leap = self.g01 + self.g12.mean(axis=1)

        def dual(mu: Floats) -> float:
            return float(np.maximum(np.maximum(self.value(*mu), leap - mu[1]), 0.0).mean() + mu @ room)

        found = minimize(dual, x0=best.prices[1:] + 0.01, method="Nelder-Mead", bounds=[(0.0, 1.0)] * 2, tol=1e-7)
        return max(0.0, float(best.theta * (self.acc0 + found.fun) - best.accuracy))  # below 0 is the search's tolerance

    def served_right(self, sample: Sample, optimum: Optimum) -> NDArray[np.float64]:
        """Whether each row of another sample would be served right under the optimal rule, times the share let in, [N].

        The control variate of a measured gap: its mean over a run's rows differs from A* by their luck only.
        """
        _, mu1, mu2 = optimum.prices
        goes = self.value(mu1, mu2)[np.searchsorted(self.edges, sample.scores[:, 0])] > 0
        gains = sample.true_p(2)
        exits = np.where(goes, 1 + (gains[:, 2] - gains[:, 1] > mu2), 0)
        return np.asarray(optimum.theta * sample.right[np.arange(len(exits)), exits])
