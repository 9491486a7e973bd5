"""What a router publishes about itself: every metric's name, and the once-a-second reading that all of them come from.

Knows Serve's metrics by their methods. Nothing here is called for a request or a batch: an increment costs microseconds, so
counters are moved on once a second by what `Counts` grew, and the cost does not depend on the load. Means over any time
follow from two counters, as ``rate(cascade_stage_rows_total) / rate(cascade_stage_batches_total)``; Serve has histograms.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal, Protocol

from cascade.policy.audit import Estimate
from cascade.policy.meter import Recent, Window
from cascade.policy.policy import Policy
from cascade.policy.stats import Counts
from cascade.serving.audits import AuditCounts, Audits
from cascade.wire.live import Audited, ClassLive, LiveStatistics, StageLive

logger = logging.getLogger("cascade.router")

PERIOD_S = 1.0
"""Time between publications."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. In Prometheus its name has Ray's prefix ``ray_`` before it.

    Attributes:
        name: ``cascade_``, what it counts, its unit, and ``_total`` if it only grows.
        kind: counter or gauge.
        unit: base unit; ``ratio`` is a share from 0 to 1.
        labels: beside those that Serve adds: application, deployment, replica.
        help: what it says.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    labels: tuple[str, ...]
    help: str


def _counter(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "counter", unit, labels, text)


def _gauge(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "gauge", unit, labels, text)


STAGE, CLASS, OUTCOME = ("stage",), ("priority",), ("outcome",)

REQUESTS = _counter("cascade_requests_total", "requests", OUTCOME, "inference requests by what became of them")
ROWS = _counter("cascade_rows_total", "rows", OUTCOME, "rows answered, shed, expired, failed or cancelled")
ANSWERS = _counter("cascade_answers_total", "rows", ("stage", "reason"), "rows answered, by stage and exit reason")
DEGRADED_ROWS = _counter(
    "cascade_degraded_rows_total", "rows", (), "rows answered where the unloaded rule would have gone on"
)
DEFERRALS = _counter("cascade_deferrals_total", "rows", STAGE, "rows that the unloaded rule would have sent on from here")
ESCALATIONS = _counter(
    "cascade_escalations_total", "rows", STAGE, "rows that a dearer stage then answered, by where they came from"
)
COST = _counter("cascade_cost_units_total", "cost units", (), "cost of every stage visit of the answered rows")
BATCHES = _counter("cascade_stage_batches_total", "batches", STAGE, "batches that came back")
STAGE_ROWS = _counter("cascade_stage_rows_total", "rows", STAGE, "rows in them")
STAGE_FAILURES = _counter("cascade_stage_failures_total", "batches", STAGE, "batches that failed or were given up")
RECOMPUTED = _counter(
    "cascade_stage_recomputed_rows_total", "rows", STAGE, "rows run from their inputs again, their activations being lost"
)
STEPS = _counter(
    "cascade_stage_steps_total", "steps", STAGE, "steps of thought of rows, in a network that chooses its depth"
)
RUN_SECONDS = _counter("cascade_stage_run_seconds_total", "seconds", STAGE, "time of the batches, from sending to return")
QUEUE_SECONDS = _counter(
    "cascade_stage_queue_seconds_total", "seconds", STAGE, "time that the rows of the batches had waited"
)
JOULES = _counter("cascade_stage_energy_joules_total", "joules", STAGE, "energy of its GPUs, idle time included")
IDLE_JOULES = _counter(
    "cascade_stage_idle_energy_joules_total", "joules", STAGE, "the part of it for time in which they had nothing to do"
)
CLASS_ANSWERS = _counter("cascade_class_answers_total", "rows", CLASS, "rows answered")
CLASS_DEGRADED = _counter("cascade_class_degraded_rows_total", "rows", CLASS, "rows answered degraded")
CLASS_SHED = _counter("cascade_class_shed_rows_total", "rows", CLASS, "rows turned away at the door")
CLASS_BELOW_FLOOR = _counter(
    "cascade_class_below_floor_rows_total", "rows", CLASS, "rows answered below the floor of their class"
)
AUDITS = _counter("cascade_audits_total", "audits", OUTCOME, "shadow audits finished, given_up for load, or failed")

