"""The table of metrics: every name that a router exports, its kind, unit, labels and meaning. Knows no values.

The dashboard, the alert rules and docs/metrics.md are tested against it.

Ray's own histogram takes one call for each value, which costs as much as the cheapest stage does. So a histogram here is
three gauges of the names that its parts usually have (``_bucket`` with the label ``le``, ``_sum``, ``_count``), set once a
second from counts; what they hold only grows, so queries are those of any histogram.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. In Prometheus its name has Ray's prefix ``ray_`` before it.

    Attributes:
        name: ``cascade_``, what it counts, its unit, and ``_total`` if it only grows.
        kind: counter, gauge, or histogram (see above).
        unit: base unit; ``ratio`` is a share from 0 to 1.
        labels: beside those that Serve adds: application, deployment, replica.
        help: what it says.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names of what it is exported as, without Ray's prefix."""
        return tuple(self.name + part for part in PARTS) if self.kind == "histogram" else (self.name,)


PARTS = ("_bucket", "_sum", "_count")
"""Of a histogram."""


def _counter(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "counter", unit, labels, text)


def _gauge(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "gauge", unit, labels, text)


def _histogram(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "histogram", "seconds", labels, text)


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
TOP_COST = _counter(
    "cascade_top_cost_units_total", "cost units", (), "what the answered rows would have cost at the top stage alone"
)
BATCHES = _counter("cascade_stage_batches_total", "batches", STAGE, "batches that came back")
STAGE_ROWS = _counter("cascade_stage_rows_total", "rows", STAGE, "rows in them")
STAGE_FAILURES = _counter("cascade_stage_failures_total", "batches", STAGE, "batches that failed or were given up")
POISONED = _counter(
    "cascade_stage_poisoned_rows_total",
    "rows",
    STAGE,
    "rows on which the stage fails, or answers NaN, where others come back",
)
RECOMPUTED = _counter(
    "cascade_stage_recomputed_rows_total", "rows", STAGE, "rows run from their inputs again, their activations being lost"
)
STEPS = _counter(
    "cascade_stage_steps_total", "steps", STAGE, "steps of thought of rows, in a network that chooses its depth"
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

REQUEST_DURATION = _histogram(
    "cascade_request_duration_seconds", (), "of the requests that were answered, from the door to the encoded answer"
)
QUEUE_DURATION = _histogram("cascade_queue_duration_seconds", STAGE, "time that the rows of its batches had waited")
STAGE_DURATION = _histogram("cascade_stage_duration_seconds", STAGE, "time of its batches, from sending to return")

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
CERTIFIED_LIMIT = _gauge(
    "cascade_certified_loss_limit_ratio", "ratio", (), "the same if every row stopped at the first stage: no more is lost"
)
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
    """The metric in Serve's registry: an object with ``inc``, with ``set``, or a tuple of three with ``set``: `PARTS`."""
    from ray.serve import metrics

    if metric.kind == "histogram":
        labels = ((*metric.labels, "le"), metric.labels, metric.labels)
        gauge: Any = metrics.Gauge
        return tuple(
            gauge(name, description=metric.help, tag_keys=keys) for name, keys in zip(metric.series, labels, strict=True)
        )
    kind: Any = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, description=metric.help, tag_keys=metric.labels)
