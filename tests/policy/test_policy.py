"""What the policy does in one situation at a time."""

from math import inf

import pytest
from builders import (
    MS,
    admit,
    at_stage0,
    batches,
    defer,
    judged,
    ladder,
    only_reply,
    reasons,
    request,
    stage,
    three,
)

from cascade.policy.commands import Expire, Fail, Shed
from cascade.policy.request import ExitReason
from cascade.policy.timers import TIMER_SLACK
from cascade.policy.walk import State

# -- after a result -----------------------------------------------------------------------------------------------------


def test_a_row_no_dearer_stage_would_help_is_confident():
    policy = three()
    answer = only_reply(policy.completed(MS, at_stage0(policy, request("a")), judged([0.0, 0.0]))).answer
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (0, ExitReason.CONFIDENT, False, 1.0)


def test_a_row_with_something_to_gain_climbs_to_the_last_stage():
    policy = three()
    (walk,) = defer(policy, 0.0, [[0.3, 0.5]], [request("a")])
    assert (walk.state, walk.stage) == (State.DEFERRED, 1)
    (batch,) = batches(policy.dispatch(0.125))
    assert policy.completed(0.25, batch, judged([0.2])) == []
    (batch,) = batches(policy.dispatch(0.375))
    answer = only_reply(policy.completed(0.5, batch, judged([]))).answer
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (2, ExitReason.LAST_STAGE, False, 111.0)
    assert [(s.stage, s.queued_s, s.run_s) for s in answer.spans] == [(0, 0, 0), (1, 0.125, 0.125), (2, 0.125, 0.125)]
    assert [books.escalations for books in policy.counts.stages] == [1, 1, 0]
    assert [books.queued_s for books in policy.counts.stages] == [0.0, 0.125, 0.125]
    assert [books.run_s for books in policy.counts.stages] == [0.0, 0.125, 0.125]


def test_a_ladder_of_one_stage_answers_everything_there():
    policy = ladder(stage())
    commands = policy.completed(MS, at_stage0(policy, request("a"), request("b")), judged([], []))
    assert reasons(commands) == {"a": ExitReason.LAST_STAGE, "b": ExitReason.LAST_STAGE}
    assert policy.counts.degraded == 0


def test_a_full_stage_further_on_does_not_keep_rows_from_one_that_has_room():
    """Only the next stage's present price counts; what lies behind it is looked ahead to at base prices."""
    policy = three()
    policy.set_prices([0.0, 0.0, 0.9])
    (walk,) = defer(policy, 0.0, [[0.0, 0.5]], [request("a")])
    assert (walk.state, walk.stage) == (State.DEFERRED, 1)


def test_a_price_above_the_gain_ends_a_row_as_degraded():
    policy = three()
    policy.set_prices([0.0, 0.25, 0.25])
    batch = at_stage0(policy, request("at the price"), request("above"), request("no gain"))
    commands = policy.completed(MS, batch, judged([0.25, 0.25], [0.26, 0.3], [0.0, 0.0]))
    assert reasons(commands) == {"at the price": ExitReason.PRICE, "no gain": ExitReason.CONFIDENT}
    assert policy.counts.degraded == 1
    assert policy.waiting(1) == 1


def test_the_price_never_falls_below_the_base_price():
    policy = ladder(stage(), stage(base_price=0.5))
    policy.set_prices([0.9, 0.1])
    assert policy.prices == (0.9, 0.5)
    with pytest.raises(ValueError, match="zip"):
        policy.set_prices([0.0])
    assert policy.prices == (0.9, 0.5)


def test_a_budget_is_kept_to_the_last_unit():
    policy = three()
    batch = at_stage0(policy, request("none", budget=0.5), request("short", budget=10.9), request("just", budget=11.0))
    commands = policy.completed(MS, batch, judged(*[[0.5, 0.5]] * 3))
    assert reasons(commands) == {"none": ExitReason.BUDGET, "short": ExitReason.BUDGET}
    (batch,) = batches(policy.dispatch(MS))
    answer = only_reply(policy.completed(2 * MS, batch, judged([0.5]))).answer
    assert (answer.reason, answer.cost, answer.degraded) == (ExitReason.BUDGET, 11.0, True)


def test_a_budget_of_exactly_the_sum_is_enough_however_the_sum_rounds():
    policy = ladder(stage(cost=0.1), stage(cost=0.2))
    assert 0.1 + 0.2 > 0.3
    batch = at_stage0(policy, request("just", budget=0.3), request("short", budget=0.3 * (1 - 1e-8)))
    assert reasons(policy.completed(MS, batch, judged([0.5], [0.5]))) == {"short": ExitReason.BUDGET}
    (batch,) = batches(policy.dispatch(MS))
    assert only_reply(policy.completed(2 * MS, batch, judged([]))).answer.cost == pytest.approx(0.3)