ARRIVALS = _gauge("cascade_arrivals_per_second", "rows/s", (), "arrival rate now, those turned away included")
SHED_PER_S = _gauge("cascade_shed_per_second", "rows/s", (), "rows turned away in the window")
DEGRADED = _gauge("cascade_degraded_ratio", "ratio", (), "share of the window's answers that are degraded")
PRICE = _gauge("cascade_stage_price", "gain", STAGE, "gain that a visit must promise now")
SHARE = _gauge("cascade_stage_share_ratio", "ratio", STAGE, "share of the window's answers that the stage gave")
QUEUE = _gauge("cascade_stage_queue_rows", "rows", STAGE, "rows that wait before it")
CAPACITY = _gauge("cascade_stage_capacity_rows_per_second", "rows/s", STAGE, "what it can run at full batches")
REPLICAS = _gauge("cascade_stage_replicas", "replicas", STAGE, "healthy replicas")
BATCH_ROWS = _gauge("cascade_stage_batch_rows", "rows", STAGE, "mean rows of a batch in the window")
RUN = _gauge("cascade_stage_batch_seconds", "seconds", STAGE, "mean time of a batch in the window")
CLASS_DEGRADED_NOW = _gauge("cascade_class_degraded_ratio", "ratio", CLASS, "share of the class's answers in the window")
CLASS_SHED_PER_S = _gauge("cascade_class_shed_per_second", "rows/s", CLASS, "rows turned away in the window")
CERTIFIED = _gauge("cascade_certified_loss_ratio", "ratio", (), "certified bound of the loss now")
PREDICTED = _gauge("cascade_predicted_accuracy_ratio", "ratio", (), "mean p(correct) of the last minutes' answers")
AUDITED = _gauge("cascade_audited_accuracy_ratio", "ratio", (), "the same as shadow audits correct it")
AUDITED_SE = _gauge("cascade_audited_accuracy_standard_error_ratio", "ratio", (), "its standard error")
DISAGREEMENT = _gauge(
    "cascade_audited_disagreement_ratio", "ratio", (), "share that the whole ladder would answer otherwise"
)
COVERAGE = _gauge("cascade_audit_coverage_ratio", "ratio", (), "share of the answers that the audits speak for")
LAG = _gauge("cascade_event_loop_lag_seconds", "seconds", (), "how long ready work waits in the router's event loop")
PLAN_AGE = _gauge("cascade_plan_age_seconds", "seconds", (), "since prices were last computed")

METRICS = tuple(value for value in globals().copy().values() if isinstance(value, Metric))
"""All of them, in the order above."""


def serve_instrument(metric: Metric) -> Any:
    """The metric in Serve's registry: an object with ``inc`` or ``set``."""
    from ray.serve import metrics

    kind: Any = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, description=metric.help, tag_keys=metric.labels)


