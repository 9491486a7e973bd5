"""What a recording comes to, phase by phase, and the limits it is held against. Decides nothing, draws nothing.

All figures come from the raw rows of a `Recording`: never from percentiles that a load tool has rounded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cascade.calibration.fluid import Capacity, Fluid, OperatingPoint, floor, unloaded_prices
from cascade.calibration.judged import JudgedTable
from cascade.errors import ConfigError
from cascade.simulation.outcome import LEAST_SPAN
from loadtests.record import Recording
from loadtests.scenarios import WARM_UP

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CONFIDENCE = 0.99
"""Of every one-sided test and bound."""
REFUSED = (429, 503)
"""Statuses of a request that was turned away; any other one without an answer is an error."""


class Limits:
    """What the machines allow at a rate, computed on the labels of the test rows that the load tests send.

    Args:
        table: the judged test rows; `Recording.row` is an index into it.
        rows_per_s: [S] rows a second of each stage, measured.
        stage0_rate: C0, requests a second that the whole way through stage 0 takes; it may be less than stage 0 alone.
        unit_rate: requests a second with all of them through the last stage: what multiples of load refer to.
        base_prices: [S] price of a visit when nothing is scarce; 0 where left out.
        work_s: [S] core seconds of a visit, where the stages share cores.
        pool: cores that they share.
        together: stages that run on the same replicas, each group.
        calibration: the judged rows that the ladder was calibrated on, for `foreseen`.

    Raises:
        ConfigError: there is not one number for each stage, or one is not above 0.
    """

    def __init__(
        self,
        table: JudgedTable,
        rows_per_s: Sequence[float] | Floats,
        *,
        stage0_rate: float,
        unit_rate: float,
        base_prices: Sequence[float] | Floats | None = None,
        work_s: Sequence[float] | Floats | None = None,
        pool: float = inf,
        together: tuple[tuple[int, ...], ...] = (),
        calibration: JudgedTable | None = None,
    ) -> None:
        rows = np.array(rows_per_s, np.float64)
        if rows.shape != (len(table.stages),):
            raise ConfigError(f"rows_per_s: expected one for each of {len(table.stages)} stages, got {len(rows)}")
        if not (0 < stage0_rate < inf and 0 < unit_rate < inf):
            raise ConfigError(f"stage0_rate and unit_rate: expected numbers above 0, got {stage0_rate:g} and {unit_rate:g}")
        rows[0] = min(rows[0], stage0_rate)
        self.table = table
        self.capacity = Capacity(rows, None if work_s is None else np.array(work_s, np.float64), pool, together)
        self.stage0_rate = stage0_rate
        self.unit_rate = unit_rate
        self.rest_right: Bools = table.walk(unloaded_prices(table, base_prices)).right
        """[N] whether the answer to each row is right when nothing is loaded."""
        self._fluid = Fluid(table)
        self._before = None if calibration is None else Fluid(calibration)
        self._points: dict[float, OperatingPoint] = {}

    def prepare(self, rates: Iterable[float]) -> None:
        """Find the fluid optima at these rates together, so that all choose among the same operating points."""
        new = set(rates) - self._points.keys()
        if not new:
            return
        wanted = sorted(new | self._points.keys())
        self._fluid.frontier(wanted, self.capacity)
        self._points = {rate: self._fluid.at(rate, self.capacity, rounds=0) for rate in wanted}

    def best(self, rate: float) -> float:
        """A*(rate): most right answers by requests offered that fluid load at this rate allows."""
        return self._point(rate).accuracy

    def foreseen(self, rate: float) -> float | None:
        """Right answers by requests offered at the prices that fluid load has best on the calibration rows.

        `best` chooses its thresholds on the labels that it is measured on, which nobody knows in advance. Where rows are few
        and stages little apart, that is much of its lead. None without calibration rows.
        """
        if self._before is None:
            return None
        point = self._before.at(rate, self.capacity, rounds=0)  # among prices by cost alone
        return sum(share * self.table.walk(used.prices).accuracy for used, share in point.mix)

    def known(self, rate: float) -> Floats:
        """[N, S + 1] what is known of each row before it is sent: which stages have it right, and how likely it is to be
        right in the fluid optimum at this rate.
        """
        rows = np.arange(self.table.rows)
        optimum = np.zeros(self.table.rows)
        for used, share in self._point(rate).mix:
            optimum += share * self.table.served[rows, used.exits]
        return np.column_stack([self.table.served, optimum])

    def _point(self, rate: float) -> OperatingPoint:
        if rate not in self._points:
            self._points[rate] = self._fluid.at(rate, self.capacity)
        return self._points[rate]

    def floor(self, rate: float) -> float:
        """The same with everything answered by stage 0 and what it cannot take turned away."""
        return floor(self.table, rate, self.capacity)


@dataclass(frozen=True)
class Group:
    """Some of a phase's requests: one class, tenant or deadline. Shares are of the requests offered."""

    offered: int
    slo_attainment: float
    correct_on_time: float
    accuracy: float | None
    shed: float
    p99_s: float | None


