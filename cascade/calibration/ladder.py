"""Which models of a zoo make the best ladder, and what each of its rungs is worth.

Models are known by accuracy A and cost R. An agent that knows which model is right, with models that are right wherever
cheaper ones are (alpha = 1), reaches the top accuracy A_n of a ladder at the mean cost of `ladder_cost`; see
`cascade.calibration.oracle.Oracle.nested`. That needs only published numbers and decides which ladder could do best; what a
policy makes of it is another question. Where it is known row by row which model is right, `best_exact_ladders` looks at all
ladders. Reads no file; knows no policy.

Two costs: a *router* pays only the model that answers, a *sequential* cascade pays every model on the way. Models may be
exits of one network; then a cascade that goes from one to a deeper one pays what lies between, and a ladder that leaves an
exit out has a network without its head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.frontier import pareto
from cascade.calibration.oracle import Oracle, measured_alpha
from cascade.calibration.zoo import Zoo, visits
from cascade.errors import ConfigError

Floats = NDArray[np.float64]

MOST_EXACT = 12
"""Largest zoo whose every ladder is tried row by row: 2^11 ladders on 2^12 patterns of rightness."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """Some models of a zoo and what they could do together."""

    rungs: tuple[int, ...]
    """Indices into the zoo, by rising cost and accuracy; the last is the most accurate model."""
    router_cost: float
    """`ladder_cost` of a router."""
    sequential_cost: float
    """`ladder_cost` of a sequential cascade."""


def ladder_cost(accuracy: Floats, cost: Floats, *, sequential: bool, network: NDArray[np.intp] | None = None) -> float:
    """Mean cost of reaching the top accuracy, rungs as right as those above them wherever they are right (alpha = 1).

    With A_0 = A_K - 1, the share A_K - A_0 = 1 of rows starts at the first rung, and

        router      sum_i (A_i - A_{i-1}) R_i       rows stop at the first rung that is right, the unsolvable at the cheapest
        sequential  sum_i (A_K - A_{i-1}) R_i       every rung is paid by all rows that the ones below leave unsolved

    Args:
        accuracy: [K] rising.
        cost: [K] rising.
        sequential: pay every rung on the way.
        network: [K] see `Zoo.network`; R_i is then what is paid for rung i after rung i - 1, see `visits`.
    """
    below = np.concatenate([[accuracy[-1] - 1], accuracy[:-1]])
    if not sequential:
        return float((accuracy - below) @ cost)
    return float((accuracy[-1] - below) @ np.diagonal(visits(cost, network)))


def rung_savings(accuracy: Floats, cost: Floats, *, sequential: bool, network: NDArray[np.intp] | None = None) -> Floats:
    """What `ladder_cost` would rise by if a rung were left out; negative where it costs more than it saves.

    For rung m between i and j, with A_0 = A_K - 1 below the first:

        router      (A_m - A_i) (R_j - R_m)                 the rectangle it cuts from under the staircase, never negative
        sequential  (A_m - A_i) R_j - (A_K - A_i) R_m       so it pays iff R_m / R_j < (A_m - A_i) / (A_K - A_i)

    and with R_ij for what j costs after i, (A_K - A_i) (R_ij - R_im) - (A_K - A_m) R_mj. Between exits of one network that
    is (A_m - A_i) R_mj, never negative: a head costs nothing here.

    Args:
        accuracy: [K] rising.
        cost: [K] rising.
        sequential: pay every rung on the way.
        network: [K] see `Zoo.network`.

    Returns:
        [K - 1]: the last rung is the accuracy itself and cannot be left out.
    """
    below = np.concatenate([[accuracy[-1] - 1], accuracy[:-2]])
    solved, here, above = accuracy[:-1] - below, cost[:-1], cost[1:]
    if sequential:
        paid, rung = visits(cost, network), np.arange(len(cost) - 1)
        left_out, with_it, onwards = paid[rung, rung + 1], paid[rung, rung], paid[rung + 1, rung + 1]
        top = accuracy[-1]
        return np.asarray((top - below) * (left_out - with_it) - (top - accuracy[:-1]) * onwards)
    return np.asarray(solved * (above - here))


def best_ladders(
    accuracy: Floats,
    cost: Floats,
    *,
    sequential: bool,
    most: int | None = None,
    network: NDArray[np.intp] | None = None,
) -> list[Ladder]:
    """The cheapest ladder of every size that reaches the accuracy of the best model.

    Either cost is a sum over neighbouring rungs, so the best ladder of k rungs is a shortest path with k edges from A_0 to
    the top (dynamic programming, O(most n^2)):

        D[1, j] = edge(0, j),    D[k, j] = min_{i<j} D[k-1, i] + edge(i, j)
        edge(i, j) = (A_j - A_i) R_j  for a router,  (A_n - A_i) R_ij  for a sequential cascade, see `visits`

    Args:
        accuracy: [n] of models that are not dominated, rising.
        cost: [n] rising.
        sequential: which of the two costs is least.
        most: largest number of rungs; n if left out.
        network: [n] see `Zoo.network`.

    Returns:
        Ladders of 1, 2, ... rungs, indices into the arguments.

    Raises:
        ConfigError: accuracy or cost do not rise, or ``most`` is below 1.
    """
    models = len(accuracy)
    if not models or np.any(np.diff(accuracy) <= 0) or np.any(np.diff(cost, prepend=0.0) <= 0):
        raise ConfigError("accuracy and cost must rise from model to model: leave out those that are dominated")
    if most is not None and most < 1:
        raise ConfigError(f"a ladder has at least one rung, got {most}")
    sizes = models if most is None else min(most, models)
    start = accuracy[-1] - 1
    least = (accuracy[-1] - start if sequential else accuracy - start) * cost
    if sequential:
        edges = (accuracy[-1] - accuracy[:, None]) * visits(cost, network)[1:]
    else:
        edges = (accuracy - accuracy[:, None]) * cost
    edges[np.tril_indices(models)] = np.inf
    before = np.empty((sizes, models), dtype=np.intp)
    ladders = [_ladder((models - 1,), accuracy, cost, network)]
    for size in range(1, sizes):
        through = least[:, None] + edges
        before[size] = through.argmin(axis=0)
        least = through.min(axis=0)
        rungs = [models - 1]
        for step in range(size, 0, -1):
            rungs.append(int(before[step, rungs[-1]]))
        ladders.append(_ladder(tuple(reversed(rungs)), accuracy, cost, network))
    return ladders


@dataclass(frozen=True)
class ExactLadder:
    """A ladder chosen row by row."""

    rungs: tuple[int, ...]
    """Indices into the zoo, by rising cost."""
    cost: float
    """Least mean cost at which an oracle over these rungs has the accuracy of the best single model."""


def best_exact_ladders(zoo: Zoo, *, sequential: bool, most: int | None = None) -> list[ExactLadder]:
    """The cheapest ladder of every size by the exact oracle, all ladders tried.

    Ladders differ in how much their oracle solves, so they are compared at equal accuracy: the least cost on the oracle's
    frontier that reaches the accuracy of the best single model, which every ladder contains. Dominated models take part:
    they may be right where the others are not.

    Args:
        zoo: at most `MOST_EXACT` models of rising cost, with their rightness row by row.
        sequential: pay every rung on the way.
        most: largest number of rungs; all models if left out.

    Raises:
        ConfigError: too many models, or only marginals are known.
    """
    models = len(zoo.names)
    if zoo.right is None:
        raise ConfigError("only accuracies are known; the exact oracle needs an outcome table")
    if models > MOST_EXACT:
        raise ConfigError(f"all ladders of {models} models are too many to try; the limit is {MOST_EXACT}")
    patterns, count = np.unique(zoo.right @ (1 << np.arange(models)), return_counts=True)
    share = count / len(zoo.right)
    top = int(zoo.accuracy.argmax())
    best: dict[int, ExactLadder] = {}
    for members in range(1 << models):
        size = members.bit_count()
        if not members >> top & 1 or (most is not None and size > most):
            continue
        rungs = [k for k in range(models) if members >> k & 1]
        solved = patterns & members
        lowest = solved & -solved
        first = np.array([share[lowest == 1 << k].sum() for k in rungs])
        paid = np.cumsum(np.diagonal(visits(zoo.cost[rungs], zoo.network_of(rungs))))
        oracle = Oracle(zoo.cost[rungs], np.minimum(np.cumsum(first), 1.0), paid=paid)
        cost = oracle.cost_at(float(zoo.accuracy[top]), sequential=sequential)
        if size not in best or cost < best[size].cost:
            best[size] = ExactLadder(tuple(rungs), cost)
    return [best[size] for size in sorted(best)]


@dataclass(frozen=True, eq=False)
class Design:
    """The best ladders of a zoo. Build one with `design`."""

    zoo: Zoo
    kept: NDArray[np.intp]
    """Models that no other one beats, indices into the zoo; all other indices here point into it too."""
    by_router: tuple[Ladder, ...]
    """Of 1, 2, ... rungs, the cheapest for a router."""
    by_cascade: tuple[Ladder, ...]
    """The cheapest for a sequential cascade."""
    exact_by_router: tuple[ExactLadder, ...] | None
    """By the exact oracle; None without rightness row by row, or with too many models."""
    exact_by_cascade: tuple[ExactLadder, ...] | None
    """By the exact oracle of a sequential cascade."""
    most: int
    """Largest ladder asked for."""

    @property
    def all_kept(self) -> Ladder:
        """The ladder of all models that are not dominated."""
        return self.by_router[-1]

    @property
    def top_cost(self) -> float:
        """Cost of the most accurate model alone."""
        return float(self.zoo.cost[self.kept[-1]])

    @cached_property
    def chosen(self) -> Ladder:
        """The ladder of at most ``most`` rungs that is cheapest for a cascade, the shortest such."""
        return min(self.by_cascade[: self.most], key=lambda ladder: ladder.sequential_cost)

    @cached_property
    def not_paying(self) -> tuple[int, ...]:
        """Models that a cascade over all of `kept` is better without, each looked at alone."""
        zoo, kept = self.zoo, self.kept
        savings = rung_savings(zoo.accuracy[kept], zoo.cost[kept], sequential=True, network=zoo.network_of(kept))
        return tuple(self.kept[:-1][savings < 0].tolist())

    @cached_property
    def alpha(self) -> float | None:
        """Mean of the measured alphas; None where only marginals are known."""
        if self.zoo.right is None or len(self.zoo.names) < 2:
            return None
        measured = measured_alpha(self.zoo.right)
        return float(measured[np.isfinite(measured)].mean()) if np.isfinite(measured).any() else None

    def constant_alpha(self, rungs: Sequence[int]) -> Oracle | None:
        """The oracle over some rungs, estimated with `alpha`."""
        chosen = list(rungs)
        if self.alpha is None:
            return None
        paid = np.cumsum(np.diagonal(visits(self.zoo.cost[chosen], self.zoo.network_of(chosen))))
        return Oracle.constant_alpha(self.zoo.accuracy[chosen], self.zoo.cost[chosen], self.alpha, paid=paid)

    def document(self) -> dict[str, Any]:
        """The design as plain values for JSON."""
        zoo, shown = self.zoo, slice(self.most)
        kept = set(self.kept.tolist())
        return {
            "cost_unit": zoo.cost_unit,
            "models": [
                {"model": name, "accuracy": float(zoo.accuracy[k]), "cost": float(zoo.cost[k]), "dominated": k not in kept}
                for k, name in enumerate(zoo.names)
            ],
            "all": self._ladder_document(self.all_kept),
            "chosen": self._ladder_document(self.chosen),
            "best_by_router": [self._ladder_document(ladder) for ladder in self.by_router[shown]],
            "best_by_cascade": [self._ladder_document(ladder) for ladder in self.by_cascade[shown]],
            "not_paying_in_a_cascade": [zoo.names[k] for k in self.not_paying],
            "exact_best_by_router": self._exact_document(self.exact_by_router),
            "exact_best_by_cascade": self._exact_document(self.exact_by_cascade),
            "alpha": self.alpha,
        }

    def _ladder_document(self, ladder: Ladder) -> dict[str, Any]:
        """A ladder along the paper's three axes: range, size and granularity of its states."""
        rungs = list(ladder.rungs)
        accuracy, cost, network = self.zoo.accuracy[rungs], self.zoo.cost[rungs], self.zoo.network_of(rungs)
        estimate = self.constant_alpha(rungs)
        return {
            "rungs": [self.zoo.names[k] for k in rungs],
            "size": len(rungs),
            "range": float(cost[-1] / cost[0]),
            "granularity": float(np.max(cost[1:] / cost[:-1], initial=1.0)),
            "router": {
                "cost": ladder.router_cost,
                "subset_gain": self.top_cost / ladder.router_cost,
                "subset_regret": ladder.router_cost / self.all_kept.router_cost,
                "rung_savings": rung_savings(accuracy, cost, sequential=False).tolist(),
                "gain_constant_alpha": None if estimate is None else estimate.router_gain,
            },
            "cascade": {
                "cost": ladder.sequential_cost,
                "subset_gain": self.top_cost / ladder.sequential_cost,
                "subset_regret": ladder.sequential_cost / self.all_kept.sequential_cost,
                "rung_savings": rung_savings(accuracy, cost, sequential=True, network=network).tolist(),
                "gain_constant_alpha": None if estimate is None else estimate.sequential_gain,
            },
        }

    def _exact_document(self, ladders: tuple[ExactLadder, ...] | None) -> list[dict[str, Any]] | None:
        if ladders is None:
            return None
        return [
            {
                "rungs": [self.zoo.names[k] for k in ladder.rungs],
                "size": len(ladder.rungs),
                "cost": ladder.cost,
                "gain": self.top_cost / ladder.cost,
            }
            for ladder in ladders[: self.most]
        ]


