"""What a simulated run is worth: accuracy, SLO attainment, mix and cost, by phase and overall, against the fluid limit.

Reads a record and the table that its rows came from. Rows belong to the phase in which they arrived. Knows no policy.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cascade.calibration.judged import JudgedTable
from cascade.simulation.record import REASONS, Ending, Record

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LEAST_SPAN = 1e-3
"""Where less than this lies between floor and limit there is nothing to win, and E says nothing."""


@dataclass(frozen=True)
class Limits:
    """The two ends of what a rate allows, right answers by requests offered.

    Attributes:
        best: A*(rate), the fluid limit; see `cascade.calibration.fluid`.
        floor: everything from stage 0 and the rest turned away, theta A_0.
    """

    best: Callable[[float], float]
    floor: Callable[[float], float]


@dataclass(frozen=True)
class Efficiency:
    """How much of what can be won over the floor was won."""

    value: float
    """E = (measured - floor) / (A* - floor)."""
    standard_error: float
    """Its standard error, from the paired differences of the same rows."""


@dataclass(frozen=True)
class PhaseReport:
    """What became of the requests that arrived in one phase. What cannot be said is None.

    Attributes:
        name: name of the phase.
        seconds: its length.
        offered: requests that arrived.
        offered_per_s: the same by second.
        answered: requests answered, late ones too.
        answered_per_s: the same by second.
        shed: turned away before stage 0.
        expired: without any answer when the deadline came.
        failed: stage 0 failed.
        cancelled: given up by the client.
        late: answered after the deadline.
        slo_attainment: on-time answers by requests offered.
        accuracy: right answers by on-time answers.
        accuracy_low: lower end of its Wilson interval, 95 %.
        accuracy_high: upper end.
        correct_on_time: right, on-time answers by requests offered: the figure that shedding cannot flatter.
        degraded: share of the answers where the unloaded rule would have gone on.
        exits: share of the answers by the stage where the row stopped.
        reasons: share of the answers by exit reason.
        p50_s: median seconds from arrival to answer.
        p99_s: 99th percentile.
        mean_cost: cost of the stages of an answered request.
        batch_size: rows of a batch by stage; None where none ran.
        utilisation: share of the time of its replicas that each stage was busy.
        best: A* at the offered rate, for several phases weighed by their requests.
        floor: accuracy with everything from stage 0, the same way.
        efficiency: E = (correct_on_time - floor) / (best - floor), by paired differences. The limit is that of steady load:
            a phase of less than a few deadlines leaves work to be done after it, and may exceed it.
        efficiency_se: its standard error.
    """

    name: str
    seconds: float
    offered: int
    offered_per_s: float
    answered: int
    answered_per_s: float
    shed: int
    expired: int
    failed: int
    cancelled: int
    late: int
    slo_attainment: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    correct_on_time: float | None
    degraded: float | None
    exits: dict[str, float]
    reasons: dict[str, float]
    p50_s: float | None
    p99_s: float | None
    mean_cost: float | None
    batch_size: dict[str, float | None]
    utilisation: dict[str, float]
    best: float | None
    floor: float | None
    efficiency: float | None
    efficiency_se: float | None


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        phases: in order of first appearance.
        overall: all of it.
    """

    phases: tuple[PhaseReport, ...]
    overall: PhaseReport

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def served_right(record: Record, table: JudgedTable) -> Bools:
    """[N] whether each request got a right answer on time."""
    return np.asarray(record.on_time & table.served[record.row, np.maximum(record.stage, 0)])


def summarise(record: Record, table: JudgedTable, limits: Limits | None = None) -> Outcome:
    """Add up a run.

    Args:
        record: what happened.
        table: the table that the rows came from.
        limits: what was possible; without it nothing is said of E.
    """
    arrivals = record.arrivals
    right = served_right(record, table)
    offered = np.bincount(arrivals.phase, minlength=len(arrivals.phases))
    best, floor = np.zeros(len(offered)), np.zeros(len(offered))
    if limits is not None:
        for phase in np.flatnonzero(offered):
            rate = float(offered[phase] / arrivals.phase_seconds[phase])
            best[phase], floor[phase] = limits.best(rate), limits.floor(rate)
    spans = [[label == phase for label in arrivals.labels] for phase in range(len(arrivals.phases))]
    build = _Builder(record, table, right, None if limits is None else (best[arrivals.phase], floor[arrivals.phase]))
    return Outcome(
        tuple(
            build.report(name, arrivals.phase == phase, np.array(spans[phase])) for phase, name in enumerate(arrivals.phases)
        ),
        build.report("overall", np.ones(len(right), dtype=np.bool_), np.ones(len(arrivals.labels), dtype=np.bool_)),
    )