def test_a_judgement_of_another_length_is_refused_and_the_batch_runs_on():
    policy = three()
    batch = at_stage0(policy, request("a"), request("b"))
    before = repr(policy.counts)
    for wrong in (judged([0.0, 0.0]), judged(*[[0.0, 0.0]] * 3)):
        with pytest.raises(ValueError, match=f"a batch of 2 rows came back with {len(wrong)} judged"):
            policy.completed(MS, batch, wrong)
    assert (repr(policy.counts), policy.capacities[0].busy) == (before, 1)
    assert policy.capacities[0].service.correction == 1.0
    assert set(reasons(policy.completed(MS, batch, judged([0.0, 0.0], [0.0, 0.0])))) == {"a", "b"}


def test_a_row_that_could_not_be_back_in_time_is_answered_now():
    policy = three()
    batch = at_stage0(policy, request("a", answer_by_s=9 * MS, deadline_s=1.0))
    assert reasons(policy.completed(0.0, batch, judged([0.5, 0.5]))) == {"a": ExitReason.DEADLINE}


def test_a_stage_answers_between_the_answer_instant_and_the_deadline_if_there_was_no_answer_before():
    policy = three()
    batch = at_stage0(policy, request("a", answer_by_s=20 * MS, deadline_s=40 * MS))
    assert policy.tick(20 * MS) == []
    assert policy.next_timer() == 40 * MS
    assert reasons(policy.completed(30 * MS, batch, judged([0.5, 0.5]))) == {"a": ExitReason.DEADLINE}
    assert policy.next_timer() is None


# -- queues and batches -------------------------------------------------------------------------------------------------


def test_the_rows_with_most_to_gain_are_called_first():
    policy = ladder(stage(batch=8), stage(batch=2))
    defer(policy, 0.0, [[0.1], [0.9], [0.5], [0.7]], [request(i) for i in range(4)])
    (batch,) = batches(policy.dispatch(0.0))
    assert [walk.request.tag for walk in batch.walks] == [1, 3]


def test_every_free_slot_gets_a_batch():
    policy = ladder(stage(batch=8), stage(slots=2, batch=2))
    defer(policy, 0.0, [[0.5]] * 6, [request(i) for i in range(6)])
    assert [[walk.request.tag for walk in batch.walks] for batch in batches(policy.dispatch(0.0))] == [[0, 1], [2, 3]]
    assert (policy.waiting(1), policy.capacities[1].free) == (2, 0)
    assert policy.dispatch(0.0) == []


def test_a_full_queue_answers_the_rows_with_least_to_gain():
    policy = ladder(stage(batch=16), stage(batch=2), usual_deadline_s=4 * MS)  # room for one batch
    defer(policy, 0.0, [[i / 16] for i in (3, 9, 7, 5, 1, 8)], [request(i) for i in (3, 9, 7, 5, 1, 8)])
    commands = policy.dispatch(0.0)
    assert [walk.request.tag for walk in batches(commands)[0].walks] == [9, 8]
    assert reasons(commands) == {3: ExitReason.EVICTED, 1: ExitReason.EVICTED}
    assert policy.waiting(1) == 2
    assert policy.counts.degraded == 2


def test_the_bound_is_work_of_a_share_of_the_usual_deadline():
    # 4 rows in 16 ms: 250 rows/s; a quarter of a second's work before a middle stage, half of one before the last.
    policy = ladder(stage(batch=256), stage(batch=4), stage(batch=4), usual_deadline_s=1024 * MS)
    defer(policy, 0.0, [[0.5, 0.9]] * 200, [request(i, answer_by_s=9.0, deadline_s=10.0) for i in range(200)])
    policy.dispatch(0.0)
    assert policy.waiting(1) == 64
    policy.set_slots(1, 0)
    policy.dispatch(0.0)
    policy.set_slots(1, 1)
    defer(policy, 0.0, [[0.5, 0.9]] * 200, [request(i, answer_by_s=9.0, deadline_s=10.0) for i in range(200)])
    policy.set_slots(1, 0)
    policy.dispatch(0.0)
    assert policy.waiting(2) == 128


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_only_the_last_stage_may_have_half_of_the_usual_deadline_before_it(stages: int):
    policy = ladder(stage(batch=256), *[stage(batch=4)] * (stages - 1), usual_deadline_s=1024 * MS)
    for target in range(1, stages):
        rows = [request(i, answer_by_s=9.0, deadline_s=10.0) for i in range(200)]
        defer(policy, 0.0, [[0.9] * (stages - 1)] * 200, rows)
        policy.dispatch(0.0)
        assert policy.waiting(target) == (128 if target == stages - 1 else 64)
        if target < stages - 1:
            policy.set_slots(target, 0)