def design(zoo: Zoo, most: int = 8) -> Design:
    """Find the best ladders of a zoo by the bound from marginals and, where it can be, by the exact oracle.

    Args:
        zoo: the models.
        most: largest number of rungs to ask for.

    Raises:
        ConfigError: ``most`` is below 1.
    """
    if most < 1:
        raise ConfigError(f"a ladder has at least one rung, got {most}")
    kept = pareto(zoo.cost, zoo.accuracy)

    def of_zoo(ladders: Sequence[Ladder]) -> tuple[Ladder, ...]:
        return tuple(replace(ladder, rungs=tuple(kept[list(ladder.rungs)].tolist())) for ladder in ladders)

    network = zoo.network_of(kept)
    by_router, by_cascade = (
        of_zoo(best_ladders(zoo.accuracy[kept], zoo.cost[kept], sequential=sequential, network=network))
        for sequential in (False, True)
    )
    exact: tuple[tuple[ExactLadder, ...], ...] | tuple[None, None] = (None, None)
    if zoo.right is not None and len(zoo.names) <= MOST_EXACT:
        exact = tuple(tuple(best_exact_ladders(zoo, sequential=sequential, most=most)) for sequential in (False, True))
    return Design(zoo, kept, by_router, by_cascade, exact[0], exact[1], most)


def _ladder(rungs: tuple[int, ...], accuracy: Floats, cost: Floats, network: NDArray[np.intp] | None) -> Ladder:
    chosen = list(rungs)
    own = None if network is None else network[chosen]
    costs = (ladder_cost(accuracy[chosen], cost[chosen], sequential=way, network=own) for way in (False, True))
    return Ladder(rungs, *costs)
