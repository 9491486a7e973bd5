"""Every metric once in the table, in the document and at work; counters move by what was counted, and nothing is stale."""

import asyncio
from collections import defaultdict
from math import isnan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ladders import config, judges

from cascade.policy.audit import Auditor, Estimate
from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Reply
from cascade.policy.durations import BOUNDS_S, Durations
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy
from cascade.policy.request import Answer, ExitReason, Request
from cascade.policy.stats import ClassCounts, Counts, StageCounts
from cascade.serving.audits import AuditCounts, Audits
from cascade.serving.metric_table import METRICS, Metric, serve_instrument
from cascade.serving.telemetry import Monitor, Telemetry, live_statistics
from cascade.wire.live import Audited, ClassLive, LiveStatistics, StageLive

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
UNITS = {
    "seconds",
    "ratio",
    "rows",
    "rows/s",
    "requests",
    "batches",
    "audits",
    "replicas",
    "cost units",
    "gain",
    "joules",
    "steps",
}


class Registry:
    """Instruments that keep what they were told, and refuse what Ray's refuse."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self.touched: list[str] = []

    def make(self, metric: Metric):
        if metric.kind == "histogram":
            labels = ((*metric.labels, "le"), metric.labels, metric.labels)
            return tuple(
                self.make(Metric(name, "gauge", metric.unit, keys, metric.help))
                for name, keys in zip(metric.series, labels, strict=True)
            )

        def tell(value, tags, grow):
            assert set(tags) == set(metric.labels), (metric.name, tags)
            assert all(isinstance(label, str) for label in tags.values())
            key = (metric.name, tuple(tags[label] for label in metric.labels))
            assert not grow or value > 0
            self.values[key] = self.values[key] + value if grow else value
            self.touched.append(metric.name)

        if metric.kind == "counter":
            return SimpleNamespace(inc=lambda value, tags: tell(value, tags, True))
        return SimpleNamespace(set=lambda value, tags: tell(value, tags, False))

    def __getitem__(self, key: tuple[str, ...]) -> float:
        name, *labels = key
        return self.values[name, tuple(labels)]


def lasted(seconds: float, times: int) -> Durations:
    durations = Durations()
    durations.add(seconds, times)
    return durations


def counted(scale: int = 1) -> Counts:
    """Counters in which everything has happened."""
    stages = tuple(
        StageCounts(
            dict.fromkeys(ExitReason, scale),
            scale,
            scale,
            2 * scale,
            6 * scale,
            scale,
            8.0 * scale,
            2.0 * scale,
            3 * scale,
            5 * scale,
            lasted(0.25, 2 * scale),
            lasted(0.125, 2 * scale),
            4 * scale,
        )
        for _ in range(2)
    )
    of_class = ClassCounts(5 * scale, 2 * scale, 3 * scale, scale)
    return Counts(
        stages,
        arrived=30 * scale,
        answered=14 * scale,
        degraded=10 * scale,
        shed=3 * scale,
        expired=4 * scale,
        failed=5 * scale,
        cancelled=scale,
        cost=7.5 * scale,
        classes=(of_class, of_class),
    )


def live(**changes) -> LiveStatistics:
    figures = {
        "rate": 100.0,
        "stages": {name: StageLive(0.02, 0.5, 400.0, 2, 7, 50.0, 3.0, 0.01, 0.001) for name in ("small", "large")},
        "degraded": 0.25,
        "shed_per_s": 1.5,
        "certified_loss": 0.01,
        "certified_loss_limit": 0.2,
        "cost_top": 4.0,
        "predicted_accuracy": 0.93,
        "audited_accuracy": Audited(0.91, 0.02, 40),
        "audited_disagreement": Audited(0.05, 0.03, 40),
        "audit_coverage": 0.8,
        "lag_s": 0.002,
        "plan_age_s": 0.4,
        "classes": {1: ClassLive(60.0, 0.0, 0.0), 2: ClassLive(40.0, 0.75, 1.5)},
    }
    return LiveStatistics(**{**figures, **changes})


REQUESTS, AUDITS, TOOK = {"answered": 9, "refused": 2}, AuditCounts(8, 4, 2), lasted(0.003, 9)


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_document_has_the_table():
    table = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `cascade_")]
    assert table == [f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(m.labels)} | {m.help} |" for m in METRICS]


def test_the_document_explains_every_live_figure():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in live().document() if f"`{name}`" not in text] == []


def test_names_follow_the_conventions_of_prometheus():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("cascade_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.unit in UNITS
        assert not {"application", "deployment", "replica", "route"} & set(metric.labels)  # Serve's own
        for unit, word in (("seconds", "seconds"), ("ratio", "ratio"), ("rows/s", "per_second"), ("joules", "joules")):
            assert (metric.unit == unit) == (f"_{word}_" in f"{metric.name}_"), metric.name
    # OpenMetrics knows a counter by its name without the suffix, which must not be that of another metric.
    stems = [name.removesuffix("_total") for name in names]
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_serve_takes_every_metric(metric):
    instrument = serve_instrument(metric)
    parts = instrument if metric.kind == "histogram" else (instrument,)
    assert tuple(part.info["name"] for part in parts) == metric.series
    assert parts[-1].info["tag_keys"] == metric.labels
    assert all(hasattr(part, "inc" if metric.kind == "counter" else "set") for part in parts)


# -- publishing --------------------------------------------------------------------------------------------------------


def test_every_metric_is_published():
    registry = Registry()
    Telemetry(["small", "large"], registry.make).publish(live(), counted(), REQUESTS, AUDITS, TOOK)
    assert {name for metric in METRICS for name in metric.series} == set(registry.touched)


def test_the_values_that_are_published():
    registry = Registry()
    Telemetry(["small", "large"], registry.make).publish(live(), counted(), REQUESTS, AUDITS, TOOK)
    assert registry["cascade_requests_total", "refused"] == 2
    assert registry["cascade_top_cost_units_total",] == 4 * 14
    assert [registry["cascade_rows_total", o] for o in ("answered", "shed", "expired", "failed", "cancelled")] == [
        14,
        3,
        4,
        5,
        1,
    ]
    assert registry["cascade_answers_total", "large", "evicted"] == 1
    assert registry["cascade_stage_rows_total", "small"] == 6
    assert registry["cascade_stage_poisoned_rows_total", "small"] == 4
    assert registry["cascade_queue_duration_seconds_sum", "small"] == 0.5
    assert registry["cascade_stage_duration_seconds_sum", "small"] == 0.25
    assert registry["cascade_request_duration_seconds_count",] == 9
    assert registry["cascade_certified_loss_limit_ratio",] == 0.2
    assert registry["cascade_stage_energy_joules_total", "large"] == 8
    assert registry["cascade_stage_idle_energy_joules_total", "large"] == 2
    assert registry["cascade_class_shed_rows_total", "2"] == 3
    assert registry["cascade_audits_total", "given_up"] == 4
    assert registry["cascade_arrivals_per_second",] == 100
    assert registry["cascade_stage_price", "large"] == 0.02
    assert registry["cascade_stage_queue_rows", "small"] == 7
    assert registry["cascade_audited_accuracy_ratio",] == 0.91
    assert registry["cascade_audited_accuracy_standard_error_ratio",] == 0.02
    assert registry["cascade_audited_disagreement_ratio",] == 0.05
    assert registry["cascade_class_degraded_ratio", "2"] == 0.75


def test_a_histogram_has_every_bucket_cumulated_and_its_last_one_is_the_count():
    registry = Registry()
    telemetry, took = Telemetry(["small", "large"], registry.make), Durations()
    for seconds in (0.0, 0.002, 0.0025, 0.003, 99.0):
        took.add(seconds)
    telemetry.publish(live(), counted(), durations=took)
    name = "cascade_request_duration_seconds"
    buckets = {labels[0]: value for (each, labels), value in registry.values.items() if each == f"{name}_bucket"}
    assert list(buckets) == [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
    assert [buckets[le] for le in ("0.0005", "0.001", "0.0025", "0.005", "10", "+Inf")] == [1, 1, 3, 4, 4, 5]
    assert (registry[f"{name}_count",], registry[f"{name}_sum",]) == (5, pytest.approx(99.0075))
    registry.touched.clear()
    telemetry.publish(live(), counted(), durations=took)  # Ray exports a gauge only where it was set since the last time
    touched = [each for each in registry.touched if each.startswith(name)]
    assert touched == [f"{name}_bucket"] * (len(BOUNDS_S) + 1) + [f"{name}_sum", f"{name}_count"]


def test_counters_hold_the_totals_however_often_they_are_published():
    registry = Registry()
    telemetry = Telemetry(["small", "large"], registry.make)
    for scale in (1, 1, 2, 7):
        telemetry.publish(live(), counted(scale), {"answered": scale}, durations=lasted(0.01, scale))
    once = Registry()
    Telemetry(["small", "large"], once.make).publish(live(), counted(7), {"answered": 7}, durations=lasted(0.01, 7))
    assert registry.values == once.values


def test_what_has_not_grown_costs_no_increment():
    registry = Registry()
    telemetry = Telemetry(["small", "large"], registry.make)
    telemetry.publish(live(), counted(), REQUESTS, AUDITS, TOOK)
    registry.touched.clear()
    telemetry.publish(live(), counted(), REQUESTS, AUDITS, TOOK)
    assert not [name for name in registry.touched if name.endswith("_total")]


def test_a_figure_that_is_not_known_any_more_is_not_left_at_its_old_value():
    registry = Registry()
    telemetry = Telemetry(["small", "large"], registry.make)
    unknown = live(degraded=None, audited_accuracy=None, certified_loss=None)
    telemetry.publish(unknown, counted())
    assert not {"cascade_degraded_ratio", "cascade_certified_loss_ratio"} & set(registry.touched)
    telemetry.publish(live(), counted())
    telemetry.publish(unknown, counted())
    assert isnan(registry["cascade_degraded_ratio",])
    assert isnan(registry["cascade_audited_accuracy_ratio",])
    assert isnan(registry["cascade_audited_accuracy_standard_error_ratio",])


# -- reading -----------------------------------------------------------------------------------------------------------


class FixedPlan:
    """A slow loop that ran once, at 0."""

    def __init__(self) -> None:
        self.replicas = [1, 2]
        self.at_s = 0.0

    def rate(self, now: float) -> float:
        return 10.0 * now

    def rows_per_s(self, stage: int) -> float:
        return 100.0 * (1 + stage)

    def certified_loss(self, early: float) -> float | None:
        return 0.01 + early

    def certified_stops(self, early: float) -> tuple[float, ...] | None:
        return 0.1 + early, 0.01 + early


def two_stages(classes: int = 1) -> Policy:
    configs = [config(), config(cost=10.0, slots=4)]
    return Policy(configs, usual_deadline_s=1.0, classes=[ClassConfig()] * classes, seed=1)


def monitor_of(policy: Policy, clock=float, lag=float, **changes) -> Monitor:
    return Monitor(["small", "large"], policy, FixedPlan(), lag, clock, **changes)


def test_a_reading_of_a_policy_at_work():
    policy = two_stages()
    clock = [0.0]
    monitor = monitor_of(policy, lambda: clock[0], lambda: 0.003)
    clock[0] = 2.0
    policy.arrived(2.0, [Request(row, 2.0, 2.9, 3.0) for row in range(3)])
    reading = monitor.read()
    assert reading.rate == 20.0
    assert reading.stages["small"].queue == 3
    assert reading.stages["large"].replicas == 2
    assert reading.stages["large"].price == policy.prices[1]
    assert [stage.capacity for stage in reading.stages.values()] == [100.0, 200.0]
    assert (reading.lag_s, reading.plan_age_s, reading.window_s) == (0.003, 2.0, 2.0)
    assert reading.certified_loss == 0.01
    assert reading.degraded is reading.predicted_accuracy is reading.audited_accuracy is None
    assert reading.classes == {}

    (run,) = policy.dispatch(2.0)
    no_gain = Judgement(np.full((3, 2), 0.5), np.full(3, 0.5), np.full(3, 0.5), np.zeros((3, 1)))
    clock[0] = 2.5
    policy.completed(2.5, run.batch, no_gain)
    reading = monitor.read()
    assert (reading.degraded, reading.cost) == (0.0, 1.0)
    assert [stage.share for stage in reading.stages.values()] == [1.0, 0.0]
    assert (reading.stages["small"].batch_rows, reading.stages["small"].run_s) == (3, 0.5)


def test_energy_is_read_where_a_stage_reports_it_and_unknown_elsewhere():
    policy, clock = two_stages(), [0.0]
    registry = Registry()
    monitor = monitor_of(policy, lambda: clock[0], telemetry=Telemetry(["small", "large"], registry.make))
    policy.counts.answered, policy.counts.stages[1].rows = 10, 4
    for _ in range(2):
        policy.counts.count_energy(1, 3.0, 0.75)
    clock[0] = 1.0
    reading = monitor.read()
    assert (reading.stages["small"].joules_per_row, reading.stages["small"].idle_energy) == (None, None)
    assert (reading.stages["large"].joules_per_row, reading.stages["large"].idle_energy, reading.joules) == (1.5, 0.25, 0.6)
    monitor.publish()
    assert registry["cascade_stage_energy_joules_total", "large"] == 6
    assert ("cascade_stage_energy_joules_total", ("small",)) not in registry.values


def test_depth_is_read_where_rows_think_and_unknown_elsewhere():
    policy, clock = two_stages(), [0.0]
    registry = Registry()
    monitor = monitor_of(policy, lambda: clock[0], telemetry=Telemetry(["small", "large"], registry.make))
    policy.counts.stages[0].rows = policy.counts.stages[1].rows = 4
    policy.counts.stages[1].steps = 10
    clock[0] = 1.0
    reading = monitor.read()
    assert (reading.stages["small"].depth, reading.stages["large"].depth) == (None, 2.5)
    monitor.publish()
    assert registry["cascade_stage_steps_total", "large"] == 10
    assert ("cascade_stage_steps_total", ("small",)) not in registry.values


def test_the_certified_loss_counts_the_rows_that_left_earlier_than_prices_say():
    policy, clock = two_stages(), [0.0]
    monitor = monitor_of(policy, lambda: clock[0])
    small = policy.counts.stages[0].answers
    small[ExitReason.PRICE], small[ExitReason.EVICTED] = 7, 3
    policy.counts.answered, policy.counts.degraded = 20, 10
    clock[0] = 1.0
    assert monitor.read().certified_loss == pytest.approx(0.01 + 3 / 20)


def test_a_stage_that_is_out_has_neither_price_nor_capacity():
    policy = two_stages()
    policy.set_slots(1, 0)
    large = monitor_of(policy).read().stages["large"]
    assert (large.price, large.capacity) == (None, 0.0)


def test_classes_are_read_if_there_are_several():
    policy = two_stages(classes=2)
    clock = [0.0]
    monitor = monitor_of(policy, lambda: clock[0])
    policy.counts.classes[1].answered, policy.counts.classes[1].degraded = 8, 2
    clock[0] = 4.0
    assert monitor.read().classes == {1: ClassLive(0.0, None, 0.0), 2: ClassLive(2.0, 0.25, 0.0)}


def test_what_the_audits_say_is_read():
    policy = two_stages()
    recent = monitor_of(policy).window.read(0.0, policy.counts)
    estimate = Estimate(500, 0.93, 40, 0.8, 0.91, 0.02, 0.05, 0.03)
    reading = live_statistics(0.0, ["small", "large"], policy, FixedPlan(), recent, estimate, 0.0, 10.0)
    assert reading.predicted_accuracy == 0.93
    assert reading.audited_accuracy == Audited(0.91, 0.02, 40)
    assert reading.audited_disagreement == Audited(0.05, 0.03, 40)
    assert reading.audit_coverage == 0.8
    nothing = Estimate(500, 0.93, 0, 0.1, None, None, None, None)
    reading = live_statistics(0.0, ["small", "large"], policy, FixedPlan(), recent, nothing, 0.0, 10.0)
    assert (reading.predicted_accuracy, reading.audited_accuracy, reading.audit_coverage) == (0.93, None, None)


@pytest.mark.looptime(noop_cycles=0)
async def test_the_monitor_publishes_once_a_second_and_survives_a_failure():
    policy = two_stages()
    clock = asyncio.get_running_loop().time
    auditor = Auditor(2, clock())
    audits = Audits(auditor, judges(2), [], lambda: False, clock)
    registry = Registry()
    answered, calls = {"answered": 0}, []

    def requests():
        calls.append(clock())
        if len(calls) == 2:
            raise RuntimeError("told to fail")
        return answered

    monitor = monitor_of(
        policy,
        clock,
        audits=audits,
        telemetry=Telemetry(["small", "large"], registry.make),
        requests=requests,
    )
    task = asyncio.ensure_future(monitor.run())
    probabilities = np.array([[0.2, 0.8]])
    judged = Judgement(probabilities, probabilities.max(axis=1), np.array([0.8]), np.zeros((1, 1)))
    audits.offer(Reply(None, Answer(0, ExitReason.CONFIDENT, judged, 0, 1.0, 0, 0, ())), {})
    answered["answered"] = 5
    await asyncio.sleep(3.5)
    assert calls == pytest.approx([1.0, 2.0, 3.0], abs=0.01)
    assert registry["cascade_requests_total", "answered"] == 5
    assert registry["cascade_predicted_accuracy_ratio",] == pytest.approx(0.8)
    task.cancel()
