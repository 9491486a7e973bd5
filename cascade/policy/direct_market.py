"""Present prices where rows may skip stages: the market of `cascade.policy.market` for direct routing. Pure.

A row goes from stage k to the stage j of its largest net gain g_kj - price_j, so that demand for one stage depends on the
prices of all. Given the others' prices, what a row would pay for stage j is exact: let it walk with j closed; from a stage k
on that way it goes to j rather than what it does instead as long as

    price_j < g_kj - max(0, best other net gain at k)

and it visits j iff that holds somewhere on its way. The price of j is then a quantile of what rows would pay, and a few
rounds over the stages find prices that clear all of them (stages are substitutes: a higher price at one raises demand at
others).
"""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from cascade.policy.gain import Floats
from cascade.policy.market import RHO, Clearing, Group, Market, quantile

ROUNDS = 6
"""Rounds over all stages at a clearing, at most; after three or four demand fits to a few percent."""
STEADY = 0.01
"""Share of itself by which no surcharge moves any more."""


class DirectMarket(Market):
    """Demand of a ladder's traffic by price, rows being free to skip stages; see `Market`."""

    def __init__(
        self,
        gains: Sequence[Floats],
        p_correct: Floats,
        base_prices: Sequence[float],
        rho: float = RHO,
        pools: Sequence[int] | None = None,
    ) -> None:
        # Only stages that resume others share their replicas, and those cannot be skipped to.
        if pools is not None and len(set(pools)) < len(pools):
            raise ValueError(f"stages that share replicas cannot be reached past each other: {list(pools)}")
        self._at_base: dict[tuple[int, ...], list[float]] = {}
        super().__init__(gains, p_correct, base_prices, rho, pools)

    def clear(self, groups: Sequence[Group], rows_per_s: Sequence[float]) -> Clearing:
        """See `Market`."""
        rate = sum(group.rate for group in groups)
        if rate > 0:
            groups = [group for group in groups if group.rate > 0]
        opened = (0, *(stage for stage in range(1, self.stages) if rows_per_s[stage] > 0))
        shares = [group.rate / rate if rate > 0 else 1.0 / len(groups) for group in groups]
        rows = len(self._p_correct)
        mass = np.array(shares) / rows
        at_base = self._visits_at_base(opened)
        fits = [self._rho * rows_per_s[stage] / at_base[stage] for stage in opened if at_base[stage] > 0]
        values = self._ways(opened)
        most = [self._rho * rows_per_s[stage] / rate if rate > 0 else inf for stage in range(self.stages)]

        surcharges = [0.0 if stage in opened else inf for stage in range(self.stages)]
        congested = any(at_base[stage] > most[stage] for stage in opened[1:])
        for _ in range(ROUNDS if congested else 0):
            before = list(surcharges)
            for stage in opened[1:]:
                surplus = [self._surplus(opened, values, group, self._charged(surcharges, group), stage) for group in groups]
                surcharges[stage] = quantile(surplus, mass, most[stage])
            if all(abs(new - old) <= STEADY * new for new, old in zip(surcharges, before, strict=True) if new < inf):
                break

        visits, accuracy, degraded = np.zeros(self.stages), 0.0, 0.0
        for group, weight in zip(groups, mass.tolist(), strict=True):
            visited, stops = self._walk(opened, values, self._charged(surcharges, group))
            visits += weight * visited.sum(axis=0)
            accuracy += weight * float(self._p_correct[stops].sum())
            degraded += weight * sum(
                float((stops[:, stage] & (self._net(values[stage], opened, stage, self._base) > 0)).sum())
                for stage in opened[:-1]
            )
        prices = tuple(base + charge for base, charge in zip(self._base, surcharges, strict=True))
        limit = min(fits, default=inf)
        return Clearing(prices, limit, tuple(visits.tolist()), tuple(self._unloaded), accuracy, degraded)

    def _ways(self, opened: tuple[int, ...]) -> dict[int, Floats]:
        """Value of going from each open stage but the last to each open one behind it, [targets, n]."""
        if opened not in self._values:
            self._values[opened] = [
                np.ascontiguousarray(self._gains[stage][:, [j - stage - 1 for j in opened[place + 1 :]]].T)
                for place, stage in enumerate(opened[:-1])
            ]
        return dict(zip(opened, self._values[opened], strict=False))

    def _charged(self, surcharges: Sequence[float], group: Group) -> list[float]:
        """What a visit to each stage costs a group: surcharges count by its weight, and no more than its cap."""
        room = [inf] * self.stages
        if group.cap is not None:
            room = [max(cap - base, 0.0) for cap, base in zip(group.cap, self._base, strict=True)]
        return [
            min(base + min(charge, most) / group.weight, base + most) if charge < inf else inf
            for base, charge, most in zip(self._base, surcharges, room, strict=True)
        ]

    def _net(self, values: Floats, opened: tuple[int, ...], stage: int, prices: Sequence[float]) -> Floats:
        """Largest net gain of going on, [n]."""
        targets = opened[opened.index(stage) + 1 :]
        net: Floats = (values - np.array([prices[j] for j in targets])[:, None]).max(axis=0)
        return net

    def _walk(
        self, opened: tuple[int, ...], values: dict[int, Floats], prices: Sequence[float]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Stages that each row visits and the one that it stops at, [n, S] both."""
        visited = np.zeros((len(self._p_correct), self.stages), np.bool_)
        stops = np.zeros_like(visited)
        visited[:, 0] = True
        for place, stage in enumerate(opened):
            here, targets = visited[:, stage], opened[place + 1 :]
            if not targets:
                stops[:, stage] = here
                break
            nets = values[stage] - np.array([prices[j] for j in targets])[:, None]
            chosen, goes = nets.argmax(axis=0), here & (nets.max(axis=0) > 0)
            stops[:, stage] = here & ~goes
            for index, target in enumerate(targets):
                visited[:, target] |= goes & (chosen == index)
        return visited, stops

    def _surplus(
        self,
        opened: tuple[int, ...],
        values: dict[int, Floats],
        group: Group,
        prices: Sequence[float],
        stage: int,
    ) -> Floats:
        """What each row of a group would pay for a visit to a stage over its base price, by the group's weight, [n]."""
        closed = [inf if j == stage else price for j, price in enumerate(prices)]
        visited, _ = self._walk(opened, values, closed)
        pays = np.full(len(visited), -inf)
        for place, before in enumerate(opened[: opened.index(stage)]):
            targets = opened[place + 1 :]
            nets = values[before] - np.array([closed[j] for j in targets])[:, None]
            here = values[before][targets.index(stage)] - np.maximum(nets.max(axis=0), 0.0)
            pays = np.where(visited[:, before], np.maximum(pays, here), pays)
        surplus: Floats = group.weight * (pays - self._base[stage])
        if group.cap is not None:
            surplus = np.where((pays > group.cap[stage]) & (pays > self._base[stage]), inf, surplus)
        return surplus

    def _visits_at_base(self, opened: tuple[int, ...]) -> list[float]:
        """[S] share of rows that run on each stage at base prices, of any class."""
        if opened not in self._at_base:
            visited, _ = self._walk(opened, self._ways(opened), self._base)
            self._at_base[opened] = [float(share) for share in visited.mean(axis=0)]
        return self._at_base[opened]

    def _base_visits(self, opened: tuple[int, ...]) -> list[float]:
        """See `Market`: on each open stage."""
        visits = self._visits_at_base(opened)
        return [visits[stage] for stage in opened]
