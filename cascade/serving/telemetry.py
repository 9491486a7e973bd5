"""What a router publishes about itself, and the once-a-second reading that all of it comes from.

Knows the metrics of the table, and Serve's by their methods. Nothing here is called for a request or a batch: an increment
costs microseconds, so counters and histograms are moved on once a second by what `Counts` grew, and the cost does not depend
on the load. Means over any time follow from two counters, as
``rate(cascade_stage_rows_total) / rate(cascade_stage_batches_total)``.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import inf, nan
from typing import Any, Protocol

from cascade.policy.audit import Estimate
from cascade.policy.durations import LE, Durations
from cascade.policy.meter import Recent, Window
from cascade.policy.policy import Policy
from cascade.policy.savings import savings
from cascade.policy.stats import Counts
from cascade.serving import metric_table as table
from cascade.serving.audits import AuditCounts, Audits
from cascade.serving.journal import Journal
from cascade.serving.metric_table import METRICS, Metric, serve_instrument
from cascade.wire.live import Audited, ClassLive, LiveStatistics, StageLive

logger = logging.getLogger("cascade.router")

PERIOD_S = 1.0
"""Time between publications."""


class Telemetry:
    """Publishes readings.

    Args:
        stages: their names, cheapest first.
        make: makes an instrument, see `cascade.serving.metric_table.serve_instrument`.
    """

    def __init__(self, stages: Sequence[str], make: Callable[[Metric], Any] = serve_instrument) -> None:
        self._stages = tuple(stages)
        self._top_cost = 0.0
        self._answered = 0
        self._instruments = {metric.name: make(metric) for metric in METRICS}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._known: set[tuple[str, tuple[str, ...]]] = set()

    def publish(
        self,
        live: LiveStatistics,
        counts: Counts,
        requests: Mapping[str, int] | None = None,
        audits: AuditCounts | None = None,
        durations: Durations | None = None,
    ) -> None:
        """Bring every metric up to date.

        Args:
            live: the live figures.
            counts: the policy's counters.
            requests: requests by outcome since the start.
            audits: what became of the audits.
            durations: of the requests that were answered.
        """
        self._publish_counts(counts)
        # Costs may change with a version, so the sum is made as rows are answered.
        self._top_cost += (counts.answered - self._answered) * (live.cost_top or 0.0)
        self._answered = counts.answered
        self._grow(table.TOP_COST, self._top_cost)
        self._publish_live(live)
        if durations is not None:
            self._spread(table.REQUEST_DURATION, durations)
        for outcome, total in (requests or {}).items():
            self._grow(table.REQUESTS, total, outcome)
        if audits is not None:
            self._grow(table.AUDITS, audits.finished, "finished")
            self._grow(table.AUDITS, audits.given_up, "given_up")
            self._grow(table.AUDITS, audits.failed, "failed")

    def _publish_counts(self, counts: Counts) -> None:
        for outcome in ("answered", "shed", "expired", "failed", "cancelled"):
            self._grow(table.ROWS, getattr(counts, outcome), outcome)
        self._grow(table.DEGRADED_ROWS, counts.degraded)
        self._grow(table.COST, counts.cost)
        for name, stage in zip(self._stages, counts.stages, strict=True):
            for reason, rows in stage.answers.items():
                self._grow(table.ANSWERS, rows, name, reason.value)
            self._grow(table.DEFERRALS, stage.deferrals, name)
            self._grow(table.ESCALATIONS, stage.escalations, name)
            self._grow(table.BATCHES, stage.batches, name)
            self._grow(table.STAGE_ROWS, stage.rows, name)
            self._grow(table.STAGE_FAILURES, stage.failures, name)
            self._grow(table.POISONED, stage.poisoned, name)
            self._grow(table.RECOMPUTED, stage.recomputed, name)
            self._grow(table.STEPS, stage.steps, name)
            self._spread(table.QUEUE_DURATION, stage.waits, name)
            self._spread(table.STAGE_DURATION, stage.runs, name)
            self._grow(table.JOULES, stage.joules or 0.0, name)
            self._grow(table.IDLE_JOULES, stage.idle_joules, name)
        for priority, of_class in enumerate(counts.classes, start=1):
            self._grow(table.CLASS_ANSWERS, of_class.answered, str(priority))
            self._grow(table.CLASS_DEGRADED, of_class.degraded, str(priority))
            self._grow(table.CLASS_SHED, of_class.shed, str(priority))
            self._grow(table.CLASS_BELOW_FLOOR, of_class.below_floor, str(priority))

    def _publish_live(self, live: LiveStatistics) -> None:
        self._show(table.ARRIVALS, live.rate)
        self._show(table.SHED_PER_S, live.shed_per_s)
        self._show(table.DEGRADED, live.degraded)
        for name, stage in live.stages.items():
            self._show(table.PRICE, stage.price, name)
            self._show(table.SHARE, stage.share, name)
            self._show(table.QUEUE, stage.queue, name)
            self._show(table.CAPACITY, stage.capacity, name)
            self._show(table.REPLICAS, stage.replicas, name)
            self._show(table.BATCH_ROWS, stage.batch_rows, name)
            self._show(table.RUN, stage.run_s, name)
        for priority, of_class in live.classes.items():
            self._show(table.CLASS_DEGRADED_NOW, of_class.degraded, str(priority))
            self._show(table.CLASS_SHED_PER_S, of_class.shed_per_s, str(priority))
        self._show(table.CERTIFIED, live.certified_loss)
        self._show(table.CERTIFIED_LIMIT, live.certified_loss_limit)
        self._show(table.PREDICTED, live.predicted_accuracy)
        accuracy, disagreement = live.audited_accuracy, live.audited_disagreement
        self._show(table.AUDITED, None if accuracy is None else accuracy.value)
        self._show(table.AUDITED_SE, None if accuracy is None else accuracy.standard_error)
        self._show(table.DISAGREEMENT, None if disagreement is None else disagreement.value)
        self._show(table.COVERAGE, live.audit_coverage)
        self._show(table.LAG, live.lag_s)
        self._show(table.PLAN_AGE, live.plan_age_s)

    def _grow(self, metric: Metric, total: float, *labels: str) -> None:
        key = (metric.name, labels)
        grown = total - self._totals.get(key, 0)
        if grown > 0:
            self._totals[key] = total
            self._instruments[metric.name].inc(grown, tags=dict(zip(metric.labels, labels, strict=True)))

    def _spread(self, metric: Metric, durations: Durations, *labels: str) -> None:
        """Bring a histogram up to date, all of it: Ray exports only those gauges that were set since it exported last."""
        count = sum(durations.counts)
        if not count:
            return
        tags = dict(zip(metric.labels, labels, strict=True))
        buckets, total, number = self._instruments[metric.name]
        for bound, below in zip(LE, accumulate(durations.counts), strict=True):
            buckets.set(below, tags={**tags, "le": "+Inf" if bound == inf else f"{bound:g}"})
        total.set(durations.seconds, tags=tags)
        number.set(count, tags=tags)

    def _show(self, metric: Metric, value: float | None, *labels: str) -> None:
        key = (metric.name, labels)
        if value is not None:
            self._known.add(key)
        elif key not in self._known:
            return
        # A gauge keeps its last value, and an old one must not pass for a new one.
        self._instruments[metric.name].set(
            nan if value is None else value, tags=dict(zip(metric.labels, labels, strict=True))
        )


class Plan(Protocol):
    """What the slow loop knows.

    Attributes:
        replicas: healthy replicas of each stage.
        at_s: when prices were last computed.
    """

    replicas: list[int]
    at_s: float

    def rate(self, now: float) -> float:
        """Rows a second that come to the door."""
        ...

    def rows_per_s(self, stage: int) -> float:
        """Rows a second that a stage can run at full batches."""
        ...

    def certified_loss(self, early: float) -> float | None:
        """Bound of the loss at the present prices, where this share of the answers left earlier than these say."""
        ...

    def certified_stops(self, early: float) -> tuple[float, ...] | None:
        """The same where rows stop at each of the stages at the latest."""
        ...


def live_statistics(
    now: float,
    stages: Sequence[str],
    policy: Policy,
    plan: Plan,
    recent: Recent,
    estimate: Estimate | None,
    lag_s: float,
    top_cost: float,
) -> LiveStatistics:
    """The live figures of a router.

    Args:
        now: present instant.
        stages: their names, cheapest first.
        policy: prices, queues, places.
        plan: rate, capacities, replicas, certified loss.
        recent: what happened in the window.
        estimate: what the audits say; None without audits.
        lag_s: of the event loop.
        top_cost: what a row costs at the top stage alone.
    """
    by_stage = {}
    for k, (name, lately) in enumerate(zip(stages, recent.stages, strict=True)):
        is_out = not policy.capacities[k].slots
        by_stage[name] = StageLive(
            price=None if is_out else policy.prices[k],
            share=lately.share,
            capacity=0.0 if is_out else plan.rows_per_s(k),
            replicas=plan.replicas[k],
            queue=policy.waiting(k),
            rows_per_s=lately.rows_per_s,
            batch_rows=lately.batch_rows,
            run_s=lately.run_s,
            queued_s=lately.queued_s,
            joules_per_row=lately.joules_per_row,
            idle_energy=lately.idle_energy,
            depth=lately.depth,
        )
    accuracy = disagreement = None
    if estimate is not None and estimate.accuracy is not None and estimate.accuracy_se is not None:
        accuracy = Audited(estimate.accuracy, estimate.accuracy_se, estimate.rows)
    if estimate is not None and estimate.disagreement is not None and estimate.disagreement_se is not None:
        disagreement = Audited(estimate.disagreement, estimate.disagreement_se, estimate.rows)
    several = len(recent.classes) > 1
    saved, stops = savings(recent, top_cost, policy.resumes), plan.certified_stops(0.0)
    return LiveStatistics(
        rate=plan.rate(now),
        stages=by_stage,
        degraded=recent.degraded,
        shed_per_s=recent.shed_per_s,
        answered_per_s=recent.answered_per_s,
        expired_per_s=recent.expired_per_s,
        cost=recent.cost,
        cost_top=saved.cost_top,
        cost_ratio=saved.cost_ratio,
        cost_saved_per_day=saved.cost_saved_per_day,
        joules=recent.joules,
        joules_top=saved.joules_top,
        energy_ratio=saved.energy_ratio,
        joules_saved_per_day=saved.joules_saved_per_day,
        window_s=recent.seconds,
        certified_loss=plan.certified_loss(recent.cut_short or 0.0),
        certified_loss_limit=None if stops is None else stops[0],
        predicted_accuracy=None if estimate is None else estimate.predicted,
        audited_accuracy=accuracy,
        audited_disagreement=disagreement,
        audit_coverage=None if estimate is None or not estimate.rows else estimate.covered,
        lag_s=lag_s,
        plan_age_s=now - plan.at_s,
        classes={
            priority: ClassLive(of_class.answered_per_s, of_class.degraded, of_class.shed_per_s)
            for priority, of_class in enumerate(recent.classes, start=1)
            if several
        },
    )


class Monitor:
    """Reads the live figures of one router, on demand and once a second for the metrics.

    Attributes:
        certified_loss: bound of the accuracy lost, as of the last publication; None without a certificate.
        certified_stops: the same where rows stop at each of the stages at the latest.
        window: of what happened lately.
        journal: where changes of state are written down; None for nowhere.

    Args:
        stages: their names, cheapest first.
        policy: the router's policy.
        plan: the router's slow loop.
        lag: seconds that the router's event loop is behind.
        clock: seconds, the router's own clock.
        audits: shadow audits; None without.
        telemetry: where to publish; None for nowhere.
        requests: requests by outcome since the start.
        durations: of the requests that were answered.
        top_cost: what a row costs at the top stage alone, in the ladder's cost unit.
        journal: see above.
    """

    def __init__(
        self,
        stages: Sequence[str],
        policy: Policy,
        plan: Plan,
        lag: Callable[[], float],
        clock: Callable[[], float],
        *,
        audits: Audits | None = None,
        telemetry: Telemetry | None = None,
        requests: Callable[[], Mapping[str, int]] = dict,
        durations: Callable[[], Durations] = Durations,
        top_cost: float = 1.0,
        journal: Journal | None = None,
    ) -> None:
        self._stages = tuple(stages)
        self._policy = policy
        self._plan = plan
        self._lag = lag
        self._clock = clock
        self._audits = audits
        self._telemetry = telemetry
        self._requests = requests
        self._durations = durations
        self._top_cost = top_cost
        self.journal = journal
        self.window = Window(clock(), policy.counts)
        self._early = 0.0
        self.certified_loss = plan.certified_loss(0.0)
        self.certified_stops = plan.certified_stops(0.0)

    def read(self) -> LiveStatistics:
        """The live figures now."""
        now = self._clock()
        recent = self.window.read(now, self._policy.counts)
        self._early = recent.cut_short or 0.0
        estimate = None if self._audits is None else self._audits.auditor.estimate(now)
        plan, lag_s = self._plan, self._lag()
        return live_statistics(now, self._stages, self._policy, plan, recent, estimate, lag_s, self._top_cost)

    def publish(self) -> None:
        """Read, which moves the windows on, and publish what was read."""
        live = self.read()
        self.certified_loss = live.certified_loss
        self.certified_stops = self._plan.certified_stops(self._early)
        if self.journal is not None:
            self.journal.look(self._clock(), live)
        if self._telemetry is not None:
            audits = None if self._audits is None else self._audits.counts
            self._telemetry.publish(live, self._policy.counts, self._requests(), audits, self._durations())

    async def run(self) -> None:
        """Publish once a second, without end; a failure is logged and the next second tries again."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.publish()
            except Exception:
                logger.exception("the metrics could not be published")
