"""How fast rows come, and what has become of those of the last seconds. Knows counters and instants; has no clock.

`Counts` only ever grow; what an operator wants to see is now. Both meters hold a bounded amount of memory however much
traffic they see, and neither needs to be read at regular instants.
"""

from collections import deque
from dataclasses import dataclass
from math import exp, expm1

from cascade.policy.request import ExitReason
from cascade.policy.stats import Counts

RATE_TAU_S = 0.5
"""Memory of an arrival rate that prices follow."""


class RateMeter:
    """Exponentially weighted arrival rate, exact for arrivals and readings at any instants.

        rate(t) = sum_i n_i exp(-(t - t_i) / tau) / (tau (1 - exp(-(t - t_0) / tau)))

    The denominator is the integral of the kernel since the meter was started at t_0, so for arrivals of a constant rate
    the expectation is that rate at every reading, also before the first tau has passed. For Poisson arrivals of rate r, a
    reading long after the start has the variance r / (2 tau). A reading right after an arrival, because of it, counts that
    arrival in full and so lies 1 / tau too high on average; read on a timer, or before adding.

    Args:
        now: instant at which counting starts.
        tau_s: time constant: about the last two of them count.
    """

    def __init__(self, now: float, tau_s: float = RATE_TAU_S) -> None:
        self._tau_s = tau_s
        self._started_s = now
        self._updated_s = now
        self._rows = 0.0

    def add(self, now: float, rows: int = 1) -> None:
        """That many rows arrived."""
        self._rows = self._rows * exp((self._updated_s - now) / self._tau_s) + rows
        self._updated_s = now

    def at(self, now: float) -> float:
        """Rows a second at ``now``; 0 at the instant of the start."""
        seen = -expm1((self._started_s - now) / self._tau_s)
        if seen <= 0.0:
            return 0.0
        return self._rows * exp((self._updated_s - now) / self._tau_s) / (self._tau_s * seen)


@dataclass(frozen=True, slots=True)
class RecentStage:
    """One stage over the window.

    Attributes:
        share: share of the answered rows that were answered with its output; None if none was answered.
        rows_per_s: rows in the batches that came back, a second.
        batch_rows: mean rows of a batch; None without one.
        run_s: mean seconds of a batch, from sending to return; None without one.
        queued_s: mean seconds that a row of those batches had waited; None without one.
        joules_per_row: energy that it reported for a row of those batches; None if it reports none, or without one.
        idle_energy: share of that energy for time in which its devices had nothing to do; None without any.
        depth: mean steps that a row of those batches took, where the network chooses its depth; None elsewhere.
    """

    share: float | None
    rows_per_s: float
    batch_rows: float | None
    run_s: float | None
    queued_s: float | None
    joules_per_row: float | None = None
    idle_energy: float | None = None
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class RecentClass:
    """One class over the window.

    Attributes:
        answered_per_s: rows answered, a second.
        degraded: share of its answered rows that were degraded; None if none was answered.
        shed_per_s: rows turned away at the door, a second.
    """

    answered_per_s: float
    degraded: float | None
    shed_per_s: float


@dataclass(frozen=True, slots=True)
class Recent:
    """What happened over the window that ends now. All of it counts rows.

    Attributes:
        seconds: length of the window: the whole span, or the time since the start if that is less.
        arrived_per_s: came to the door.
        answered_per_s: answered.
        shed_per_s: turned away at the door.
        expired_per_s: got no answer of any stage in time.
        failed_per_s: the first stage could not answer.
        degraded: share of the answered that were degraded; None if none was answered.
        cut_short: share of the answered that the present prices would have sent on, but a full queue, a deadline, a budget,
            a failure or a client that was content kept; None if none was answered.
        cost: mean cost of an answered row, in the ladder's cost unit; None if none was answered.
        joules: energy that the stages reported, for an answered row; None if none was answered, or no stage reports any.
        stages: cheapest first.
        classes: priority 1 first.
    """

    seconds: float
    arrived_per_s: float
    answered_per_s: float
    shed_per_s: float
    expired_per_s: float
    failed_per_s: float
    degraded: float | None
    cut_short: float | None
    cost: float | None
    stages: tuple[RecentStage, ...]
    classes: tuple[RecentClass, ...]
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class _StageTotals:
    answered: int
    batches: int
    rows: int
    run_s: float
    queued_s: float
    joules: float | None
    idle_joules: float
    steps: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    at_s: float
    arrived: int
    answered: int
    shed: int
    expired: int
    failed: int
    degraded: int
    cut_short: int
    cost: float
    stages: tuple[_StageTotals, ...]
    classes: tuple[tuple[int, int, int], ...]


