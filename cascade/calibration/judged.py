"""What a calibrated ladder makes of every row of an outcome table, and where the rows stop at given prices.

The meeting point of the offline tools: certificates, frontiers, plans and the simulator read a `JudgedTable`, and rows walk
it by the policy's own rule. Knows no file, no model and no load.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.outcome_arrays import alone_of
from cascade.policy.price import continuation_value
from cascade.policy.routing import Routing

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Walked:
    """What comes of a table's rows when each stops at a given stage."""

    judged: "JudgedTable"
    """The table."""
    exits: NDArray[np.intp]
    """[N] stage at which each row stops."""
    visited: Bools
    """[N, S] stages that each row ran on."""

    @cached_property
    def right(self) -> Bools:
        """[N] whether the served answer is right."""
        return np.asarray(self.judged.served[np.arange(self.judged.rows), self.exits])

    @property
    def accuracy(self) -> float:
        """Share of rows served right."""
        return float(self.right.mean())

    @property
    def cost(self) -> float:
        """Mean cost of a row: all stages that it ran on."""
        return float(self.costs.mean())

    @property
    def costs(self) -> Floats:
        """[N] cost of each row: all stages that it ran on."""
        return np.asarray(self.visited @ self.judged.cost)

    @property
    def exit_shares(self) -> Floats:
        """[S] share of rows that stop at each stage."""
        return np.bincount(self.exits, minlength=len(self.judged.stages)) / self.judged.rows

    @property
    def visits(self) -> Floats:
        """[S] share of rows that run on each stage; the first is 1."""
        return np.asarray(self.visited.mean(axis=0))

    @cached_property
    def losses(self) -> Bools:
        """[N] whether the whole ladder would have been right and the served answer is wrong.

        The whole ladder is what is served on stopping at the last stage. The mean loss bounds the accuracy that is lost by
        stopping earlier: accuracy of the whole ladder - accuracy served <= mean loss.
        """
        return self.judged.served[:, -1] & ~self.right


@dataclass(frozen=True, eq=False)
class JudgedTable:
    """N rows, S stages, as the policy would see them: everything that decisions and their bounds need."""

    stages: tuple[str, ...]
    """Names, cheapest first."""
    cost: Floats
    """[S] cost of a visit to each stage."""
    cost_unit: str
    """What ``cost`` counts."""
    right: Bools
    """[N, S] whether each stage's own answer is right."""
    served: Bools
    """[N, S] whether the answer given to a row that stops at this stage is right; differs from ``right`` where the stages
    passed are combined or an earlier answer is recalled."""
    p_correct: Floats
    """[N, S] calibrated probability that the served answer is right."""
    gains: Floats
    """[N, S, S] at [n, k, j], j > k: expected gain of stage j for row n after stage k. 0 elsewhere."""
    group: NDArray[np.str_] | None = None
    """[N] slice of each row, for reports by group."""
    resumes: Bools | None = None
    """[S] whether each stage goes on from what the one before computed; None where none does."""
    routing: Routing = "cascade"
    """Whether rows may skip stages; then no stage of the table looks back at others' answers."""

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.right)

    @property
    def alone(self) -> Floats:
        """[S] cost of running a row to each stage's answer and asking no other, rising."""
        return self.cost if self.resumes is None else alone_of(self.cost, self.resumes)

    @property
    def paid(self) -> Floats:
        """[S] cost of a row that stops at each stage: of all stages that it ran on."""
        return np.cumsum(self.cost)

    def exits(self, prices: Sequence[float] | Floats, lookahead: Sequence[float] | Floats | None = None) -> NDArray[np.intp]:
        """Stage at which each row stops, [N]; see `walk`."""
        return self.walk(prices, lookahead).exits

    def walk(self, prices: Sequence[float] | Floats, lookahead: Sequence[float] | Floats | None = None) -> Walked:
        """Let every row walk with no queue full: on while the value of going on exceeds the price.

        Args:
            prices: [S] price of a visit to each stage; the first is not used, since every row visits stage 0.
            lookahead: [S] prices at which the value looks beyond the next stage: the base prices, where ``prices`` are those
                of a loaded server; the same prices where left out. Direct routing looks no further.
        """
        last = len(self.stages) - 1
        prices = [float(price) for price in prices]
        ahead = prices if lookahead is None else [float(price) for price in lookahead]
        stopped = np.full(self.rows, last, dtype=np.intp)
        visited = np.zeros((self.rows, last + 1), dtype=np.bool_, order="F")
        visited[:, 0] = True
        for stage in range(last):
            net, target = self._onward(stage, prices, ahead)
            leaves = visited[:, stage] & (net <= 0)
            stopped[leaves] = stage
            for behind in range(stage + 1, last + 1) if self.routing == "direct" else (stage + 1,):
                visited[:, behind] |= visited[:, stage] & ~leaves & (target == behind)
        return Walked(self, stopped, visited)

    def would_stop(self, prices: Sequence[float] | Floats) -> Bools:
        """[N, S] whether each row would stop at each stage if it came there, at the last one always."""
        prices = [float(price) for price in prices]
        last = len(self.stages) - 1
        nets = [self._onward(stage, prices, prices)[0] for stage in range(last)]
        return np.column_stack([*(net <= 0 for net in nets), np.ones(self.rows, dtype=np.bool_)])

    def _onward(self, stage: int, prices: list[float], ahead: list[float]) -> tuple[Floats, NDArray[np.intp] | int]:
        """Largest net gain of going on from a stage, [N], and where to."""
        last, gains = len(self.stages) - 1, self.gains[:, stage, stage + 1 :]
        if self.routing == "cascade" or stage == last - 1:
            value = continuation_value(gains, stage, range(stage + 1, last + 1), ahead)
            return np.asarray(value - prices[stage + 1]), stage + 1
        nets = gains - np.array(prices[stage + 1 :])
        place = nets.argmax(axis=1)  # the nearest of equal ones
        return nets[np.arange(self.rows), place], place + stage + 1

    def stop_at(self, stage: int) -> Walked:
        """Let every row stop at one stage, after all before it."""
        return self.stopping(np.full(self.rows, stage, dtype=np.intp))

    def stopping(self, exits: NDArray[np.intp]) -> Walked:
        """Let every row stop at a given stage [N], after all before it."""
        return Walked(self, exits, np.arange(len(self.stages)) <= exits[:, None])

    def select(self, rows: NDArray[Any]) -> "JudgedTable":
        """The table of only some rows: a mask [N], or indices (which may repeat)."""
        return replace(
            self,
            right=self.right[rows],
            served=self.served[rows],
            p_correct=self.p_correct[rows],
            gains=self.gains[rows],
            group=None if self.group is None else self.group[rows],
        )


def price_path(cost: Floats, points: int = 60) -> list[Floats]:
    """Prices from safest to boldest: price_k = x cost_k, x from 0 (escalate wherever accuracy may be won) upwards.

    At the last point the visit to the second stage costs 1, more than any gain, so every row stops at the first stage; the
    points between lie evenly on a logarithmic scale over the range in which something changes.

    Args:
        cost: [S] cost of a visit to each stage.
        points: how many, at least 3.

    Returns:
        Price vectors [S], each at least the one before in every component.
    """
    if len(cost) == 1:
        return [np.zeros(1)]
    lowest, highest = 1e-4 / float(cost[-1]), 1.0 / float(cost[1])
    return [np.zeros(len(cost)), *(x * cost for x in np.geomspace(lowest, highest, points - 1))]
