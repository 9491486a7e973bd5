"""Accuracy against mean cost: the cascade at every price, each single model, random escalation, and the oracles' limits.

Sweeps judged tables along their price path. Knows no file, no load and no drawing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.judged import JudgedTable, Walked, price_path
from cascade.calibration.oracle import Oracle, measured_alpha
from cascade.errors import ConfigError

Floats = NDArray[np.float64]

AREA_POINTS = 200
"""Costs, even on a logarithmic scale, over which the reached share of the oracle's accuracy is averaged."""

LOSSES = (0.0, 0.001, 0.005, 0.01, 0.02)
"""Losses of accuracy to the top stage alone at which gains are reported."""


def pareto(cost: Floats, accuracy: Floats) -> NDArray[np.intp]:
    """Points that no other one beats: every other is dearer or less accurate.

    Args:
        cost: [P].
        accuracy: [P].

    Returns:
        Indices, cost and accuracy both rising; the first of equal points.
    """
    order = np.lexsort((-accuracy, cost))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(accuracy[order])[:-1]])
    return order[accuracy[order] > best_before]


def upper_hull(cost: Floats, accuracy: Floats) -> NDArray[np.intp]:
    """Corners of the least concave line above all points: what choosing between them at random can reach.

    Args:
        cost: [P].
        accuracy: [P].

    Returns:
        Indices, cost and accuracy both rising.
    """
    hull: list[int] = []
    for point in pareto(cost, accuracy):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (accuracy[b] - accuracy[a]) * (cost[point] - cost[a]) > (accuracy[point] - accuracy[a]) * (cost[b] - cost[a]):
                break
            hull.pop()
        hull.append(int(point))
    return np.array(hull, dtype=np.intp)


@dataclass(frozen=True)
class Point:
    """One setting of a cascade."""

    prices: tuple[float, ...]
    """[S] price of a visit to each stage."""
    accuracy: float
    """Share of rows served right."""
    accuracy_se: float
    """Its standard error, sqrt(a (1 - a) / N)."""
    cost: float
    """Mean cost of a row."""
    loss: float
    """Accuracy of the top stage alone less this one; negative where the cascade is better."""
    loss_se: float
    """Standard error of the loss, from the paired differences of the rows."""
    exit_shares: tuple[float, ...]
    """[S] share of rows that stop at each stage."""

    @classmethod
    def of(cls, walked: Walked, prices: Floats | Sequence[float]) -> "Point":
        """Sum up where the rows of a table stopped."""
        rows, accuracy = walked.judged.rows, walked.accuracy
        difference = walked.judged.right[:, -1].astype(np.float64) - walked.right
        return cls(
            tuple(float(price) for price in prices),
            accuracy,
            float(np.sqrt(accuracy * (1 - accuracy) / rows)),
            walked.cost,
            float(difference.mean()),
            float(difference.std() / np.sqrt(rows)),
            tuple(walked.exit_shares.tolist()),
        )

    def document(self) -> dict[str, Any]:
        """The point as plain values for JSON."""
        return {
            "prices": list(self.prices),
            "accuracy": self.accuracy,
            "accuracy_se": self.accuracy_se,
            "cost": self.cost,
            "loss": self.loss,
            "loss_se": self.loss_se,
            "exit_shares": list(self.exit_shares),
        }


