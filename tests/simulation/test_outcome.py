"""What a record is added up to: against hand-made records, and against runs with known limits."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from simulation_cases import run

from cascade.policy.request import ExitReason
from cascade.simulation.outcome import Limits, efficiency, summarise, timeline
from cascade.simulation.record import REASONS, Ending, Record
from cascade.simulation.workload import Arrivals
from tests.calibration.judged_cases import difficulty_ladder


def reason(of: ExitReason) -> int:
    return REASONS.index(of)


@pytest.fixture
def table():
    """Four rows, two stages; stage 0 is right on rows 0 and 1, stage 1 on rows 0 and 2."""
    right = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    return replace(difficulty_ladder(4, errors=(0.9, 0.1), cost=(1.0, 3.0)), right=right, served=right)


@pytest.fixture
def record():
    """Six requests in three stretches of two phases: two right, one wrong, one late, one shed, one expired."""
    arrivals = Arrivals(
        instants=np.array([0.1, 0.2, 1.1, 1.2, 1.3, 3.5]),
        seconds=4.0,
        phases=("calm", "busy"),
        edges=np.array([0.0, 1.0, 3.0, 4.0]),
        labels=np.array([0, 1, 0]),
    )
    answered, shed, expired = Ending.ANSWERED, Ending.SHED, Ending.EXPIRED
    confident, last = reason(ExitReason.CONFIDENT), reason(ExitReason.LAST_STAGE)
    return Record(
        arrivals=arrivals,
        row=np.array([0, 2, 3, 2, 1, 0]),
        ending=np.array([answered, answered, answered, shed, expired, answered], dtype=np.int8),
        done_s=np.array([0.15, 0.5, 1.2, 1.2, 2.3, 4.6]),
        deadline_s=arrivals.instants + 1.0,
        stage=np.array([0, 1, 0, -1, -1, 1], dtype=np.int8),
        reason=np.array([confident, last, reason(ExitReason.PRICE), -1, -1, last], dtype=np.int8),
        cost=np.array([1.0, 4.0, 1.0, 0.0, 1.0, 4.0]),
        degraded=np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        batch_stage=np.array([0, 1, 0, 1]),
        batch_rows=np.array([2, 1, 2, 1]),
        batch_start_s=np.array([0.1, 0.5, 1.2, 3.5]),
        batch_finish_s=np.array([0.5, 1.5, 1.6, 4.5]),
        replicas=np.array([1, 2]),
        prices=[],
        seconds=4.6,
    )


def test_overall_counts_every_request_once(record, table):
    overall = summarise(record, table).overall
    assert (overall.offered, overall.answered, overall.shed, overall.expired, overall.late) == (6, 4, 1, 1, 1)
    assert (overall.failed, overall.cancelled) == (0, 0)
    assert overall.slo_attainment == pytest.approx(3 / 6)
    assert overall.accuracy == pytest.approx(2 / 3)
    assert overall.correct_on_time == pytest.approx(2 / 6)
    assert overall.degraded == pytest.approx(1 / 4)
    assert overall.exits == {"stage0": 0.5, "stage1": 0.5}
    assert overall.reasons["last_stage"] == 0.5
    assert sum(overall.reasons.values()) == 1
    assert overall.mean_cost == pytest.approx(2.5)
    assert overall.offered_per_s == 1.5
    assert overall.answered_per_s == 1.0
    assert overall.p50_s == pytest.approx(0.2)
    assert overall.p99_s == pytest.approx(1.1 - 0.03 * (1.1 - 0.3))
    assert overall.best is None
    assert overall.efficiency is None


def test_the_interval_is_wilsons(record, table):
    # (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with p = 2/3, n = 3, z = 1.959964
    overall = summarise(record, table).overall
    z, p, n = 1.959963984540054, 2 / 3, 3
    half = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert overall.accuracy_low == pytest.approx((p + z**2 / (2 * n) - half) / (1 + z**2 / n))
    assert overall.accuracy_high == pytest.approx((p + z**2 / (2 * n) + half) / (1 + z**2 / n))


def test_phases_of_several_stretches_are_added_up(record, table):
    calm, busy = summarise(record, table).phases
    assert (calm.name, calm.seconds, calm.offered, calm.offered_per_s) == ("calm", 2.0, 3, 1.5)
    assert (busy.name, busy.seconds, busy.offered, busy.shed, busy.expired) == ("busy", 2.0, 3, 1, 1)
    assert calm.slo_attainment == pytest.approx(2 / 3)
    assert busy.accuracy == 0.0
    assert calm.accuracy == 1.0


def test_busy_time_is_cut_at_the_ends_of_phases(record, table):
    outcome = summarise(record, table)
    calm, busy = outcome.phases
    # Stage 0: 0.4 s in the first stretch, 0.4 s in the second. Stage 1, two replicas: 0.5 s, 0.5 s, and 0.5 s of the last
    # batch before the end.
    assert calm.utilisation == pytest.approx({"stage0": 0.4 / 2, "stage1": 1.0 / 4})
    assert busy.utilisation == pytest.approx({"stage0": 0.4 / 2, "stage1": 0.5 / 4})
    assert outcome.overall.utilisation == pytest.approx({"stage0": 0.8 / 4, "stage1": 1.5 / 8})
    assert calm.batch_size == {"stage0": 2.0, "stage1": 1.0}
    assert busy.batch_size == {"stage0": 2.0, "stage1": None}


def test_a_phase_without_requests_says_nothing(record, table):
    empty = replace(record.arrivals, labels=np.array([0, 0, 1]), instants=np.array([0.1, 0.2, 1.1, 1.2, 1.3, 1.4]))
    silent = summarise(replace(record, arrivals=empty), table, Limits(lambda rate: 0.9, lambda rate: 0.5)).phases[1]
    assert silent.offered == 0
    assert (silent.accuracy, silent.slo_attainment, silent.p99_s, silent.best, silent.efficiency) == (None,) * 5


def test_efficiency_is_paired_with_stage_0_on_the_same_rows():
    # won = right - theta first: 1 - .5, 0 - .5, 1 - 0, 1 - .5, mean .375; span .8 - .25; theta = .25 / .5
    right, first = np.array([1, 0, 1, 1], dtype=bool), np.array([1, 1, 0, 1], dtype=bool)
    found = efficiency(right, first, np.full(4, 0.8), np.full(4, 0.25), 0.5)
    assert found.value == pytest.approx(0.375 / 0.55)
    assert found.standard_error == pytest.approx(np.std([0.5, -0.5, 1, 0.5], ddof=1) / 2 / 0.55)


def test_the_standard_error_of_efficiency_is_the_spread_over_samples():
    # 400 bootstrap samples of 3,000 rows, seed 0; their standard deviation is known to about 4 %.
    random = np.random.default_rng(0)
    first = random.random(3000) < 0.7
    right = first | (random.random(3000) < 0.5)
    best, floor = np.full(3000, 0.95), np.full(3000, float(first.mean()))

    def found(rows):
        return efficiency(right[rows], first[rows], best, floor, float(first.mean()))

    spread = [found(random.integers(0, 3000, 3000)).value for _ in range(400)]
    assert found(slice(None)).standard_error == pytest.approx(np.std(spread), rel=0.12)


def test_efficiency_is_silent_where_nothing_can_be_won():
    right = np.ones(5, dtype=bool)
    assert efficiency(right, right, np.full(5, 0.8), np.full(5, 0.8), 0.8) is None
    assert efficiency(right[:1], right[:1], np.full(1, 0.9), np.full(1, 0.8), 0.8) is None


def test_efficiency_knows_the_floor_and_the_limit_of_a_run():
    # Long deadlines and hardly any load: every row walks as far as it pays, which is all there is to win.
    table = difficulty_ladder(2000)
    record, _ = run("poisson:20", seconds=150, table=table, deadline_s=5.0)
    floor, best = table.stop_at(0).accuracy, table.walk([0.0, 0.001, 0.001]).accuracy
    found = summarise(record, table, Limits(lambda rate: best, lambda rate: floor)).overall
    assert abs(found.efficiency - 1) < 4 * found.efficiency_se
    assert found.efficiency_se < 0.05
    assert (found.best, found.floor) == (pytest.approx(best), pytest.approx(floor))
    dead = replace(record, stage=np.zeros_like(record.stage))
    assert summarise(dead, table, Limits(lambda rate: best, lambda rate: floor)).overall.efficiency == pytest.approx(0)


def test_limits_are_asked_at_the_rate_of_each_phase():
    asked = []

    def best(rate):
        asked.append(rate)
        return 0.99 if rate < 100 else 0.90

    table = difficulty_ladder()
    record, _ = run("step:50@2,200@2", table=table)
    outcome = summarise(record, table, Limits(best, lambda rate: 0.7))
    assert asked == [phase.offered / 2 for phase in outcome.phases]
    assert [phase.best for phase in outcome.phases] == pytest.approx([0.99, 0.90])
    first, second = (phase.offered for phase in outcome.phases)
    assert outcome.overall.best == pytest.approx((0.99 * first + 0.90 * second) / (first + second))


def test_a_timeline_adds_up_to_the_whole(record, table):
    sliced = timeline(record, table, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert sliced.offered.tolist() == [2, 3, 0, 1]
    assert sliced.correct_on_time == pytest.approx([1.0, 0.0, np.nan, 0.0], nan_ok=True)
    assert sliced.over_first == pytest.approx([0.5, -1 / 3, np.nan, -1.0], nan_ok=True)
    assert sliced.over_first_se[:2] == pytest.approx([0.5 / sqrt(2), sqrt(1 / 3 - 1 / 9) / sqrt(3)])
    assert sliced.exits[:, 0].tolist() == [0.5, 0.5]


def test_the_document_is_plain(record, table):
    document = summarise(record, table).document()
    assert [phase["name"] for phase in document["phases"]] == ["calm", "busy"]
    assert document["overall"]["offered"] == 6