def efficiency(right: Bools, first_right: Bools, best: Floats, floor: Floats, first_accuracy: float) -> Efficiency | None:
    """E of requests that were offered at given limits: 0 is stage 0 for everybody, 1 the fluid limit.

        E = mean(right - theta first) / mean(best - floor),   se = sd(right - theta first) / sqrt(N) / mean(best - floor)

    with theta = floor / first_accuracy. The floor is not the table's but that of the very rows that arrived: which rows they
    happened to be then cancels, and with it nearly all of the noise.

    Args:
        right: [N] whether each request got a right answer in time.
        first_right: [N] whether stage 0 is right about it.
        best: [N] A* at the rate at which it arrived.
        floor: [N] floor at that rate.
        first_accuracy: accuracy of stage 0 on the whole table, on which ``best`` and ``floor`` were computed.

    Returns:
        E with its standard error, of independent rows; None with fewer than two rows, or where there is nothing to win.
    """
    if len(right) < 2 or first_accuracy == 0:
        return None
    span = float((best - floor).mean())
    if span < LEAST_SPAN:
        return None
    won = right - floor / first_accuracy * first_right
    return Efficiency(float(won.mean()) / span, float(won.std(ddof=1)) / sqrt(len(won)) / span)


class _Builder:
    """Reports on parts of one run."""

    def __init__(self, record: Record, table: JudgedTable, right: Bools, limits: tuple[Floats, Floats] | None) -> None:
        self._record = record
        self._table = table
        self._right = right
        self._limits = limits
        self._first_right = table.served[record.row, 0]
        self._on_time = record.on_time
        self._latency_s = record.done_s - record.arrivals.instants
        self._busy_s, self._batches, self._rows = _work(record, len(table.stages))

    def report(self, name: str, rows: Bools, stretches: Bools) -> PhaseReport:
        """Report on the requests ``rows`` [N] that arrived in ``stretches`` [M]."""
        record, stages = self._record, self._table.stages
        seconds = float(np.diff(record.arrivals.edges)[stretches].sum())
        endings = np.bincount(record.ending[rows], minlength=len(Ending))
        offered, answered = int(rows.sum()), int(endings[Ending.ANSWERED])
        on_time, right = int(self._on_time[rows].sum()), int(self._right[rows].sum())
        done = rows & (record.ending == Ending.ANSWERED)
        exits = np.bincount(record.stage[done], minlength=len(stages)) / max(answered, 1)
        reasons = np.bincount(record.reason[done], minlength=len(REASONS)) / max(answered, 1)
        interval = binomtest(right, on_time).proportion_ci(method="wilson") if on_time else None
        latency_s = np.quantile(self._latency_s[done], [0.5, 0.99]).tolist() if answered else [None, None]
        busy_s, batches, batch_rows = (kept[:, stretches].sum(axis=1) for kept in (self._busy_s, self._batches, self._rows))
        best = floor = found = None
        if self._limits is not None and offered:
            best, floor = (limit[rows] for limit in self._limits)
            first_accuracy = float(self._table.served[:, 0].mean())
            found = efficiency(self._right[rows], self._first_right[rows], best, floor, first_accuracy)
        return PhaseReport(
            name=name,
            seconds=seconds,
            offered=offered,
            offered_per_s=offered / seconds,
            answered=answered,
            answered_per_s=answered / seconds,
            shed=int(endings[Ending.SHED]),
            expired=int(endings[Ending.EXPIRED]),
            failed=int(endings[Ending.FAILED]),
            cancelled=int(endings[Ending.CANCELLED]),
            late=answered - on_time,
            slo_attainment=on_time / offered if offered else None,
            accuracy=right / on_time if on_time else None,
            accuracy_low=None if interval is None else float(interval.low),
            accuracy_high=None if interval is None else float(interval.high),
            correct_on_time=right / offered if offered else None,
            degraded=float(record.degraded[done].mean()) if answered else None,
            exits=dict(zip(stages, exits.tolist(), strict=True)),
            reasons={str(reason): float(share) for reason, share in zip(REASONS, reasons, strict=True)},
            p50_s=latency_s[0],
            p99_s=latency_s[1],
            mean_cost=float(record.cost[done].mean()) if answered else None,
            batch_size={
                stage: float(held / count) if count else None
                for stage, held, count in zip(stages, batch_rows, batches, strict=True)
            },
            utilisation=dict(zip(stages, (busy_s / (record.replicas * seconds)).tolist(), strict=True)),
            best=None if best is None else float(best.mean()),
            floor=None if floor is None else float(floor.mean()),
            efficiency=None if found is None else found.value,
            efficiency_se=None if found is None else found.standard_error,
        )


