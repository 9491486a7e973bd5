"""The most that a ladder can do at an arrival rate, in the limit of steady, fluid load: operating points mixed by an LP.

An operating point (gear) is what comes of a judged table at one price vector. The LP shares the traffic out between gears
so that no stage gets more rows than it can run; the duals of its capacity rows price a visit to each stage. Knows no queue,
no deadline and no file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from cascade.calibration.judged import Floats, JudgedTable, price_path
from cascade.errors import ConfigError
from cascade.policy.price import continuation_value

MAX_ROUNDS = 60
"""New operating points that are tried at one rate, at most; a handful is usual once the neighbours' are known."""
WORTH = 1e-6
"""Accuracy that a new operating point must promise to be taken up: a hundredth of a row in ten thousand."""


@dataclass(frozen=True)
class Capacity:
    """What the machines can do.

    Raises:
        ConfigError: a capacity that is not above 0, or arrays of different lengths.
    """

    rows_per_s: Floats
    """[S] rows a second that each stage can run; infinite where only the shared pool limits it."""
    work_s: Floats | None = None
    """[S] seconds of the shared pool that a row takes at each stage, where all stages share the same cores."""
    pool: float = inf
    """Cores of the pool: seconds of work that it does in a second."""
    together: tuple[tuple[int, ...], ...] = ()
    """Stages that run on the same replicas, each group: every one of them runs its ``rows_per_s`` if the others have nothing
    to do, and otherwise they share the time."""

    def __post_init__(self) -> None:
        if len(self.rows_per_s) == 0 or not (np.asarray(self.rows_per_s) > 0).all() or not self.pool > 0:
            raise ConfigError(f"capacities must be above 0, got {self.rows_per_s} rows a second and a pool of {self.pool}")
        if self.work_s is not None and len(self.work_s) != len(self.rows_per_s):
            raise ConfigError(f"work_s: expected one for each of {len(self.rows_per_s)} stages, got {len(self.work_s)}")
        if self.work_s is None and self.pool < inf:
            raise ConfigError("a shared pool needs the work of a visit to each stage")

    def times(self, factor: float) -> "Capacity":
        """All of it times a factor."""
        return Capacity(np.asarray(self.rows_per_s) * factor, self.work_s, self.pool * factor, self.together)

    def admitted(self, rate: float) -> float:
        """theta: share of ``rate`` that stage 0 can run."""
        first = float(self.rows_per_s[0])
        if self.work_s is not None and self.work_s[0] > 0:
            first = min(first, self.pool / float(self.work_s[0]))
        return min(1.0, first / rate)

    def rows(self) -> tuple[Floats, Floats]:
        """The limits as rows of an LP, ``use @ visits a second <= limit``: [M, S] and [M]."""
        limited = np.isfinite(self.rows_per_s)
        for group in self.together:
            limited[list(group)] = False
        use, limit = np.diag(limited.astype(np.float64))[limited], np.asarray(self.rows_per_s, np.float64)[limited]
        for group in self.together:
            times = np.zeros(len(self.rows_per_s))
            times[list(group)] = 1.0 / np.asarray(self.rows_per_s, np.float64)[list(group)]
            use, limit = np.vstack([use, times]), np.append(limit, 1.0)
        if self.work_s is not None and self.pool < inf:
            use, limit = np.vstack([use, self.work_s]), np.append(limit, self.pool)
        return use, limit


@dataclass(frozen=True)
class Solution:
    """An optimal mix of given gears."""

    mix: Floats
    """[G] share of all requests served by each gear."""
    shed: float
    """Share of requests turned away."""
    nu: Floats
    """[S] shadow price of one more visit to each stage, in units of value; 0 where capacity is to spare."""
    request_price: float
    """Dual of ``sum of shares <= 1``: what one more request would add."""
    value: float
    """Value of a request, on average."""