@dataclass(frozen=True, eq=False)
class Sweep:
    """A cascade at every price, and the limits of any rule that decides only where its rows stop."""

    judged: JudgedTable
    points: tuple[Point, ...]
    """From the safest prices to the boldest."""

    @cached_property
    def best(self) -> tuple[Point, ...]:
        """Points that no other one beats, by rising cost."""
        cost = np.array([point.cost for point in self.points])
        accuracy = np.array([point.accuracy for point in self.points])
        return tuple(self.points[index] for index in pareto(cost, accuracy))

    @cached_property
    def oracle(self) -> Oracle:
        """Knows after which stage the served answer is right; its sequential frontier limits every rule of stopping."""
        return Oracle.exact(self.judged.served, self.judged.alone, paid=self.judged.paid)

    @cached_property
    def random(self) -> tuple[Floats, Floats]:
        """Random escalation: every row goes on with a fixed probability, whatever its evidence.

        A row that stops at stage k by chance costs C_k = R_1 + ... + R_k and is right with the mean accuracy served there,
        so the best of all such rules is the upper hull of these S points.

        Returns:
            Cost and accuracy of the corners, to be joined by lines.
        """
        cost, accuracy = self.judged.paid, self.judged.served.mean(axis=0)
        hull = upper_hull(cost, accuracy)
        return cost[hull], accuracy[hull]

    @property
    def top_accuracy(self) -> float:
        """Accuracy of the last stage alone."""
        return float(self.judged.right[:, -1].mean())

    @property
    def top_cost(self) -> float:
        """Cost of the last stage alone."""
        return float(self.judged.alone[-1])

    @property
    def most_accurate(self) -> Point:
        """The point with the least loss, the cheapest such."""
        return self.best[-1]

    def at_loss(self, loss: float = 0.0) -> Point | None:
        """The cheapest point that loses at most so much accuracy to the top stage alone; None if every one loses more."""
        return next((point for point in self.best if point.loss <= loss), None)

    def gain(self, loss: float = 0.0) -> float | None:
        """G = cost of the top stage alone / cost of `at_loss`; None where every point loses more."""
        point = self.at_loss(loss)
        return None if point is None else self.top_cost / point.cost

    def oracle_gain(self, loss: float = 0.0) -> float:
        """G of the sequential oracle at the accuracy of the top stage alone less a loss; 0 where even it has less."""
        return self.top_cost / self.oracle.cost_at(self.top_accuracy - loss, sequential=True)

    def cost_share(self, loss: float = 0.0) -> float | None:
        """Share of the oracle's saving that is reached at equal accuracy, log G / log G_oracle.

        Negative where the cascade needs more than the top stage alone; None where G is, or where the oracle saves nothing.
        """
        gain, limit = self.gain(loss), self.oracle_gain(loss)
        return None if gain is None or limit <= 1 else float(np.log(gain) / np.log(limit))

    def accuracy_at(self, cost: Floats) -> Floats:
        """Accuracy of the cascade at mean costs [M]: lines between the best points, as requests divided at random get it."""
        corners = [point.cost for point in self.best], [point.accuracy for point in self.best]
        return np.asarray(np.interp(cost, *corners), dtype=np.float64)

    def random_at(self, cost: float | Floats) -> Floats:
        """Accuracy of `random` at mean costs; flat outside of its corners."""
        return np.asarray(np.interp(cost, *self.random), dtype=np.float64)

    def accuracy_share(self, cost: float) -> float | None:
        """Share of the oracle's lead over random escalation that is reached at equal cost; None where it leads by nothing.

        (A_cascade - A_random) / (A_oracle - A_random)
        """
        return self._accuracy_share(np.array([cost]))

    @property
    def mean_accuracy_share(self) -> float | None:
        """`accuracy_share` from the cheapest stage's cost to the top stage's: ratio of the areas over log cost."""
        return self._accuracy_share(np.geomspace(float(self.judged.cost[0]), self.top_cost, AREA_POINTS))

    def _accuracy_share(self, cost: Floats) -> float | None:
        random = self.random_at(cost)
        lead = float((self.oracle.accuracy_at(cost, sequential=True) - random).sum())
        return float((self.accuracy_at(cost) - random).sum()) / lead if lead > 1e-12 else None

    def document(self) -> dict[str, Any]:
        """The sweep as plain values for JSON."""
        best = {id(point) for point in self.best}
        return {
            "points": [point.document() | {"best": id(point) in best} for point in self.points],
            "most_accurate": self.most_accurate.document(),
            "gains": [self._gain_document(loss) for loss in LOSSES],
            "mean_accuracy_share": self.mean_accuracy_share,
            "random": _line(*self.random),
            "oracle": self.oracle.document() | {"frontier": _line(*self.oracle.frontier(sequential=True))},
        }

    def _gain_document(self, loss: float) -> dict[str, Any]:
        point = self.at_loss(loss)
        return {
            "loss": loss,
            "point": None if point is None else point.document(),
            "gain": self.gain(loss),
            "oracle_gain": self.oracle_gain(loss),
            "cost_share": self.cost_share(loss),
            "accuracy_share": None if point is None else self.accuracy_share(point.cost),
        }