class Telemetry:
    """Publishes readings.

    Args:
        stages: their names, cheapest first.
        make: makes an instrument with ``inc(value, tags=…)`` for a counter, ``set(value, tags=…)`` for a gauge.
    """

    def __init__(self, stages: Sequence[str], make: Callable[[Metric], Any] = serve_instrument) -> None:
        self._stages = tuple(stages)
        self._instruments = {metric.name: make(metric) for metric in METRICS}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._known: set[tuple[str, tuple[str, ...]]] = set()

    def publish(
        self,
        live: LiveStatistics,
        counts: Counts,
        requests: Mapping[str, int] | None = None,
        audits: AuditCounts | None = None,
    ) -> None:
        """Bring every metric up to date.

        Args:
            live: the live figures.
            counts: the policy's counters.
            requests: requests by outcome since the start.
            audits: what became of the audits.
        """
        self._publish_counts(counts)
        self._publish_live(live)
        for outcome, total in (requests or {}).items():
            self._grow(REQUESTS, total, outcome)
        if audits is not None:
            self._grow(AUDITS, audits.finished, "finished")
            self._grow(AUDITS, audits.given_up, "given_up")
            self._grow(AUDITS, audits.failed, "failed")

    def _publish_counts(self, counts: Counts) -> None:
        for outcome in ("answered", "shed", "expired", "failed", "cancelled"):
            self._grow(ROWS, getattr(counts, outcome), outcome)
        self._grow(DEGRADED_ROWS, counts.degraded)
        self._grow(COST, counts.cost)
        for name, stage in zip(self._stages, counts.stages, strict=True):
            for reason, rows in stage.answers.items():
                self._grow(ANSWERS, rows, name, reason.value)
            self._grow(DEFERRALS, stage.deferrals, name)
            self._grow(ESCALATIONS, stage.escalations, name)
            self._grow(BATCHES, stage.batches, name)
            self._grow(STAGE_ROWS, stage.rows, name)
            self._grow(STAGE_FAILURES, stage.failures, name)
            self._grow(RECOMPUTED, stage.recomputed, name)
            self._grow(STEPS, stage.steps, name)
            self._grow(RUN_SECONDS, stage.run_s, name)
            self._grow(QUEUE_SECONDS, stage.queued_s, name)
            self._grow(JOULES, stage.joules or 0.0, name)
            self._grow(IDLE_JOULES, stage.idle_joules, name)
        for priority, of_class in enumerate(counts.classes, start=1):
            self._grow(CLASS_ANSWERS, of_class.answered, str(priority))
            self._grow(CLASS_DEGRADED, of_class.degraded, str(priority))
            self._grow(CLASS_SHED, of_class.shed, str(priority))
            self._grow(CLASS_BELOW_FLOOR, of_class.below_floor, str(priority))

    def _publish_live(self, live: LiveStatistics) -> None:
        self._show(ARRIVALS, live.rate)
        self._show(SHED_PER_S, live.shed_per_s)
        self._show(DEGRADED, live.degraded)
        for name, stage in live.stages.items():
            self._show(PRICE, stage.price, name)
            self._show(SHARE, stage.share, name)
            self._show(QUEUE, stage.queue, name)
            self._show(CAPACITY, stage.capacity, name)
            self._show(REPLICAS, stage.replicas, name)
            self._show(BATCH_ROWS, stage.batch_rows, name)
            self._show(RUN, stage.run_s, name)
        for priority, of_class in live.classes.items():
            self._show(CLASS_DEGRADED_NOW, of_class.degraded, str(priority))
            self._show(CLASS_SHED_PER_S, of_class.shed_per_s, str(priority))
        self._show(CERTIFIED, live.certified_loss)
        self._show(PREDICTED, live.predicted_accuracy)
        accuracy, disagreement = live.audited_accuracy, live.audited_disagreement
        self._show(AUDITED, None if accuracy is None else accuracy.value)
        self._show(AUDITED_SE, None if accuracy is None else accuracy.standard_error)
        self._show(DISAGREEMENT, None if disagreement is None else disagreement.value)
        self._show(COVERAGE, live.audit_coverage)
        self._show(LAG, live.lag_s)
        self._show(PLAN_AGE, live.plan_age_s)

    def _grow(self, metric: Metric, total: float, *labels: str) -> None:
        key = (metric.name, labels)
        grown = total - self._totals.get(key, 0)
        if grown > 0:
            self._totals[key] = total
            self._instruments[metric.name].inc(grown, tags=dict(zip(metric.labels, labels, strict=True)))

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
    return LiveStatistics(
        rate=plan.rate(now),
        stages=by_stage,
        degraded=recent.degraded,
        shed_per_s=recent.shed_per_s,
        answered_per_s=recent.answered_per_s,
        expired_per_s=recent.expired_per_s,
        cost=recent.cost,
        joules=recent.joules,
        window_s=recent.seconds,
        certified_loss=plan.certified_loss(recent.cut_short or 0.0),
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

    Args:
        stages: their names, cheapest first.
        policy: the router's policy.
        plan: the router's slow loop.
        lag: seconds that the router's event loop is behind.
        clock: seconds, the router's own clock.
        audits: shadow audits; None without.
        telemetry: where to publish; None for nowhere.
        requests: requests by outcome since the start.
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
    ) -> None:
        self._stages = tuple(stages)
        self._policy = policy
        self._plan = plan
        self._lag = lag
        self._clock = clock
        self._audits = audits
        self._telemetry = telemetry
        self._requests = requests
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
        return live_statistics(now, self._stages, self._policy, self._plan, recent, estimate, self._lag())

    def publish(self) -> None:
        """Read, which moves the windows on, and publish what was read."""
        live = self.read()
        self.certified_loss = live.certified_loss
        self.certified_stops = self._plan.certified_stops(self._early)
        if self._telemetry is not None:
            audits = None if self._audits is None else self._audits.counts
            self._telemetry.publish(live, self._policy.counts, self._requests(), audits)

    async def run(self) -> None:
        """Publish once a second, without end; a failure is logged and the next second tries again."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.publish()
            except Exception:
                logger.exception("the metrics could not be published")
