"""Figures of a phase, from rows that were counted by hand, and the estimator that takes the luck of the rows out."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.errors import ConfigError
from cascade.simulation.workload import Arrivals
from loadtests.evidence import settled
from loadtests.phases import Limits, measure, row_adjusted
from loadtests.record import Recording
from loadtests.scenarios import WARM_UP
from tests.calibration.judged_cases import difficulty_ladder
from tests.loadtests.recorded import ROWS_PER_S, STAGE0, TABLE, UNIT, good, limits, slow


def ten(**changes):
    """Ten requests in a second, after one of warm-up that was lost."""
    count = 11
    arrivals = Arrivals(
        np.append(0.5, 1.05 + 0.1 * np.arange(10)), 2.0, (WARM_UP, "steady"), np.array([0.0, 1.0, 2.0]), np.array([0, 1])
    )
    columns = {
        "scheduled_s": arrivals.instants,
        "lag_s": np.zeros(count),
        "latency_s": np.full(count, 0.1),
        "status": np.array([0] + [200] * 10, np.int16),
        "stage": np.array([-1] + [0] * 6 + [2] * 4, np.int8),
        "reason": np.full(count, "confident", "U16"),
        "degraded": np.array([False] + [True] * 2 + [False] * 8),
        "price": np.full(count, np.nan),
        "cost": np.array([np.nan] + [1.0] * 6 + [21.0] * 4),
        "correct": np.array([False] + [True] * 8 + [False] * 2),
        "row": np.arange(count, dtype=np.int32),
        "priority": np.ones(count, np.int8),
        "tenant": np.full(count, "", "U16"),
        "deadline_s": np.ones(count),
        "attempts": np.ones(count, np.int8),
        "phase": arrivals.phase.astype(np.int16),
    }
    meta = {"system": "cascade", "scenario": "steady-1", "seed": 0}
    return Recording(**{**columns, **changes}, arrivals=arrivals, meta=meta)


@pytest.fixture(scope="module")
def bounds():
    return limits()


def test_the_warm_up_counts_for_nothing(bounds):
    (phase,) = measure(ten(), bounds)
    assert (phase.name, phase.offered, phase.offered_per_s, phase.achieved_per_s) == ("steady", 10, 10.0, 10.0)
    assert phase.multiple == pytest.approx(10 / UNIT)
    assert phase.slo_attainment == 1.0


def test_accuracy_mix_and_cost_are_those_of_the_answers(bounds):
    (phase,) = measure(ten(), bounds)
    assert phase.accuracy == phase.correct_on_time == 0.8
    assert phase.accuracy_low == pytest.approx(0.490, abs=1e-3)  # Wilson, eight of ten
    assert phase.accuracy_high == pytest.approx(0.943, abs=1e-3)
    assert phase.stages == {"stage0": 0.6, "stage1": 0.0, "stage2": 0.4}
    assert phase.degraded == 0.2
    assert phase.mean_cost == pytest.approx(9.0)
    assert phase.p50_s == phase.p99_s == pytest.approx(0.1)


def test_shed_lost_and_late_requests_count_against_what_was_offered(bounds):
    status = np.array([0, 503, 0, 500] + [200] * 7, np.int16)
    latency_s = np.array([np.nan, 0.01, np.nan, 0.1, 1.5] + [0.1] * 6)
    correct = np.array([False] * 4 + [True] * 7)
    (phase,) = measure(ten(status=status, latency_s=latency_s, correct=correct), bounds)
    assert (phase.shed, phase.errors, phase.late) == (0.1, 0.2, 0.1)
    assert phase.slo_attainment == phase.correct_on_time == 0.6
    assert phase.accuracy == 1.0
    assert phase.p99_s == pytest.approx(1.5, abs=0.1)


def test_the_deadline_is_each_requests_own(bounds):
    (phase,) = measure(ten(deadline_s=np.array([1.0] * 6 + [0.05] * 5)), bounds)
    assert phase.slo_attainment == 0.5
    assert {name: group.slo_attainment for name, group in phase.groups.items()} == {
        "deadline 0.05 s": 0.0,
        "deadline 1.0 s": 1.0,
    }


def test_classes_and_tenants_are_told_apart_where_there_are_several(bounds):
    priority = np.array([1] * 6 + [3] * 5, np.int8)
    status = np.array([200] * 6 + [503] * 5, np.int16)
    (phase,) = measure(ten(priority=priority, status=status), bounds)
    assert {name: (group.offered, group.shed) for name, group in phase.groups.items()} == {
        "class 1": (5, 0.0),
        "class 3": (5, 1.0),
    }
    assert phase.groups["class 3"].accuracy is None


def test_what_was_sent_late_was_not_achieved(bounds):
    (phase,) = measure(ten(lag_s=np.array([0.0] + [0.3] * 10)), bounds)
    assert phase.achieved_per_s == 7.0
    assert phase.lag_p99_s == pytest.approx(0.3)


def test_a_phase_in_which_nobody_is_answered_has_figures(bounds):
    (phase,) = measure(ten(status=np.full(11, 503, np.int16), correct=np.zeros(11, bool)), bounds)
    assert (phase.accuracy, phase.p99_s, phase.degraded, phase.mean_cost) == (None, None, None, None)
    assert (phase.shed, phase.adjusted) == (1.0, 0.0)


def test_a_row_that_the_table_lacks_is_refused(bounds):
    with pytest.raises(ConfigError, match="row 4000"):
        measure(ten(row=np.full(11, 4000, np.int32)), bounds)


def test_limits_need_a_capacity_for_each_stage():
    with pytest.raises(ConfigError, match="3 stages, got 2"):
        Limits(TABLE, ROWS_PER_S[:2], stage0_rate=STAGE0, unit_rate=UNIT)
    with pytest.raises(ConfigError, match="above 0, got 0 and 40"):
        Limits(TABLE, ROWS_PER_S, stage0_rate=0.0, unit_rate=UNIT)


def test_stages_that_share_replicas_allow_less_than_each_alone(bounds):
    shared = Limits(TABLE, ROWS_PER_S, stage0_rate=STAGE0, unit_rate=UNIT, together=((1, 2),))
    assert shared.best(2 * UNIT) < bounds.best(2 * UNIT)
    assert shared.floor(2 * UNIT) == bounds.floor(2 * UNIT)


def test_the_way_to_stage_0_limits_it_too(bounds):
    assert bounds.floor(2 * STAGE0) == pytest.approx(TABLE.served[:, 0].mean() / 2)


def test_what_could_be_foreseen_is_told_where_there_are_calibration_rows(bounds):
    assert bounds.foreseen(4 * UNIT) is None
    other = difficulty_ladder(400, seed=1)
    knowing = Limits(TABLE, ROWS_PER_S, stage0_rate=STAGE0, unit_rate=UNIT, calibration=other)
    for multiple in (0.5, 2, 4, 8):
        rate = multiple * UNIT
        assert knowing.floor(rate) <= knowing.foreseen(rate) <= knowing.best(rate) + 0.02  # prices of few rows ask for more
    hindsight = Limits(TABLE, ROWS_PER_S, stage0_rate=STAGE0, unit_rate=UNIT, calibration=TABLE)
    assert hindsight.foreseen(4 * UNIT) <= hindsight.best(4 * UNIT) + 1e-9
    assert hindsight.foreseen(20 * UNIT) < 0.75  # what is turned away is not answered right


def test_the_luck_of_the_rows_is_taken_out(bounds):
    random = np.random.default_rng(3)
    known, served, truth = bounds.known(80.0), TABLE.served, TABLE.served[:, [0, 2]].mean()
    found, plain = [], []
    for _ in range(200):
        rows = random.integers(TABLE.rows, size=400)
        right = served[rows, np.where(random.random(400) < 0.5, 0, 2)]
        found.append(row_adjusted(right, rows, known))
        plain.append(right.mean())
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(200))
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)
    assert values.std() < 0.9 * np.std(plain)


def test_an_ideal_server_has_an_efficiency_of_one(bounds):
    phase = measure(good("steady-6"), bounds)[0]
    assert phase.efficiency == pytest.approx(1.0, abs=0.03)
    assert phase.efficiency_se < 0.02


def test_requests_soon_after_an_overload_belong_to_its_recovery():
    storm = good("storm")
    calm = settled(storm, STAGE0)
    end_s = storm.arrivals.edges[-2]
    since = storm.scheduled_s - end_s
    assert np.array_equal(~calm, (since >= 0) & (since < 2.0))
    assert settled(good("step"), STAGE0).all()
    slowed = replace(storm, latency_s=slow(lambda run: since >= 0, 9.0)(storm).latency_s)
    assert np.array_equal(settled(slowed, STAGE0), calm)