def solve(value: Floats, visits: Floats, capacity: Capacity, rate: float) -> Solution:
    """Share requests out between gears.

        max sum_g q_g v_g   s.t.   rate sum_g q_g f_gk <= cap_k for all k,   sum_g q_g <= 1,   q >= 0
        (shared cores:             rate sum_g q_g sum_k f_gk w_k <= pool)

    The rows are divided by the rate, so that their duals y come out as gain per visit: nu_k = y_k + w_k y_pool. At the
    optimum a visit is made iff it gains more than nu, which is cost-sensitive deferral (Jitkrittum et al., NeurIPS 2023)
    with the price of congestion for the cost.

    Args:
        value: [G] what a request gains in each gear.
        visits: [G, S] share of requests that run on each stage.
        capacity: the limits.
        rate: requests a second.

    Raises:
        ConfigError: the rate is not above 0, or the arrays do not fit.
    """
    if not 0 < rate < inf:
        raise ConfigError(f"rate: expected a number above 0, got {rate:g}")
    if visits.shape != (len(value), len(capacity.rows_per_s)):
        raise ConfigError(f"visits: expected shape {(len(value), len(capacity.rows_per_s))}, got {visits.shape}")
    use, limit = capacity.rows()
    # Each row in units of its own limit: HiGHS works to absolute tolerances.
    rows = (use * (rate / limit)[:, None]) @ visits.T
    found = linprog(-value, A_ub=np.vstack([rows, np.ones(len(value))]), b_ub=np.ones(len(limit) + 1), method="highs")
    if found.x is None:
        raise ConfigError(
            f"the mix of {len(value)} operating points at {rate:g} a second could not be solved: {found.message}"
        )
    mix = np.clip(found.x, 0.0, 1.0)
    duals = np.maximum(-found.ineqlin.marginals, 0.0)
    nu = (duals[:-1] * rate / limit) @ use
    return Solution(mix, max(0.0, 1.0 - float(mix.sum())), nu, float(duals[-1]), float(value @ mix))


@dataclass(frozen=True, eq=False)
class Gear:
    """An operating point: what comes of a judged table at one price vector."""

    prices: Floats
    """[S] the prices."""
    exits: NDArray[np.uint8]
    """[N] where each row stops."""
    accuracy: float
    """Share of rows served right, by their labels."""
    visits: Floats
    """[S] share of rows that run on each stage."""


def gear(judged: JudgedTable, prices: Sequence[float] | Floats, lookahead: Sequence[float] | Floats | None = None) -> Gear:
    """The operating point of a table at prices [S], looking ahead at others; see `JudgedTable.exits`.

    Its accuracy is the mean of labels (``served``), not of ``p_correct``: the latter has less noise, but it was fitted on
    the rows that reach a stage when nothing is loaded, and load changes which rows those are, so it is wrong just where a
    plan is needed (by up to 0.6 points, either way, on the test rows of the ladder that ships with this project).
    """
    walked = judged.walk(prices, lookahead)
    return Gear(np.asarray(prices, np.float64), walked.exits.astype(np.uint8), walked.accuracy, walked.visits)