def test_a_slot_that_takes_a_small_batch_leaves_no_more_than_the_bound_behind():
    policy = ladder(stage(batch=16), stage(batch=4), usual_deadline_s=MS)
    urgent = request("urgent", answer_by_s=11 * MS)
    defer(policy, 0.0, [[0.99]] + [[0.01]] * 8, [urgent] + [request(i) for i in range(8)])
    (batch,) = batches(policy.dispatch(0.0))
    assert [walk.request.tag for walk in batch.walks] == ["urgent"]
    assert policy.waiting(1) == 4


def test_a_row_that_waited_too_long_is_answered_when_the_slot_becomes_free():
    policy = ladder(stage(), stage(batch=1))
    defer(policy, 0.0, [[0.9], [0.5]], [request("a"), request("b", answer_by_s=16 * MS)])
    (batch,) = batches(policy.dispatch(0.0))
    policy.completed(8 * MS, batch, judged([]))
    assert reasons(policy.dispatch(8 * MS)) == {"b": ExitReason.DEADLINE}
    assert policy.capacities[1].free == 1


def test_a_row_of_no_answer_that_stage_0_cannot_serve_in_time_expires():
    policy = three()
    admit(policy, 0.0, request("a", answer_by_s=0.0, deadline_s=9 * MS))
    assert policy.dispatch(0.0) == [Expire("a")]
    assert policy.counts.expired == 1
    assert policy.next_timer() is None


# -- the door -----------------------------------------------------------------------------------------------------------


def test_a_message_is_let_in_or_turned_away_as_a_whole():
    policy = three()  # four rows in 16 ms, one slot
    admit(policy, 0.0, *[request(i) for i in range(4)])
    assert isinstance(policy.arrived(0.0, [request(i, deadline_s=79 * MS) for i in range(9)]), Shed)
    assert (policy.counts.arrived, policy.counts.shed, policy.waiting(0)) == (13, 9, 4)
    assert len(admit(policy, 0.0, *[request(i, deadline_s=80 * MS) for i in range(9)])) == 9
    assert policy.waiting(0) == 13


def test_a_message_too_large_for_its_deadline_is_no_overload_but_what_comes_behind_it_is_turned_away():
    policy = three()  # forty rows take 160 ms
    assert len(admit(policy, 0.0, *[request(i, deadline_s=0.1) for i in range(40)])) == 40
    assert isinstance(policy.arrived(0.0, [request("behind", deadline_s=0.1)]), Shed)
    now, outcomes = 0.0, []
    while policy.counts.live:
        commands = policy.dispatch(now)
        outcomes += [command for command in commands if isinstance(command, Expire)]
        now += 16 * MS
        for batch in batches(commands):
            policy.completed(now, batch, judged(*[[0.0, 0.0]] * len(batch.walks)))
    assert policy.counts.answered == 24
    assert policy.counts.expired == len(outcomes) == 16


def test_a_row_that_comes_too_late_expires_at_the_next_dispatch_also_behind_a_queue():
    policy = three()
    at_stage0(policy, request("runs"))
    admit(policy, 0.5, *[request(i, answer_by_s=9.0, deadline_s=10.0) for i in range(8)])
    (walk,) = admit(policy, 0.5, request("too late", answer_by_s=0.25, deadline_s=0.5))
    assert policy.tick(0.5) == [Expire("too late")]
    assert (walk.state, policy.counts.shed, policy.waiting(0)) == (State.EXPIRED, 0, 8)
    policy = three()
    admit(policy, 0.5, request("too late", answer_by_s=0.25, deadline_s=0.5))
    assert policy.dispatch(0.5) == [Expire("too late")]
    policy.set_slots(0, 0)
    assert isinstance(policy.arrived(0.5, [request("too late", deadline_s=0.5)]), Shed)


def test_the_wait_includes_the_batch_that_runs():
    policy = three()
    at_stage0(policy, *[request(i) for i in range(4)])
    assert isinstance(policy.arrived(0.0, [request("a", deadline_s=79 * MS)]), Shed)
    admit(policy, 0.0, request("a", deadline_s=80 * MS))
    # Eight milliseconds on, it is due back in eight.
    shed = policy.arrived(8 * MS, [request("b", deadline_s=47 * MS)])
    assert isinstance(shed, Shed)
    assert shed.wait_s == 8 * MS
    assert shed.retry_after_s in (1, 2)
    admit(policy, 8 * MS, request("b", deadline_s=48 * MS))


def test_a_batch_that_is_overdue_is_expected_to_need_as_long_again():
    policy = three()
    at_stage0(policy, *[request(i) for i in range(4)])  # due at 16 ms
    admit(policy, 16 * MS, request("at the instant", deadline_s=17 * MS))
    shed = policy.arrived(36 * MS, [request("soon", deadline_s=135 * MS)])
    assert isinstance(shed, Shed)
    assert shed.wait_s == 20 * MS
    admit(policy, 36 * MS, request("soon", deadline_s=136 * MS))