@dataclass(frozen=True, eq=False)
class Frontier:
    """One or more sweeps over the same rows, beside single models and the limits from the stages' own answers."""

    sweeps: Mapping[str, Sweep]
    """By the way that answers are given, such as ``"calibrated"`` and ``"replace"``; the first is the one to look at."""
    operating: Point | None = None
    """The first sweep's cascade at the prices that a ladder is configured with."""

    @property
    def main(self) -> Sweep:
        """The first sweep."""
        return next(iter(self.sweeps.values()))

    @property
    def judged(self) -> JudgedTable:
        """The first sweep's table."""
        return self.main.judged

    @cached_property
    def accuracy(self) -> Floats:
        """[S] accuracy of each stage alone."""
        return np.asarray(self.judged.right.mean(axis=0), dtype=np.float64)

    @cached_property
    def router(self) -> Oracle:
        """Exact oracle over the stages' own answers; a cascade that combines answers may be right where no stage is."""
        return Oracle.exact(self.judged.right, self.judged.alone, paid=self.judged.paid)

    @cached_property
    def nested(self) -> Oracle:
        """The oracle that marginals guarantee, alpha = 1."""
        return Oracle.nested(self.accuracy, self.judged.alone, paid=self.judged.paid)

    @cached_property
    def alpha(self) -> Floats:
        """[S - 1] measured alpha; see `measured_alpha`."""
        return measured_alpha(self.judged.right)

    @cached_property
    def constant_alpha(self) -> Oracle | None:
        """The oracle estimated from marginals and the mean of the measured alphas; None where none can be measured."""
        known = self.alpha[np.isfinite(self.alpha)]
        if not len(known):
            return None
        return Oracle.constant_alpha(self.accuracy, self.judged.alone, float(known.mean()), paid=self.judged.paid)

    def document(self) -> dict[str, Any]:
        """The frontier as plain values for JSON."""
        singles = zip(self.judged.stages, self.accuracy.tolist(), self.judged.alone.tolist(), strict=True)
        constant = self.constant_alpha
        return {
            "rows": self.judged.rows,
            "cost_unit": self.judged.cost_unit,
            "stages": [{"name": name, "accuracy": accuracy, "cost": cost} for name, accuracy, cost in singles],
            "sweeps": {name: sweep.document() for name, sweep in self.sweeps.items()},
            "operating_point": None if self.operating is None else self.operating.document(),
            "oracle": {
                "exact": self.router.document()
                | {
                    "router_frontier": _line(*self.router.frontier(sequential=False)),
                    "sequential_frontier": _line(*self.router.frontier(sequential=True)),
                },
                "constant_alpha": None if constant is None else constant.document(),
                "nested": self.nested.document(),
                "alpha": [None if np.isnan(alpha) else float(alpha) for alpha in self.alpha],
            },
        }


def sweep(judged: JudgedTable, points: int = 60) -> Sweep:
    """Walk every row of a table at every point of its price path.

    Args:
        judged: rows that nothing was fitted on, at least one.
        points: how many prices, at least 3.

    Raises:
        ConfigError: too few points, or no rows.
    """
    if points < 3:
        raise ConfigError(f"points: a frontier needs at least 3, got {points}")
    if not judged.rows:
        raise ConfigError("the table has no rows")
    return Sweep(judged, tuple(Point.of(judged.walk(prices), prices) for prices in price_path(judged.cost, points)))


def frontier(
    tables: Mapping[str, JudgedTable], *, points: int = 60, operating_prices: Sequence[float] | None = None
) -> Frontier:
    """Sweep judged tables of the same rows.

    Args:
        tables: by the way that answers are given; the first is the one to look at.
        points: prices of each sweep, at least 3.
        operating_prices: [S] prices that the ladder is configured with.

    Raises:
        ConfigError: no table, tables of other stages or rows, or too few points.
    """
    if not tables:
        raise ConfigError("a frontier needs a judged table")
    first = next(iter(tables.values()))
    for name, judged in tables.items():
        if judged.stages != first.stages or judged.rows != first.rows:
            raise ConfigError(f"table {name!r} has other stages or rows than the first one")
    operating = None
    if operating_prices is not None:
        if len(operating_prices) != len(first.stages):
            raise ConfigError(f"expected a price for each of {len(first.stages)} stages, got {len(operating_prices)}")
        operating = Point.of(first.walk(operating_prices), operating_prices)
    return Frontier({name: sweep(judged, points) for name, judged in tables.items()}, operating)


def _line(cost: Floats, accuracy: Floats) -> dict[str, list[float]]:
    return {"cost": cost.tolist(), "accuracy": accuracy.tolist()}