class Window:
    """What `Counts` grew by over the last seconds: the difference to a snapshot from about ``span_s`` ago.

    Args:
        now: instant of the first snapshot.
        counts: the counters at that instant.
        span_s: seconds to look back.
        spacing_s: seconds between two snapshots; the window is at most this much longer than its span.
    """

    def __init__(
        self,
        now: float,
        counts: Counts,
        *,
        span_s: float = 10.0,
        spacing_s: float = 1.0,
    ) -> None:
        self._span_s = span_s
        self._spacing_s = spacing_s
        self._snapshots = deque([_snapshot(now, counts)])

    def read(self, now: float, counts: Counts) -> Recent:
        """What happened since a span ago. To be called about once a spacing; called more often, it keeps no more.

        Args:
            now: present instant.
            counts: the counters at that instant.
        """
        latest = _snapshot(now, counts)
        kept = self._snapshots
        # The second oldest is old enough to look back to, so the oldest is of no use any more.
        while len(kept) > 1 and kept[1].at_s <= now - self._span_s:
            kept.popleft()
        recent = _between(kept[0], latest)
        # Half, because a timer of one spacing that fires a moment early must not leave a gap of two.
        if now - kept[-1].at_s >= self._spacing_s / 2:
            kept.append(latest)
        return recent


def _snapshot(now: float, counts: Counts) -> _Snapshot:
    return _Snapshot(
        at_s=now,
        arrived=counts.arrived,
        answered=counts.answered,
        shed=counts.shed,
        expired=counts.expired,
        failed=counts.failed,
        degraded=counts.degraded,
        cut_short=counts.degraded
        + sum(stage.answers[ExitReason.SATISFIED] - stage.answers[ExitReason.PRICE] for stage in counts.stages),
        cost=counts.cost,
        stages=tuple(
            _StageTotals(
                sum(stage.answers.values()),
                stage.batches,
                stage.rows,
                stage.run_s,
                stage.queued_s,
                stage.joules,
                stage.idle_joules,
                stage.steps,
            )
            for stage in counts.stages
        ),
        classes=tuple((entry.answered, entry.degraded, entry.shed) for entry in counts.classes),
    )


def _between(old: _Snapshot, new: _Snapshot) -> Recent:
    seconds = new.at_s - old.at_s
    answered = new.answered - old.answered

    def per_s(rows: int) -> float:
        return rows / seconds if seconds > 0 else 0.0

    stages = []
    total_joules: float | None = None
    for before, after in zip(old.stages, new.stages, strict=True):
        batches, rows = after.batches - before.batches, after.rows - before.rows
        joules = None if after.joules is None else after.joules - (before.joules or 0.0)
        if joules is not None:
            total_joules = joules + (total_joules or 0.0)
        stages.append(
            RecentStage(
                share=_ratio(after.answered - before.answered, answered),
                rows_per_s=per_s(rows),
                batch_rows=_ratio(rows, batches),
                run_s=_ratio(after.run_s - before.run_s, batches),
                queued_s=_ratio(after.queued_s - before.queued_s, rows),
                joules_per_row=None if joules is None else _ratio(joules, rows),
                idle_energy=(after.idle_joules - before.idle_joules) / joules if joules else None,
                depth=_ratio(after.steps - before.steps, rows) if after.steps else None,
            )
        )
    classes = []
    for before_class, after_class in zip(old.classes, new.classes, strict=True):
        grown, degraded, shed = (b - a for a, b in zip(before_class, after_class, strict=True))
        classes.append(RecentClass(per_s(grown), _ratio(degraded, grown), per_s(shed)))
    return Recent(
        seconds=seconds,
        arrived_per_s=per_s(new.arrived - old.arrived),
        answered_per_s=per_s(answered),
        shed_per_s=per_s(new.shed - old.shed),
        expired_per_s=per_s(new.expired - old.expired),
        failed_per_s=per_s(new.failed - old.failed),
        degraded=_ratio(new.degraded - old.degraded, answered),
        cut_short=_ratio(new.cut_short - old.cut_short, answered),
        cost=_ratio(new.cost - old.cost, answered),
        stages=tuple(stages),
        classes=tuple(classes),
        joules=None if total_joules is None else _ratio(total_joules, answered),
    )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
