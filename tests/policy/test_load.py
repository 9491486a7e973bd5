"""How the policy behaves under load and in trouble, in virtual time: the promises of the design, not their numbers."""

from dataclasses import replace

import pytest
from builders import MS, stage
from virtual import Outcome, Table, simulate

from cascade.policy.request import ExitReason

LADDER = (
    stage(batch=32, cost=1, a_s=MS, b_s=MS / 16),  # about 10,000 rows a second
    stage(batch=16, cost=10, base_price=0.02, a_s=4 * MS, b_s=MS),  # about 800
    stage(batch=8, cost=100, base_price=0.02, a_s=20 * MS, b_s=10 * MS),  # about 80
)
SLOW_DOOR = (stage(batch=8, cost=1, a_s=5 * MS, b_s=MS), *LADDER[1:])  # about 630 rows a second at stage 0


def answers(out: Outcome) -> list:
    return [answer for _, answer in out.replies.values()]


def mean_gain(out: Outcome, stage: int, reason: ExitReason) -> float:
    """Mean true gain of the last stage over stage 0, of the rows that left so."""
    table = Table()
    left = [tag for tag, (_, answer) in out.replies.items() if (answer.stage, answer.reason) == (stage, reason)]
    assert len(left) > 30
    return sum((table.errors[0] - table.errors[-1]) * table.u[out.row_of[tag]] ** 2 for tag in left) / len(left)


def assert_every_answer_in_time(out: Outcome) -> None:
    for tag, (now, answer) in out.replies.items():
        row = out.requests[tag]
        first_answer_s = row.arrived_s + answer.spans[0].queued_s + answer.spans[0].run_s
        assert now <= max(row.answer_by_s, first_answer_s) <= row.deadline_s


@pytest.fixture(scope="module")
def calm() -> Outcome:
    return simulate(LADDER, rate_per_s=15, seconds=20)


@pytest.fixture(scope="module")
def crowded() -> Outcome:
    """Four times what the last stage can do: some 0.8 of the rows would go there unloaded."""
    return simulate(LADDER, rate_per_s=420, seconds=5)


def test_without_load_nothing_is_degraded_shed_or_late(calm):
    assert calm.policy.counts.answered == calm.policy.counts.arrived == 300
    assert calm.policy.counts.degraded == 0
    assert {answer.reason for answer in answers(calm)} == {ExitReason.CONFIDENT, ExitReason.LAST_STAGE}
    assert_every_answer_in_time(calm)


def test_with_four_times_the_load_of_the_last_stage_every_row_is_answered_in_time(crowded):
    counts = crowded.policy.counts
    assert (counts.answered, counts.shed, counts.expired, counts.failed) == (counts.arrived, 0, 0, 0)
    assert counts.degraded > 0.4 * counts.arrived
    assert_every_answer_in_time(crowded)


def test_under_load_the_last_stage_is_kept_for_the_rows_with_most_to_gain(calm, crowded):
    reached = mean_gain(crowded, 2, ExitReason.LAST_STAGE)
    assert reached > 1.2 * mean_gain(calm, 2, ExitReason.LAST_STAGE)
    assert reached > 1.5 * mean_gain(crowded, 1, ExitReason.EVICTED)


def test_under_load_the_last_stage_is_kept_busy_with_full_batches(crowded):
    books = crowded.policy.counts.stages[2]
    assert books.rows / books.batches > 7.5


def test_when_stage_0_is_too_slow_the_lowest_class_is_turned_away_first():
    # A thousand rows a second in three classes, where stage 0 can do some 630.
    out = simulate(SLOW_DOOR, rate_per_s=1000, seconds=2, classes=3)
    arrived = [sum(row.priority == c for row in out.requests.values()) for c in (1, 2, 3)]
    shed = [sum(out.requests[tag].priority == c for tag in out.shed) for c in (1, 2, 3)]
    share = [s / a for s, a in zip(shed, arrived, strict=True)]
    assert share[0] < 0.02
    assert share[0] <= share[1] < 0.4
    assert share[2] > 0.7
    assert out.refused == []
    assert_every_answer_in_time(out)


def test_a_row_once_admitted_is_answered_however_much_comes():
    out = simulate(SLOW_DOOR, rate_per_s=4000, seconds=1)
    assert len(out.replies) + len(out.shed) == len(out.requests)
    assert out.refused == []
    assert_every_answer_in_time(out)


