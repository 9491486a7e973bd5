"""Prices by rate and capacities, each computed once. Knows a judged table; not the truth of the ladder, and no queue."""

from collections.abc import Sequence
from math import exp, log

import numpy as np

from benchmarks.laws.synthetic import Floats
from cascade.calibration.clearing import clear
from cascade.calibration.fluid import Capacity
from cascade.calibration.judged import JudgedTable

RATE_GRID, CAPACITY_GRID = log(1.05), log(1.08)
"""Plans are kept on grids of 5 % in the rate and 8 % in the capacities."""
LEAST_PER_S = 1e-3
"""Capacity of a stage that is out, and least rate."""


class Prices:
    """The product's market-clearing prices, kept.

    Args:
        table: labelled rows, judged.
        nominal: [S] rows/s of each stage when all is well.
    """

    def __init__(self, table: JudgedTable, nominal: Floats) -> None:
        self._table = table
        self._nominal = nominal
        self._kept: dict[tuple[int, ...], tuple[float, ...]] = {}

    def clearing(self, rate: float, capacity: Sequence[float] | Floats, rho: float) -> tuple[float, ...]:
        """Prices at which ``rate`` requests/s fill the share ``rho`` of each stage's capacity; 0 where they cannot."""
        room = np.maximum(rho * np.asarray(capacity, dtype=np.float64), LEAST_PER_S)
        key = (round(log(max(rate, LEAST_PER_S)) / RATE_GRID), *np.rint(np.log(room) / CAPACITY_GRID).astype(int).tolist())
        if key not in self._kept:
            # For the point of the grid, not for what was asked: a price may not depend on what was asked before.
            there = Capacity(np.exp(np.array(key[1:]) * CAPACITY_GRID))
            self._kept[key] = tuple(clear(self._table, there, exp(key[0] * RATE_GRID)).point.prices.tolist())
        return self._kept[key]

    def setting(self, load: float) -> tuple[float, ...]:
        """Prices that just hold ``load`` times the top stage's capacity when all is well: for laws that know no rate."""
        return self.clearing(load * float(self._nominal[-1]), self._nominal, 1.0)