class Thresholds:
    """Gears in which looking ahead and rationing have prices of their own, as in the server's queues.

    A row's value of going on is taken at one price vector, the look-ahead; it goes on from stage k if that value is above a
    threshold of the stage, be it a price or what a full queue lets through.

    Args:
        judged: the table.
        lookahead: [S] prices at which values are taken.
    """

    def __init__(self, judged: JudgedTable, lookahead: Floats) -> None:
        self._judged = judged
        last = len(judged.stages) - 1
        self._order: list[NDArray[np.intp]] = []
        self._cuts: list[NDArray[np.intp]] = []
        for stage in range(last):
            ahead = range(stage + 1, last + 1)
            value = continuation_value(judged.gains[:, stage, stage + 1 :], stage, ahead, lookahead.tolist())
            order = np.argsort(-value, kind="stable")
            self._order.append(order)
            # Rows of equal value go on together.
            self._cuts.append(np.append(np.flatnonzero(np.diff(value[order])), judged.rows - 1))

    def best(self, charges: Floats, start: Gear, rounds: int = 3) -> Gear:
        """The gear whose thresholds are best when every visit is charged: optimal stopping, stage by stage from the last.

        At stage k, rows in order of their value, the threshold lies where the sum of (what going on wins by the thresholds
        behind, less its charge, less what stopping wins) is largest, over the rows that reach the stage. Which ones do
        depends on the thresholds before, so a few rounds are made.

        Args:
            charges: [S] what a visit to each stage costs, in units of accuracy.
            start: a gear to begin with.
            rounds: see above.
        """
        judged, exits = self._judged, start.exits.astype(np.intp)
        last = len(judged.stages) - 1
        for _ in range(rounds):
            before = exits
            exits = np.full(judged.rows, last, dtype=np.intp)
            wins = judged.served[:, last].astype(np.float64)
            for stage in range(last - 1, -1, -1):
                stays = judged.served[:, stage].astype(np.float64)
                goes = wins - charges[stage + 1]
                order, cuts = self._order[stage], self._cuts[stage]
                gained = np.cumsum(np.where(before >= stage, goes - stays, 0.0)[order])[cuts]
                place = int(gained.argmax())
                on = np.zeros(judged.rows, dtype=np.bool_)
                if gained[place] > 0:
                    on[order[: cuts[place] + 1]] = True
                wins = np.where(on, goes, stays)
                exits = np.where(on, exits, stage)
        walked = judged.stopping(exits)
        return Gear(np.asarray(charges, np.float64), exits.astype(np.uint8), walked.accuracy, walked.visits)


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """A mix of gears at one rate."""

    rate: float
    """Requests a second."""
    prices: Floats
    """[S] price of a visit to each stage: base price + shadow price."""
    mix: tuple[tuple[Gear, float], ...]
    """Gears in use and the share of the requests offered that each serves."""
    shed: float
    """Share of requests turned away."""

    @property
    def accuracy(self) -> float:
        """Right answers by requests offered: one that is turned away counts as wrong."""
        return float(sum(share * used.accuracy for used, share in self.mix))

    @property
    def visits(self) -> Floats:
        """[S] visits by requests offered."""
        return np.asarray(sum((share * used.visits for used, share in self.mix), np.zeros(len(self.prices))))

    @property
    def exit_shares(self) -> Floats:
        """[S] share of the requests offered that stop at each stage; with ``shed`` they sum to 1."""
        stages = len(self.prices)
        stopped = (share * np.bincount(used.exits, minlength=stages) / len(used.exits) for used, share in self.mix)
        return np.asarray(sum(stopped, np.zeros(stages)))

    def exits_before(self, unloaded: NDArray[np.integer[Any]]) -> float:
        """Share of the requests offered that are answered at a cheaper stage than the one given, [N]."""
        return float(sum(share * float((used.exits < unloaded).mean()) for used, share in self.mix))


def by_column(judged: JudgedTable) -> JudgedTable:
    """The same table with its gains in memory stage by stage: rows walk several times as fast, and here they walk often."""
    return replace(judged, gains=np.asfortranarray(judged.gains))