def test_while_the_middle_stage_is_out_rows_pass_it():
    half = 10.0
    out = simulate(
        LADDER,
        rate_per_s=15,
        seconds=20,
        happenings=[(0.0, lambda policy: policy.set_slots(1, 0)), (half, lambda policy: policy.set_slots(1, 1))],
    )
    visits = {
        (row.arrived_s < half - 1, tuple(s.stage for s in out.replies[tag][1].spans)) for tag, row in out.requests.items()
    }
    assert {way for early, way in visits if early} == {(0,), (0, 2)}
    assert (False, (0, 1, 2)) in visits
    assert out.policy.counts.stages[0].answers[ExitReason.FAILURE] == 0
    assert out.policy.counts.degraded == 0


def test_while_every_dear_stage_is_out_stage_0_answers_and_says_so():
    out = simulate(
        LADDER,
        rate_per_s=50,
        seconds=2,
        happenings=[(0.0, lambda p: p.set_slots(1, 0)), (0.0, lambda p: p.set_slots(2, 0))],
    )
    assert {(answer.stage, answer.reason) for answer in answers(out)} == {
        (0, ExitReason.CONFIDENT),
        (0, ExitReason.FAILURE),
    }
    assert len(out.replies) == len(out.requests)


@pytest.mark.parametrize("factor", [0.25, 5.0])
def test_a_wrong_profile_is_corrected_by_what_is_seen(factor):
    wrong = (LADDER[0], *(replace(s, a_s=s.a_s * factor, b_s=s.b_s * factor) for s in LADDER[1:]))
    out = simulate(LADDER, rate_per_s=100, seconds=8, deadline_s=2.0, true_stages=wrong)
    assert [c.service.correction for c in out.policy.capacities] == pytest.approx([1, factor, factor], rel=0.05)
    assert out.abandoned == 0
    assert len(out.replies) == len(out.requests)
    assert_every_answer_in_time(out)


def test_a_stage_six_times_slower_than_its_profile_is_learned_and_not_given_up_for_ever():
    told = (LADDER[0], replace(LADDER[1], timeout_floor_s=0.0), LADDER[2])
    slow = (told[0], replace(told[1], a_s=told[1].a_s * 6, b_s=told[1].b_s * 6), told[2])
    out = simulate(told, rate_per_s=30, seconds=5, deadline_s=2.0, true_stages=slow)
    assert out.policy.capacities[1].service.correction == pytest.approx(6, rel=0.05)
    assert out.abandoned <= 2
    assert out.policy.counts.degraded == 0
    assert len(out.replies) == len(out.requests)


def test_a_profile_too_slow_to_be_in_time_leaves_the_stage_unused_and_the_rows_answered():
    wrong = (*LADDER[:2], replace(LADDER[2], a_s=0.6))
    out = simulate(wrong, rate_per_s=50, seconds=2)
    assert {answer.stage for answer in answers(out)} == {0, 1}
    assert len(out.replies) == len(out.requests)


def test_a_batch_that_hangs_is_given_up_tried_once_more_and_then_answered_without_it():
    out = simulate(LADDER, rate_per_s=40, seconds=0.5, deadline_s=10.0, hangs=lambda stage, number: stage == 1)
    runs = [entry for entry in out.log if entry[1] == "run" and entry[2] == 1]
    first, again = [[entry[4:] for entry in runs if entry[3] == attempt] for attempt in (1, 2)]
    assert first == again
    assert out.abandoned == len(runs) > 0
    assert {(answer.stage, answer.reason) for answer in answers(out)} == {
        (0, ExitReason.CONFIDENT),
        (0, ExitReason.FAILURE),
    }


def test_one_hanging_batch_costs_its_rows_time_and_nothing_else():
    out = simulate(LADDER, rate_per_s=10, seconds=2, deadline_s=10.0, hangs=lambda stage, number: (stage, number) == (1, 1))
    assert out.abandoned == 1
    assert out.policy.counts.degraded == 0
    assert_every_answer_in_time(out)


def test_a_stage_0_that_never_comes_back_expires_its_rows_and_closes_the_door():
    out = simulate(SLOW_DOOR, rate_per_s=1000, seconds=0.5, hangs=lambda stage, number: stage == 0)
    assert out.replies == {}
    assert len(out.refused) + len(out.shed) == len(out.requests)
    assert out.shed
    assert all(capacity.busy == 0 for capacity in out.policy.capacities)