@dataclass(frozen=True)
class PhaseFigures:
    """One phase of one recording. What cannot be said is None.

    Attributes:
        system: what was under load.
        scenario: name of the run.
        name: name of the phase.
        seconds: its length.
        multiple: offered rate in units of the top stage's capacity.
        offered: requests.
        offered_per_s: the same by second, as drawn.
        achieved_per_s: requests a second that were sent inside the phase.
        lag_p99_s: 99th percentile of how late they were sent.
        slo_attainment: answered within their own deadline from the scheduled instant, by requests offered.
        slo_low: its one-sided Clopper-Pearson bound, 99 %.
        correct_on_time: right, on-time answers by requests offered.
        accuracy: right answers by on-time answers.
        accuracy_low: lower end of its Wilson interval, 95 %.
        accuracy_high: upper end.
        stages: share of the answers by stage.
        p50_s: median seconds from the scheduled instant to an answer, late ones included.
        p99_s: 99th percentile.
        shed: share of the offered that was turned away.
        errors: share of the offered without an answer for another reason.
        late: share of the offered that was answered too late.
        degraded: share of the answers where the unloaded rule would have gone on.
        mean_cost: cost of an answer, of those that tell it.
        best: A* at the offered rate.
        foreseen: see `Limits.foreseen`.
        floor: everything from stage 0 at the offered rate.
        adjusted: `correct_on_time` with the luck of the rows taken out, see `row_adjusted`.
        adjusted_se: its standard error.
        efficiency: E = (adjusted - floor) / (best - floor).
        efficiency_se: its standard error.
        groups: by class, tenant and deadline, where a run has several.
    """

    system: str
    scenario: str
    name: str
    seconds: float
    multiple: float
    offered: int
    offered_per_s: float
    achieved_per_s: float
    lag_p99_s: float
    slo_attainment: float
    slo_low: float
    correct_on_time: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    stages: dict[str, float]
    p50_s: float | None
    p99_s: float | None
    shed: float
    errors: float
    late: float
    degraded: float | None
    mean_cost: float | None
    best: float
    foreseen: float | None
    floor: float
    adjusted: float
    adjusted_se: float
    efficiency: float | None
    efficiency_se: float | None
    groups: dict[str, Group] = field(default_factory=dict)


def right_on_time(recording: Recording) -> Bools:
    """[N] whether each request got a right answer within its deadline."""
    return recording.on_time & recording.correct


def refused(recording: Recording) -> Bools:
    """[N] whether each request was turned away in the end."""
    return np.asarray(np.isin(recording.status, REFUSED))


def phase_rates(recording: Recording) -> Floats:
    """[P] requests a second of each phase, as drawn; 0 where it has no length."""
    arrivals = recording.arrivals
    offered = np.bincount(arrivals.phase, minlength=len(arrivals.phases))
    return np.asarray(offered / np.where(arrivals.phase_seconds > 0, arrivals.phase_seconds, np.inf), np.float64)


def lower_bound(successes: int, trials: int) -> float:
    """One-sided Clopper-Pearson lower bound of a share at `CONFIDENCE`."""
    found = binomtest(successes, trials, alternative="greater").proportion_ci(CONFIDENCE, method="exact")
    return float(found.low)


def row_adjusted(right: Bools, rows: NDArray[Any], known: Floats) -> tuple[float, float]:
    """Accuracy as it would be on the whole table, with the luck of the rows taken out, and its standard error.

        a = mean(y) - beta (mean(x) - mu),   se = sd(y - beta x) / sqrt(n)

    Control variates with a fitted slope, of which pairing with stage 0 alone is the case beta = 1 (Lavenberg, Welch 1981):
    x holds what was known of each request's row before it was sent, mu its mean over the table, beta is the least-squares
    slope. Rows are drawn whatever the load, so this is unbiased up to 1 / n. It is worth the trouble: with 1,000 requests at
    a quarter of what stage 0 takes, pairing alone leaves E a standard error of 0.1, and this one of 0.02.

    Args:
        right: [n] outcomes.
        rows: [n] their rows.
        known: [N, K] of every row of the table, see `Limits.known`.
    """
    x, y = known[rows], right.astype(np.float64)
    centred = x - x.mean(axis=0)
    slope, *_ = np.linalg.lstsq(centred, y - y.mean(), rcond=None)
    rest = y - y.mean() - centred @ slope
    value = y.mean() - float((x.mean(axis=0) - known.mean(axis=0)) @ slope)
    freedom = max(1, len(y) - 1 - len(slope))
    return float(value), sqrt(float(rest @ rest) / freedom / len(y))