def _work(record: Record, stages: int) -> tuple[Floats, Floats, Floats]:
    """Busy seconds of the replicas in each stretch, and batches and rows begun in it, [S, M] each."""
    edges = record.arrivals.edges
    begun = np.searchsorted(edges, record.batch_start_s, side="right") - 1
    inside = begun < len(edges) - 1  # work after the last arrival belongs to no stretch
    busy_s = np.zeros((stages, len(edges) - 1))
    batches, rows = np.zeros_like(busy_s), np.zeros_like(busy_s)
    place = (record.batch_stage[inside], begun[inside])
    np.add.at(batches, place, 1.0)
    np.add.at(rows, place, record.batch_rows[inside])
    for stage in range(stages):
        own = record.batch_stage == stage
        # Work done until t, of all batches: every one adds what of it lies before t.
        order = np.argsort(record.batch_start_s[own])
        start_s, finish_s = record.batch_start_s[own][order], np.sort(record.batch_finish_s[own])
        started, finished = np.searchsorted(start_s, edges), np.searchsorted(finish_s, edges)
        total_start, total_finish = (np.concatenate([[0.0], np.cumsum(at)]) for at in (start_s, finish_s))
        until = started * edges - total_start[started] - (finished * edges - total_finish[finished])
        busy_s[stage] = np.diff(until)
    return busy_s, batches, rows


@dataclass(frozen=True, eq=False)
class Timeline:
    """A run in slices of time, by the instant of arrival. A slice without requests has nan for every share.

    Attributes:
        edges: [K + 1] seconds.
        offered: [K] requests.
        correct_on_time: [K] right, on-time answers by requests offered.
        over_first: [K] the same less what stage 0 has right of the same rows.
        over_first_se: [K] standard error of that.
        exits: [S, K] share of the requests offered that were answered on time at each stage.
    """

    edges: Floats
    offered: Floats
    correct_on_time: Floats
    over_first: Floats
    over_first_se: Floats
    exits: Floats


def timeline(record: Record, table: JudgedTable, edges: Floats) -> Timeline:
    """Slice a run.

    Args:
        record: what happened.
        table: the table that the rows came from.
        edges: [K + 1] ascending, from 0 to the end of the arrivals.
    """
    slices = len(edges) - 1
    place = np.minimum(np.searchsorted(edges, record.arrivals.instants, side="right") - 1, slices - 1)
    offered = np.bincount(place, minlength=slices).astype(np.float64)
    some = np.where(offered > 0, offered, np.nan)

    def mean(values: NDArray[Any]) -> Floats:
        return np.asarray(np.bincount(place, values, slices) / some, dtype=np.float64)

    right = served_right(record, table)
    won = right.astype(np.float64) - table.served[record.row, 0]
    over_first = mean(won)
    return Timeline(
        edges=edges,
        offered=offered,
        correct_on_time=mean(right),
        over_first=over_first,
        over_first_se=np.sqrt(np.maximum(mean(won**2) - over_first**2, 0.0) / some),
        exits=np.stack([mean(record.on_time & (record.stage == stage)) for stage in range(len(table.stages))]),
    )
