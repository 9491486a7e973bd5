"""Present prices from the present load: what a visit must cost for demand to fit what each stage can run.

A sample of judged rows stands for the traffic; a stage is a number of rows a second. Knows no clock, no queue and no file.
The loop that calls it is slow and may die: prices only spare rows a queue that they would leave unserved.

A row's value of going on looks ahead at base prices (`cascade.policy.price`), so it does not change with the present ones,
and whether a row reaches stage k depends on the prices of the stages up to k alone. Prices that clear every stage are
therefore found from the cheapest stage upwards, each as a quantile of the values of the rows that get that far:

    p_k = the smallest price with   rate x P(row reaches k and value > p_k) <= rho x capacity_k,   p_k >= base_k

which is complementary slackness of the fluid optimum: a surcharge only where capacity is used up. Stages that run on the
same replicas share one limit, the replicas' time, and so one multiplier m: each charges for the time that a visit takes,

    p_k = base_k + m t_k,   t_k = 1 / capacity_k,   rate x sum_k t_k P(row reaches k and value > p_k) <= 1

A row that comes to them pays for all of its visits until it stops, so it visits stage k iff m is below the least of
(value - base) / t on its way there, and m is a quantile of these over rows and stages, weighted by time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf

import numpy as np
from numpy.typing import NDArray

from cascade.policy.gain import Floats
from cascade.policy.price import continuation_value

RHO = 1.1
"""Part of the capacity that prices are made for: a little more than there is, since the queue, which is ordered by gain,
then always has something to choose from and answers the excess at once. Where stages share replicas the cheaper ones go
first, so what is asked for in vain is asked of the deepest: there it is a tenth of what that one would use at base prices.
A tenth of the whole may be several times the little that is left for it under load, and rows that wait for it in vain are
answered at their deadline."""


@dataclass(frozen=True, slots=True)
class Group:
    """Traffic of one class.

    Attributes:
        rate: rows a second.
        weight: what its gains count, above 0.
        cap: [S] price that a visit to each stage may cost it at most; None for no limit.
    """

    rate: float
    weight: float = 1.0
    cap: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Clearing:
    """Prices, and what comes of the sample's rows at them with queues that hold back the excess.

    Attributes:
        prices: [S] price of a visit to each stage; that of a stage that is out is infinite.
        uncongested_rate: rows a second of the same mix up to which no stage needs a surcharge.
        visits: [S] share of rows that run on each stage.
        unloaded_visits: [S] the same at base prices with every stage there and nothing scarce.
        accuracy: mean probability that the answer served is right.
        degraded: share of rows that stop where the unloaded rule goes on.
    """

    prices: tuple[float, ...]
    uncongested_rate: float
    visits: tuple[float, ...]
    unloaded_visits: tuple[float, ...]
    accuracy: float
    degraded: float


class Market:
    """Demand of a ladder's traffic by price.

    Args:
        gains: gain of each dearer stage after each stage but the last, [n, S - 1 - k] for k = 0 .. S - 2.
        p_correct: [n, S] probability that the answer is right when the row stops at each stage.
        base_prices: [S] price of a visit when nothing is scarce.
        rho: see `RHO`.
        pools: [S] a number for each stage, the same for stages that run on the same replicas; None where none do.
    """

    def __init__(
        self,
        gains: Sequence[Floats],
        p_correct: Floats,
        base_prices: Sequence[float],
        rho: float = RHO,
        pools: Sequence[int] | None = None,
    ) -> None:
        if len(gains) != len(base_prices) - 1 or p_correct.shape[1] != len(base_prices):
            raise ValueError(f"{len(base_prices)} prices, gains of {len(gains)} stages, p_correct {p_correct.shape}")
        self._gains = tuple(gains)
        self._p_correct = p_correct
        self._base = tuple(base_prices)
        self._rho = rho
        self._pools = tuple(range(len(base_prices)) if pools is None else pools)
        self._values: dict[tuple[int, ...], list[Floats]] = {}
        self._unloaded = self._base_visits(tuple(range(len(base_prices))))

    @property
    def base_prices(self) -> tuple[float, ...]:
        """Price of a visit to each stage when nothing is scarce."""
        return self._base

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._base)

    def clear(self, groups: Sequence[Group], rows_per_s: Sequence[float]) -> Clearing:
        """Prices at which demand fits.

        Args:
            groups: traffic by class; what counts is their rates' proportions, and their sum.
            rows_per_s: [S] rows a second that each stage can run, if nobody else uses its replicas; 0 for one that is out.
        """
        rate = sum(group.rate for group in groups)
        opened = (0, *(stage for stage in range(1, self.stages) if rows_per_s[stage] > 0))
        shares = [group.rate / rate if rate > 0 else 1.0 / len(groups) for group in groups]
        at_base = self._base_visits(opened)
        uncongested_rate = self._uncongested_rate(opened, at_base, rows_per_s)

        values = self._values_of(opened)
        prices = [inf] * self.stages
        prices[0] = self._base[0]
        reached: list[NDArray[np.bool_]] = [np.ones(len(self._p_correct), np.bool_) for _ in groups]
        visits, accuracy, degraded = np.zeros(self.stages), 0.0, 0.0
        mass = np.array(shares) / len(self._p_correct)
        visits[0] = 1.0
        taken = {self._pools[0]: 1.0 / rows_per_s[0] if rows_per_s[0] > 0 else inf}
        for places in self._runs(opened):
            stages = [opened[place] for place in places]
            pool, times = self._pools[stages[0]], [1.0 / rows_per_s[stage] for stage in stages]
            surplus, bids = [], []
            least = [np.where(r, inf, -inf) for r in reached]
            for place, stage, time in zip(places, stages, times, strict=True):
                surplus.append([_surplus(values[place - 1], self._base[stage], stage, group) for group in groups])
                least = [np.minimum(before, asks / time) for before, asks in zip(least, surplus[-1], strict=True)]
                bids.append(least)
            worth = np.outer(times, mass)
            left = max(0.0, 1.0 - rate * taken.get(pool, 0.0))
            asking = np.array([[np.count_nonzero(bid > 0) for bid in each] for each in bids])
            wanted = (asking * worth).sum(axis=1).tolist()
            most = left * _excess(wanted, self._rho) / rate if rate > 0 else inf
            multiplier = quantile([bid for each in bids for bid in each], worth.ravel(), most)
            for place, stage, time, asks, each in zip(places, stages, times, surplus, bids, strict=True):
                prices[stage] = self._base[stage] + multiplier * time
                for index, bid in enumerate(each):
                    going = bid > multiplier
                    stays = reached[index] & ~going
                    accuracy += float(self._p_correct[stays, opened[place - 1]].sum()) * mass[index]
                    degraded += float((stays & (asks[index] > 0)).sum()) * mass[index]
                    reached[index] = going
                    visits[stage] += float(going.sum()) * mass[index]
                taken[pool] = taken.get(pool, 0.0) + float(visits[stage]) * time
        accuracy += sum(float(self._p_correct[r, opened[-1]].sum()) * m for r, m in zip(reached, mass, strict=True))
        return Clearing(
            tuple(prices),
            uncongested_rate,
            tuple(visits.tolist()),
            tuple(self._unloaded),
            accuracy,
            degraded,
        )

    def _runs(self, opened: tuple[int, ...]) -> list[list[int]]:
        """Places in ``opened`` of the stages behind the first; those that are neighbours on the same replicas together."""
        return [list(run) for _, run in groupby(range(1, len(opened)), key=lambda place: self._pools[opened[place]])]

    def _uncongested_rate(self, opened: tuple[int, ...], at_base: Sequence[float], rows_per_s: Sequence[float]) -> float:
        """The rate up to which demand at base prices fits; of a run of stages: rate x P <= excess (1 - rate x before)."""
        if rows_per_s[0] <= 0:
            return 0.0
        first = at_base[0] / rows_per_s[0]
        lowest, before = self._rho / first, {self._pools[0]: first}
        for places in self._runs(opened):
            pool, parts = self._pools[opened[places[0]]], [at_base[place] / rows_per_s[opened[place]] for place in places]
            if (whole := sum(parts)) > 0:
                excess = _excess(parts, self._rho)
                lowest = min(lowest, excess / (whole + excess * before.get(pool, 0.0)))
                before[pool] = before.get(pool, 0.0) + whole
        return lowest

    def _values_of(self, opened: tuple[int, ...]) -> list[Floats]:
        """Value of going on from each open stage but the last of them, [n] each."""
        if opened not in self._values:
            self._values[opened] = [
                continuation_value(self._gains[stage], stage, opened[place + 1 :], self._base)
                for place, stage in enumerate(opened[:-1])
            ]
        return self._values[opened]

    def _base_visits(self, opened: tuple[int, ...]) -> list[float]:
        """Share of rows that run on each open stage at base prices, of any class."""
        values = self._values_of(opened)
        going = np.ones(len(self._p_correct), np.bool_)
        shares = [1.0]
        for place, target in enumerate(opened[1:]):
            going &= values[place] > self._base[target]
            shares.append(float(going.mean()))
        return shares


def _excess(parts: Sequence[float], rho: float) -> float:
    """Part of the time that is left to stages on the same replicas that prices are made for, see `RHO`.

    Args:
        parts: time that each would use at base prices, the deepest last.
        rho: what it is for a stage alone.
    """
    whole, deepest = sum(parts), next((part for part in reversed(parts) if part > 0), 0.0)
    return 1.0 + (rho - 1.0) * (deepest / whole if whole > 0 else 1.0)


def _surplus(values: Floats, base: float, target: int, group: Group) -> Floats:
    """What a row adds over the base price, by the weight of its class; infinite where the class's cap protects it."""
    surplus: Floats = group.weight * (values - base)
    if group.cap is not None:
        surplus = np.where((values > group.cap[target]) & (values > base), inf, surplus)
    return surplus


def quantile(surplus: Sequence[Floats], mass: Floats, most: float) -> float:
    """The smallest surcharge, 0 or a row's own surplus, above which rows of a mass of at most ``most`` lie."""
    everything = np.concatenate(surplus)
    weights = np.repeat(mass, [len(part) for part in surplus])
    asking = everything > 0
    everything, weights = everything[asking], weights[asking]
    if weights.sum() <= most * (1 + 1e-9):
        return 0.0
    order = np.argsort(-everything)
    above = np.cumsum(weights[order])
    # The row at which the mass runs out, and those of the same surplus, have to pay more than they are worth.
    first_out = int(np.searchsorted(above, most * (1 + 1e-9), side="right"))
    price = float(everything[order][min(first_out, len(above) - 1)])
    return price if price < inf else float(everything[np.isfinite(everything)].max(initial=0.0))