def measure(recording: Recording, limits: Limits) -> tuple[PhaseFigures, ...]:
    """The figures of every phase that has a request, in order, without the warm-up.

    Args:
        recording: one run.
        limits: what was possible.

    Raises:
        ConfigError: a row of the recording is not in the table.
    """
    if len(recording.row) and not 0 <= recording.row.min() <= recording.row.max() < limits.table.rows:
        raise ConfigError(f"the recording names row {recording.row.max()}, the table has {limits.table.rows} rows")
    arrivals = recording.arrivals
    sent_s = recording.scheduled_s + recording.lag_s
    stretch = np.minimum(np.searchsorted(arrivals.edges, sent_s, side="right") - 1, len(arrivals.labels) - 1)
    sent_in = np.where(sent_s < arrivals.seconds, arrivals.labels[stretch], -1)
    rates = phase_rates(recording)
    return tuple(
        _figures(recording, limits, place, float(rates[place]), int((sent_in == place).sum()))
        for place, name in enumerate(arrivals.phases)
        if name != WARM_UP and (recording.phase == place).any()
    )


def _figures(recording: Recording, limits: Limits, place: int, rate: float, sent: int) -> PhaseFigures:
    rows = recording.phase == place
    table, offered = limits.table, int(rows.sum())
    seconds = float(recording.arrivals.phase_seconds[place])
    answered, on_time, right = (mask & rows for mask in (recording.answered, recording.on_time, right_on_time(recording)))
    answers, timely, correct = int(answered.sum()), int(on_time.sum()), int(right.sum())
    interval = binomtest(correct, timely).proportion_ci(method="wilson") if timely else None
    latency_s = np.quantile(recording.latency_s[answered], [0.5, 0.99]).tolist() if answers else [None, None]
    exits = np.bincount(recording.stage[answered & (recording.stage >= 0)], minlength=len(table.stages)) / max(answers, 1)
    costs = recording.cost[answered & np.isfinite(recording.cost)]
    best, lowest = limits.best(rate), limits.floor(rate)
    adjusted, error = row_adjusted(right[rows], recording.row[rows], limits.known(rate))
    span = best - lowest
    shed = int((rows & refused(recording)).sum())
    return PhaseFigures(
        system=str(recording.meta["system"]),
        scenario=str(recording.meta["scenario"]),
        name=recording.arrivals.phases[place],
        seconds=seconds,
        multiple=rate / limits.unit_rate,
        offered=offered,
        offered_per_s=rate,
        achieved_per_s=sent / seconds,
        lag_p99_s=float(np.quantile(recording.lag_s[rows], 0.99)),
        slo_attainment=timely / offered,
        slo_low=lower_bound(timely, offered),
        correct_on_time=correct / offered,
        accuracy=correct / timely if timely else None,
        accuracy_low=None if interval is None else float(interval.low),
        accuracy_high=None if interval is None else float(interval.high),
        stages=dict(zip(table.stages, exits.tolist(), strict=True)),
        p50_s=latency_s[0],
        p99_s=latency_s[1],
        shed=shed / offered,
        errors=(offered - answers - shed) / offered,
        late=(answers - timely) / offered,
        degraded=float(recording.degraded[answered].mean()) if answers else None,
        mean_cost=float(costs.mean()) if len(costs) else None,
        best=best,
        foreseen=limits.foreseen(rate),
        floor=lowest,
        adjusted=adjusted,
        adjusted_se=error,
        efficiency=None if span < LEAST_SPAN else (adjusted - lowest) / span,
        efficiency_se=None if span < LEAST_SPAN else error / span,
        groups=_groups(recording, rows),
    )


def _groups(recording: Recording, rows: Bools) -> dict[str, Group]:
    """By each of class, tenant and deadline that takes several values in the run."""
    groups = {}
    for title, column in (("class", recording.priority), ("tenant", recording.tenant), ("deadline", recording.deadline_s)):
        values = np.unique(column)
        for value in values if len(values) > 1 else ():
            own = rows & (column == value)
            if own.any():
                unit = " s" if title == "deadline" else ""
                groups[f"{title} {value}{unit}"] = _group(recording, own)
    return groups


def _group(recording: Recording, own: Bools) -> Group:
    offered, timely = int(own.sum()), int((own & recording.on_time).sum())
    correct, answered = int((own & right_on_time(recording)).sum()), own & recording.answered
    return Group(
        offered=offered,
        slo_attainment=timely / offered,
        correct_on_time=correct / offered,
        accuracy=correct / timely if timely else None,
        shed=float((refused(recording) & own).sum()) / offered,
        p99_s=float(np.quantile(recording.latency_s[answered], 0.99)) if answered.any() else None,
    )
