"""The arrival rate is unbiased however and whenever it is read; the window says what the last seconds brought."""

from math import exp, sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.meter import RateMeter, Window
from cascade.policy.request import ExitReason
from cascade.policy.stats import ClassCounts, Counts, StageCounts

# -- rate --------------------------------------------------------------------------------------------------------------


def poisson(random: Random, rate: float, until_s: float) -> list[float]:
    instants, at = [], random.expovariate(rate)
    while at < until_s:
        instants.append(at)
        at += random.expovariate(rate)
    return instants


@pytest.mark.parametrize("read_s", [0.03, 0.2, 0.77, 5.0])
def test_the_rate_is_unbiased_from_the_start_on(read_s):
    random, rate, tau_s, runs = Random(3), 80.0, 0.5, 3000
    readings = []
    for _ in range(runs):
        meter = RateMeter(0.0, tau_s)
        for at in poisson(random, rate, read_s):
            meter.add(at)
        readings.append(meter.at(read_s))
    mean = sum(readings) / runs
    variance = sum((reading - mean) ** 2 for reading in readings) / (runs - 1)
    assert mean == pytest.approx(rate, abs=3 * sqrt(variance / runs))
    # For Poisson arrivals the squared kernel integrates to this, and r / (2 tau) in the long run.
    seen = 1 - exp(-read_s / tau_s)
    assert variance == pytest.approx(rate * (1 - exp(-2 * read_s / tau_s)) / (2 * tau_s * seen**2), rel=0.15)


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 4), st.integers(1, 9)), max_size=20),
    readings=st.lists(st.floats(0, 4), max_size=20),
)
def test_readings_in_between_change_nothing(arrivals, readings):
    read, unread = RateMeter(0.0), RateMeter(0.0)
    events = [(at, rows) for at, rows in arrivals] + [(at, 0) for at in readings]
    for at, rows in sorted(events):
        if rows:
            read.add(at, rows)
            unread.add(at, rows)
        else:
            read.at(at)
    assert read.at(5.0) == unread.at(5.0)
    direct = sum(rows * exp(-(5.0 - at) / 0.5) for at, rows in arrivals) / (0.5 * (1 - exp(-10)))
    assert read.at(5.0) == pytest.approx(direct)


def test_rows_that_come_together_weigh_as_many():
    together, apart = RateMeter(0.0), RateMeter(0.0)
    together.add(1.0, 5)
    for _ in range(5):
        apart.add(1.0)
    assert together.at(1.5) == pytest.approx(apart.at(1.5))


def test_the_rate_fades_when_nothing_comes_and_is_0_before_anything_did():
    meter = RateMeter(10.0, 0.5)
    assert meter.at(10.0) == 0.0
    assert meter.at(11.0) == 0.0
    meter.add(12.0, 100)
    assert meter.at(13.0) == pytest.approx(meter.at(12.5) * exp(-1), rel=0.01)
    assert meter.at(60.0) < 1e-30


# -- window ------------------------------------------------------------------------------------------------------------


def two_stages() -> Counts:
    return Counts((StageCounts(), StageCounts()), classes=(ClassCounts(), ClassCounts()))


def second_of(counts: Counts, rows: int = 10, dear: int = 4, degraded: int = 0, shed: int = 0) -> None:
    """One second of traffic."""
    counts.arrived += rows + shed
    counts.answered += rows
    counts.shed += shed
    counts.degraded += degraded
    counts.cost += rows + 10 * dear
    counts.stages[0].answers[ExitReason.CONFIDENT] += rows - dear
    counts.stages[1].answers[ExitReason.LAST_STAGE] += dear
    for stage, sent in zip(counts.stages, (rows, dear), strict=True):
        stage.batches += 2
        stage.rows += sent
        stage.runs.add(0.05, 2)
        stage.waits.add(0.05, sent)


def test_an_old_second_is_forgotten():
    counts = two_stages()
    window = Window(0.0, counts, span_s=10.0)
    for second in range(1, 21):
        second_of(counts, degraded=5 if second <= 10 else 0, shed=3 if second <= 10 else 0)
        recent = window.read(float(second), counts)
        forgotten = max(0, second - 10)
        assert recent.seconds == min(second, 10)
        assert recent.degraded == pytest.approx(0.5 * (min(second, 10) - forgotten) / recent.seconds)
        assert recent.shed_per_s == pytest.approx(3 * (min(second, 10) - forgotten) / recent.seconds)
        assert recent.arrived_per_s == pytest.approx(recent.answered_per_s + recent.shed_per_s)


def test_the_figures_of_a_window():
    counts = two_stages()
    important = counts.classes[0]
    counts.answered = counts.degraded = 1000  # from before the window
    window = Window(5.0, counts)
    second_of(counts)
    second_of(counts, degraded=3)
    counts.stages[0].answers[ExitReason.PRICE] += 2
    counts.stages[0].answers[ExitReason.CONFIDENT] -= 5
    counts.stages[0].answers[ExitReason.EVICTED] += 1
    counts.stages[0].answers[ExitReason.SATISFIED] += 2  # of their own wish, but the price would have sent them on
    counts.expired, counts.failed = 4, 2
    important.answered, important.degraded, important.shed = 8, 2, 6
    recent = window.read(7.0, counts)
    assert (recent.answered_per_s, recent.expired_per_s, recent.failed_per_s) == (10, 2, 1)
    assert recent.degraded == pytest.approx(3 / 20)
    assert recent.cut_short == pytest.approx((1 + 2) / 20)
    assert recent.cost == pytest.approx(5.0)
    assert [stage.share for stage in recent.stages] == pytest.approx([0.6, 0.4])
    assert [stage.rows_per_s for stage in recent.stages] == pytest.approx([10, 4])
    assert [stage.batch_rows for stage in recent.stages] == pytest.approx([5, 2])
    assert [stage.run_s for stage in recent.stages] == pytest.approx([0.05, 0.05])
    assert [stage.queued_s for stage in recent.stages] == pytest.approx([0.05, 0.05])
    first, second = recent.classes
    assert (first.answered_per_s, first.degraded, first.shed_per_s) == (4, 0.25, 3)
    assert (second.answered_per_s, second.degraded, second.shed_per_s) == (0, None, 0)


def test_what_nothing_is_known_of_is_none_and_not_a_guess():
    counts = two_stages()
    recent = Window(0.0, counts).read(0.0, counts)
    assert (recent.arrived_per_s, recent.shed_per_s) == (0, 0)
    assert recent.degraded is recent.cost is None
    assert all(s.share is s.batch_rows is s.run_s is s.queued_s is None for s in recent.stages)


def test_reading_often_keeps_no_more_and_reads_the_same():
    counts = two_stages()
    window, other = Window(0.0, counts), Window(0.0, counts)
    for step in range(1, 3001):
        at = step / 100
        if step % 100 == 0:
            second_of(counts, degraded=step // 100 % 3)
        recent = window.read(at, counts)
        if step % 100 == 0:
            assert recent.degraded == pytest.approx(other.read(at, counts).degraded, abs=0.02)
    assert len(window._snapshots) <= 22


def test_a_timer_that_fires_a_little_early_leaves_no_gap():
    counts = two_stages()
    window, at = Window(0.0, counts), 0.0
    for _ in range(40):
        at += 0.999
        recent = window.read(at, counts)
    assert 10.0 <= recent.seconds <= 11.0


def test_a_long_silence_is_one_long_window():
    counts = two_stages()
    window = Window(0.0, counts)
    second_of(counts)
    window.read(1.0, counts)
    assert window.read(100.0, counts).seconds == 99.0