class Fluid:
    """Fluid optima of one judged table, by column generation over price vectors and thresholds.

    Starts from the gears of `price_path`; as long as the duals of the mix, taken as prices or as charges for `Thresholds`,
    lead to a gear that would improve it, that gear is added. What is found at one rate is kept for the next.

    The optimum is a limit to measure against. With labels for the objective its duals jump between a few lucky gears, and
    rows that walk at them ask for anything from a seventh to nine times of what a full stage can run (on the ladder that
    ships with this project). Prices to serve at come from `cascade.calibration.clearing`.

    Args:
        judged: the table, of rows that nothing was trained on.
        points: gears on the path that the search starts from.
    """

    def __init__(self, judged: JudgedTable, points: int = 60) -> None:
        self.judged = by_column(judged)
        self._thresholds = Thresholds(self.judged, np.zeros(len(judged.stages)))
        self.gears: list[Gear] = []
        self.add(gear(judged, prices) for prices in price_path(judged.cost, points))

    def add(self, gears: Iterable[Gear]) -> None:
        """Let these gears take part."""
        self.gears.extend(gears)
        self._accuracy = np.array([known.accuracy for known in self.gears])
        self._visits = np.array([known.visits for known in self.gears])

    def at(
        self,
        rate: float,
        capacity: Capacity,
        base_prices: Sequence[float] | Floats | None = None,
        *,
        rounds: int = MAX_ROUNDS,
    ) -> OperatingPoint:
        """The best mix at one rate; its prices are the base prices plus the duals.

        It maximises accuracy less sum_k base_price_k x visits_k, the operator's own preference; what is reported as
        accuracy is accuracy alone.

        Args:
            rate: requests a second.
            capacity: the limits.
            base_prices: [S] price of a visit when nothing is scarce; 0 where left out.
            rounds: new gears to try, at most.

        Raises:
            ConfigError: the rate is not above 0, or an array has another length.
        """
        base = unloaded_prices(self.judged, base_prices)
        for left in range(rounds, -1, -1):
            found = solve(self._accuracy - self._visits @ base, self._visits, capacity, rate)
            if left == 0:
                break
            charges = base + found.nu
            walked = gear(self.judged, charges)
            new = [
                known
                for known in (walked, self._thresholds.best(charges, walked))
                if known.accuracy - float(known.visits @ charges) - found.request_price > WORTH
            ]
            if not new:
                break
            self.add(new)
        mix = tuple((self.gears[index], float(found.mix[index])) for index in np.flatnonzero(found.mix > 1e-9))
        return OperatingPoint(rate, base + found.nu, mix, found.shed)

    def frontier(self, rates: Sequence[float], capacity: Capacity) -> Floats:
        """A*(rate), [R]: what no controller exceeds under steady load that sends rows on in the order of their value.

        The fluid optimum without base prices; ``capacity`` is the machines' own, nothing held back. All rates choose among
        the same gears, the ones found at any of them, so A* never rises with the rate. It is computed on the labels of this
        table: another draw of as many rows has another A*, by about the standard error of an accuracy.
        """
        for rate in rates:
            self.at(rate, capacity)
        return np.array([self.at(rate, capacity, rounds=0).accuracy for rate in rates])


def unloaded_prices(judged: JudgedTable, base_prices: Sequence[float] | Floats | None) -> Floats:
    """The base prices as an array [S], 0 for stage 0, which every row visits.

    Raises:
        ConfigError: there is not one for each stage, or one is below 0.
    """
    base = np.zeros(len(judged.stages)) if base_prices is None else np.array(base_prices, np.float64)
    if base.shape != (len(judged.stages),) or (base < 0).any():
        raise ConfigError(f"base_prices: expected {len(judged.stages)} numbers from 0, got {list(map(float, base.ravel()))}")
    base[0] = 0.0
    return base


def floor(judged: JudgedTable, rate: float, capacity: Capacity) -> float:
    """Accuracy by requests offered with everything answered by stage 0 and the rest turned away: theta A_0."""
    return capacity.admitted(rate) * judged.stop_at(0).accuracy


def oracle_limit(judged: JudgedTable, rate: float, capacity: Capacity) -> float:
    """What an omniscient router of the same ladder could reach: it sends a row on only where that will make it right.

    With d_i the share of rows that stage i is the first to answer right,

        max sum_i d_i x_i   s.t.   rate sum_{i >= k} d_i x_i <= cap_k for k >= 1,   0 <= x_i <= theta

    and every admitted row runs on stage 0, theta being what stage 0 can run.

    Raises:
        ConfigError: the rate is not above 0.
    """
    solved = judged.served.any(axis=1)
    first = judged.served.argmax(axis=1)
    stages = len(judged.stages)
    share = np.bincount(first[solved], minlength=stages) / judged.rows
    use, most = capacity.rows()
    admitted = capacity.admitted(rate)
    # A row that stage i solves visits stages 1..i; what stage 0 does for all admitted rows is the same whatever x is.
    behind = np.tril(np.ones((stages, stages)))
    behind[:, 0] = 0.0
    left = 1.0 - rate * admitted * use[:, 0] / most
    rows = (use / most[:, None] * rate) @ (behind * share[:, None]).T
    found = linprog(-share, A_ub=rows, b_ub=np.maximum(left, 0.0), bounds=(0.0, admitted), method="highs")
    assert found.x is not None  # nothing solved is always possible
    return float(share @ found.x)
