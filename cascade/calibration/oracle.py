"""Adaptive Oracle: what an agent that knows which state answers an input rightly would pay (Hor et al., arXiv 2402.04359).

States are the models of a ladder, cheapest first, with cost R_i and accuracy A_i. All bounds follow from one vector,
u_i = P(some state up to i is right): measured row by row, or derived from the A_i alone. Knows no policy, score or price.

The oracle knows the labels. Part of its accuracy is luck: of enough guessers one is always right. It limits what can be had;
it does not say what a policy that sees only scores can have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from cascade.errors import ConfigError

Floats = NDArray[np.float64]
Fallback = Literal["cheapest", "final"]


@dataclass(frozen=True, eq=False)
class Oracle:
    """Stops every input at the cheapest state that answers it rightly.

    Build one with `exact`, `constant_alpha` or `nested`. Costs come in two kinds. *Router*: only the state that answers is
    paid, R_i. *Sequential*: a cascade pays every state on the way, C_i = R_1 + ... + R_i.
    """

    cost: Floats
    """[K] cost R of each state alone, positive and rising."""
    solved: Floats
    """[K] u: share of inputs that some state up to this one answers rightly; never falls."""
    fallback: Fallback = "cheapest"
    """Where inputs stop that no state answers rightly."""
    paid: Floats | None = None
    """[K] cost C of an input that passes every state up to this one; R_1 + ... + R_i where left out. Less where states are
    exits of one network, each of which goes on from the one before."""

    @classmethod
    def exact(
        cls,
        right: NDArray[Any],
        cost: Sequence[float] | Floats,
        fallback: Fallback = "cheapest",
        paid: Floats | None = None,
    ) -> Self:
        """Measure u row by row.

        Args:
            right: [N, K] whether each state is right about each input.
            cost: [K] cost of each state alone.
            fallback: where inputs stop that no state answers rightly.
            paid: see `Oracle`.

        Raises:
            ConfigError: shapes differ, there is no row, or costs are not positive and rising.
        """
        right = np.asarray(right, dtype=np.bool_)
        if right.ndim != 2 or not len(right):
            raise ConfigError(f"right: expected an array [N, K] with at least one row, got shape {right.shape}")
        return cls(_rising(cost, right.shape[1]), np.logical_or.accumulate(right, axis=1).mean(axis=0), fallback, paid)

    @classmethod
    def constant_alpha(
        cls,
        accuracy: Sequence[float] | Floats,
        cost: Sequence[float] | Floats,
        alpha: float | Sequence[float] | Floats,
        fallback: Fallback = "cheapest",
        paid: Floats | None = None,
    ) -> Self:
        """Estimate u from marginals: u_1 = A_1, u_i = A_i + (1 - alpha_i) u_{i-1}.

        alpha_i = P(state i right | some cheaper state right) makes this exact. A value outside of what the A_i allow,
        max(0, (A_i + u_{i-1} - 1) / u_{i-1}) <= alpha_i <= min(1, A_i / u_{i-1}) (Frechet's bounds), is moved to the nearest
        bound; a state that is right less often than the cheaper ones together can then solve nothing at alpha = 1.

        Args:
            accuracy: [K] accuracy A of each state.
            cost: [K] cost of each state alone.
            alpha: one value for all states, or [K - 1] from the second state on.
            fallback: where inputs stop that no state answers rightly.
            paid: see `Oracle`.

        Raises:
            ConfigError: lengths differ, an accuracy or alpha is no share, or costs are not positive and rising.
        """
        accuracies = _shares("accuracy", accuracy)
        rising = _rising(cost, len(accuracies))
        given = np.asarray(alpha, dtype=np.float64)
        alphas = _shares("alpha", np.full(len(accuracies) - 1, given) if given.ndim == 0 else given)
        if len(alphas) != len(accuracies) - 1:
            raise ConfigError(f"alpha: expected one value or {len(accuracies) - 1}, got {len(alphas)}")
        solved = accuracies.copy()
        for i in range(1, len(solved)):
            before = solved[i - 1]
            both = np.clip(alphas[i - 1] * before, max(0.0, accuracies[i] + before - 1), min(before, accuracies[i]))
            solved[i] = accuracies[i] + before - both
        # Rounding alone must not let u fall or pass 1.
        return cls(rising, np.minimum(np.maximum.accumulate(solved), 1.0), fallback, paid)

    @classmethod
    def nested(
        cls,
        accuracy: Sequence[float] | Floats,
        cost: Sequence[float] | Floats,
        fallback: Fallback = "cheapest",
        paid: Floats | None = None,
    ) -> Self:
        """Bound u from below by marginals: alpha = 1, dearer states are right wherever cheaper ones are.

        Then u_i = max_{j<=i} A_j. The point (its cost, its accuracy) lies on or below the exact oracle's frontier whatever
        the joint distribution: what an omniscient agent can have for certain, from published accuracies and costs alone.

        Args:
            accuracy: [K] accuracy A of each state.
            cost: [K] cost of each state alone.
            fallback: where inputs stop that no state answers rightly.
            paid: see `Oracle`.

        Raises:
            ConfigError: see `constant_alpha`.
        """
        return cls.constant_alpha(accuracy, cost, 1.0, fallback, paid)

    @property
    def accuracy(self) -> float:
        """u_K: share of inputs that some state answers rightly."""
        return float(self.solved[-1])

    @property
    def paid_on_the_way(self) -> Floats:
        """[K] C."""
        return np.cumsum(self.cost) if self.paid is None else self.paid

    @property
    def first_solved(self) -> Floats:
        """[K] d_i = u_i - u_{i-1}: share of inputs that this state is the cheapest to answer rightly."""
        return np.diff(self.solved, prepend=0.0)

    @property
    def exit_shares(self) -> Floats:
        """[K] share of inputs that stop at each state, those that none answers rightly included."""
        shares = self.first_solved
        shares[0 if self.fallback == "cheapest" else -1] += 1 - self.accuracy
        return shares

    @property
    def router_cost(self) -> float:
        """Mean cost when only the answering state is paid; R_1 + sum_i d_i (R_i - R_1) with the cheapest as fallback."""
        return float(self.exit_shares @ self.cost)

    @property
    def sequential_cost(self) -> float:
        """Mean cost when every state on the way is paid: `router_cost` with C_i in the place of R_i."""
        return float(self.exit_shares @ self.paid_on_the_way)

    @property
    def router_gain(self) -> float:
        """R_K / `router_cost`: how many times cheaper than the dearest state alone, at an accuracy no lower."""
        return float(self.cost[-1]) / self.router_cost

    @property
    def sequential_gain(self) -> float:
        """R_K / `sequential_cost`."""
        return float(self.cost[-1]) / self.sequential_cost

    def frontier(self, *, sequential: bool) -> tuple[Floats, Floats]:
        """The most accuracy at every mean cost, as corner points to be joined by lines.

        Starting with every input at the cheapest state, each input that state i solves first is one more right answer for
        R_i - R_1 (or C_i - R_1). All are worth the same, so the cheapest are bought first (a fractional knapsack). Both
        prices rise with i because costs are positive and rise, so the corners are concave as they stand. Inputs that no
        state solves stay at the cheapest, whatever ``fallback`` says: moving them buys nothing.

        Args:
            sequential: pay every state on the way.

        Returns:
            Cost [K] and accuracy [K] of the corners.
        """
        paid = self.paid_on_the_way if sequential else self.cost
        bought = self.first_solved
        bought[0] = 0.0
        return paid[0] + np.cumsum(bought * (paid - paid[0])), self.solved

    def accuracy_at(self, cost: float | Floats, *, sequential: bool) -> Floats:
        """Most accuracy at a mean cost; that of the cheapest state below its cost, u_K where cost is no limit."""
        corners = self.frontier(sequential=sequential)
        return np.asarray(np.interp(cost, *corners), dtype=np.float64)

    def cost_at(self, accuracy: float, *, sequential: bool) -> float:
        """Least mean cost that reaches an accuracy; infinite beyond u_K."""
        costs, accuracies = self.frontier(sequential=sequential)
        # Sums of shares such as .5 + .2 + .1 miss .8 by rounding; a share is never that near to another one otherwise.
        if accuracy > accuracies[-1] + 1e-12:
            return float("inf")
        keep = np.append(True, np.diff(accuracies) > 0)
        return float(np.interp(accuracy, accuracies[keep], costs[keep]))

    def document(self) -> dict[str, Any]:
        """The bound as plain values for JSON."""
        return {
            "accuracy": self.accuracy,
            "solved": self.solved.tolist(),
            "fallback": self.fallback,
            "exit_shares": self.exit_shares.tolist(),
            "router_cost": self.router_cost,
            "router_gain": self.router_gain,
            "sequential_cost": self.sequential_cost,
            "sequential_gain": self.sequential_gain,
        }


def measured_alpha(right: NDArray[Any]) -> Floats:
    """alpha_i = P(state i right | some cheaper state right), for the second state on.

    Args:
        right: [N, K] whether each state is right about each input.

    Returns:
        [K - 1], NaN where no cheaper state is ever right.
    """
    right = np.asarray(right, dtype=np.bool_)
    before = np.logical_or.accumulate(right, axis=1)[:, :-1]
    known = before.sum(axis=0)
    both = (right[:, 1:] & before).sum(axis=0)
    alpha: Floats = np.divide(both, known, out=np.full(len(known), np.nan), where=known > 0)
    return alpha


def _rising(cost: Sequence[float] | Floats, states: int) -> Floats:
    costs = np.asarray(cost, dtype=np.float64)
    if costs.shape != (states,):
        raise ConfigError(f"cost: expected one for each of {states} states, got shape {costs.shape}")
    if not np.all(np.isfinite(costs)) or not np.all(np.diff(costs, prepend=0.0) > 0):
        raise ConfigError(f"cost: expected positive, finite and rising costs, got {costs.tolist()}")
    return costs


def _shares(name: str, values: Sequence[float] | Floats) -> Floats:
    shares = np.asarray(values, dtype=np.float64)
    if shares.ndim != 1 or not np.all((shares >= 0) & (shares <= 1)):
        raise ConfigError(f"{name}: expected shares between 0 and 1, got {shares.tolist()}")
    return shares