def test_of_several_running_batches_the_one_expected_first_counts():
    policy = ladder(stage(slots=2))
    at_stage0(policy, *[request(i) for i in range(4)])  # due at 16 ms
    admit(policy, 40 * MS, *[request(i) for i in range(4)])
    policy.dispatch(40 * MS)  # due at 56 ms
    shed = policy.arrived(50 * MS, [request("a", deadline_s=51 * MS)])
    assert isinstance(shed, Shed)
    assert shed.wait_s == 6 * MS


def test_while_stage_0_hangs_the_door_closes():
    policy = three()
    at_stage0(policy, request("hangs", answer_by_s=9.0, deadline_s=10.0))
    seen = []
    for i in range(1, 32):
        now = i * 32 * MS  # the batch is given up after a second
        seen.append(isinstance(policy.arrived(now, [request(i, now, now + 0.4375, now + 0.5)]), Shed))
    assert seen.index(True) <= 3
    assert all(seen[seen.index(True) :])


def test_nothing_comes_in_while_stage_0_is_out_and_what_waited_there_fails():
    policy = three()
    admit(policy, 0.0, request("a"))
    assert policy.set_slots(0, 0) == [Fail("a")]
    shed = policy.arrived(0.0, [request("b", answer_by_s=inf, deadline_s=inf)])
    assert isinstance(shed, Shed)
    assert (shed.wait_s, policy.counts.failed, policy.counts.shed, policy.counts.live) == (inf, 1, 1, 0)
    policy.set_slots(0, 1)
    admit(policy, 0.0, request("c"))


def test_the_same_seed_gives_the_same_retry_after():
    def hints(seed: int) -> list[int]:
        policy = ladder(stage(slots=0), seed=seed)
        return [policy.arrived(0.0, [request()]).retry_after_s for _ in range(20)]

    assert hints(3) == hints(3) != hints(4)


# -- timers -------------------------------------------------------------------------------------------------------------


def test_a_waiting_row_is_answered_at_its_answer_instant():
    policy = ladder(stage(), stage(batch=1))
    defer(policy, 0.0, [[0.9], [0.5]], [request("a"), request("b", answer_by_s=0.5)])
    policy.dispatch(0.0)
    assert policy.next_timer() == 0.5
    assert policy.tick(0.5 - MS) == []
    assert reasons(policy.tick(0.5)) == {"b": ExitReason.DEADLINE}
    assert policy.waiting(1) == 0


def test_a_row_answered_by_its_timer_is_ignored_when_its_batch_comes_back():
    policy = ladder(stage(), stage(cost=10))
    slow, quick = defer(policy, 0.0, [[0.9], [0.9]], [request("slow"), request("quick", answer_by_s=0.5)])
    (batch,) = batches(policy.dispatch(0.0))
    answer = only_reply(policy.tick(0.5)).answer
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (0, ExitReason.DEADLINE, True, 11.0)
    assert [span.stage for span in answer.spans] == [0]
    assert policy.counts.cost == 11.0
    assert policy.capacities[1].busy == 1
    commands = policy.completed(0.75, batch, judged([], []))
    assert reasons(commands) == {"slow": ExitReason.LAST_STAGE}
    assert (slow.answer.stage, quick.answer.stage, policy.capacities[1].busy) == (1, 0, 0)


def test_a_row_without_an_answer_expires_at_its_deadline_and_not_before():
    policy = ladder(stage(timeout_floor_s=2.0))
    batch = at_stage0(policy, request("a"))
    assert policy.tick(0.9375) == []
    assert policy.tick(1.0) == [Expire("a")]
    assert policy.completed(1.5, batch, judged([])) == []
    assert policy.capacities[0].busy == 0


def test_timers_of_finished_rows_do_not_pile_up_and_those_of_live_rows_are_kept():
    policy = ladder(stage(slots=2, batch=64, timeout_floor_s=1000.0), usual_deadline_s=1000.0)
    at_stage0(policy, request("with stage 0 all the time", answer_by_s=95.0, deadline_s=96.0))
    for i in range(4 * TIMER_SLACK // 64):
        batch = at_stage0(policy, *[request((i, j), answer_by_s=90.0 + j, deadline_s=200.0) for j in range(64)])
        policy.completed(0.0, batch, judged(*[[]] * 64))
        assert len(policy._timers) <= TIMER_SLACK + 2 * 65
    assert policy.next_timer() == 95.0
    assert policy.tick(95.0) == []
    assert policy.tick(96.0) == [Expire("with stage 0 all the time")]
