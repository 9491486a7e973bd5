"""What the policy does in one situation at a time."""

from math import inf

import pytest
from builders import MS, admit, batches, defer, judged, ladder, replies, request, stage, three

from cascade.policy.policy import TIMER_SLACK, Abandon, Expire, Fail, Policy, Reply, Run, Shed
from cascade.policy.request import ExitReason
from cascade.policy.walk import State


def only_reply(commands) -> Reply:
    (reply,) = commands
    assert isinstance(reply, Reply)
    return reply


def reasons(commands) -> dict[object, ExitReason]:
    return {reply.tag: reply.answer.reason for reply in replies(commands)}


def at_stage0(policy: Policy, *requests, now: float = 0.0):
    """The one batch in which these rows run on stage 0."""
    admit(policy, now, *requests)
    (batch,) = batches(policy.dispatch(now))
    return batch


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


def test_a_price_above_the_gain_ends_a_row_as_degraded():
    policy = three()
    policy.set_prices([0.0, 0.25, 0.25])
    batch = at_stage0(policy, request("at the price"), request("above"), request("no gain"))
    commands = policy.completed(MS, batch, judged([0.25, 0.5], [0.26, 0.3], [0.0, 0.0]))
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
    # 4 rows in 16 ms: 250 rows/s; a quarter of a second's work before the first dear stage, half of one before the next.
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
    assert isinstance(policy.arrived(0.0, [request(i, deadline_s=80 * MS) for i in range(9)]), Shed)
    assert (policy.counts.arrived, policy.counts.shed, policy.waiting(0)) == (9, 9, 0)
    assert len(admit(policy, 0.0, *[request(i, deadline_s=80 * MS) for i in range(8)])) == 8


def test_the_wait_includes_the_batch_that_runs():
    policy = three()
    at_stage0(policy, *[request(i) for i in range(4)])
    assert isinstance(policy.arrived(0.0, [request("a", deadline_s=79 * MS)]), Shed)
    admit(policy, 0.0, request("a", deadline_s=80 * MS))
    # Eight milliseconds on, it is due back in eight.
    shed = policy.arrived(8 * MS, [request("b", deadline_s=47 * MS)])
    assert isinstance(shed, Shed)
    assert (shed.wait_s, shed.retry_after_s) == (8 * MS, 1)
    admit(policy, 8 * MS, request("b", deadline_s=48 * MS))


def test_a_batch_that_is_overdue_is_expected_at_any_moment():
    policy = three()
    at_stage0(policy, *[request(i) for i in range(4)])
    admit(policy, 0.25, request("a", deadline_s=0.25 + MS))


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
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (0, ExitReason.DEADLINE, True, 1.0)
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


def test_timers_of_finished_rows_do_not_pile_up():
    policy = ladder(stage(batch=64), usual_deadline_s=1000.0)
    for i in range(4 * TIMER_SLACK // 64):
        batch = at_stage0(policy, *[request((i, j), answer_by_s=90.0 + j, deadline_s=100.0) for j in range(64)])
        policy.completed(0.0, batch, judged(*[[]] * 64))
        assert len(policy._timers) <= TIMER_SLACK + 2 * 64
    (last,) = admit(policy, 0.0, request("last", answer_by_s=95.0, deadline_s=100.0))
    assert (policy.next_timer(), last.state) == (95.0, State.WAITING)


# -- failures -----------------------------------------------------------------------------------------------------------


def test_a_failed_batch_is_tried_once_more_and_then_answered_with_what_there_is():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    (again,) = batches(policy.failed(0.125, batch))
    assert (again.stage, again.attempt, again.walks, again.started_s) == (1, 2, [*batch.walks], 0.125)
    assert policy.failed(0.125, batch) == []
    answer = only_reply(policy.failed(0.25, again)).answer
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (0, ExitReason.FAILURE, True, 1.0)
    assert (policy.counts.stages[1].failures, policy.capacities[1].busy) == (2, 0)


def test_a_retry_that_works_is_like_any_other_visit():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    (again,) = batches(policy.failed(0.125, batch))
    answer = only_reply(policy.completed(0.25, again, judged([0.0]))).answer
    assert (answer.stage, answer.reason, answer.cost) == (1, ExitReason.CONFIDENT, 11.0)
    assert [(s.stage, s.run_s) for s in answer.spans] == [(0, 0.0), (1, 0.25)]


def test_stage_0_failing_twice_fails_the_rows_that_have_no_answer():
    policy = three()
    (again,) = batches(policy.failed(0.0, at_stage0(policy, request("a"), request("b"))))
    assert policy.failed(0.0, again) == [Fail("a"), Fail("b")]
    assert (policy.counts.failed, policy.counts.live) == (2, 0)


def test_only_the_rows_that_can_still_be_in_time_are_tried_again():
    policy = three()
    batch = at_stage0(policy, request("late", deadline_s=16 * MS), request("early"))
    run, fail = policy.failed(5 * MS, batch)
    assert isinstance(run, Run)
    assert [walk.request.tag for walk in run.batch.walks] == ["early"]
    assert fail == Fail("late")


def test_a_batch_that_could_not_be_back_in_time_is_not_tried_again():
    policy = three()
    batch = at_stage0(policy, request("late", deadline_s=16 * MS))
    assert policy.failed(7 * MS, batch) == [Fail("late")]
    assert policy.capacities[0].free == 1


def test_a_batch_nobody_waits_for_is_not_tried_again():
    policy = three()
    batch = at_stage0(policy, request("a"))
    policy.cancelled(batch.walks[0])
    assert policy.failed(0.0, batch) == []
    assert policy.capacities[0].free == 1


def test_there_is_no_retry_on_a_stage_that_is_out():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    assert policy.set_slots(1, 0) == []
    assert reasons(policy.failed(0.0, batch)) == {"a": ExitReason.FAILURE}
    assert policy.capacities[1].busy == 0


def test_a_batch_that_hangs_is_given_up_and_tried_once_more():
    policy = ladder(stage(), stage(timeout_floor_s=0.125), stage())
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    assert policy.next_timer() == batch.give_up_s == 0.125
    abandon, run = policy.tick(0.125)
    assert abandon == Abandon(batch)
    assert isinstance(run, Run)
    assert (run.batch.attempt, run.batch.walks, policy.capacities[1].busy) == (2, [*batch.walks], 1)
    abandon, reply = policy.tick(0.25)
    assert abandon == Abandon(run.batch)
    assert isinstance(reply, Reply)
    assert (reply.answer.reason, reply.answer.stage) == (ExitReason.FAILURE, 0)
    # What either of them still returns is ignored.
    assert policy.completed(0.5, batch, judged([0.5])) == policy.completed(0.5, run.batch, judged([0.5])) == []
    assert policy.next_timer() is None


def test_patience_is_a_multiple_of_the_predicted_time_but_never_less_than_the_floor():
    for floor_s, expected_s in ((0.0, 50 * MS), (0.5, 0.5)):
        policy = ladder(stage(timeout_floor_s=floor_s))
        assert at_stage0(policy, request("a")).give_up_s == expected_s


def test_batches_given_up_at_one_instant_leave_in_the_order_they_were_sent():
    policy = ladder(stage(slots=40, batch=1))
    admit(policy, 0.0, *[request(i, answer_by_s=9.0, deadline_s=10.0) for i in range(40)])
    sent = batches(policy.dispatch(0.0))
    commands = policy.tick(1.0)
    assert [command.batch for command in commands if isinstance(command, Abandon)] == sent
    assert [batch.walks for batch in batches(commands)] == [batch.walks for batch in sent]


# -- a stage that looks too slow ----------------------------------------------------------------------------------------


def test_one_slow_batch_does_not_close_a_stage_for_good():
    policy = ladder(stage(batch=1), stage(batch=1, a_s=127 * MS, b_s=MS))
    policy.capacities[1].service.correction = 8.0
    for i in range(300):
        defer(policy, float(i), [[0.9]], [request(i, float(i), i + 0.5, i + 0.625)])
        if batches(policy.dispatch(float(i))):
            break
    assert policy.capacities[1].busy == 1
    assert policy.counts.stages[0].answers[ExitReason.DEADLINE] == i > 0


def test_one_slow_batch_does_not_close_stage_0_for_good():
    policy = ladder(stage(batch=1, a_s=127 * MS, b_s=MS))
    policy.capacities[0].service.correction = 8.0
    for i in range(300):
        admit(policy, float(i), request(i, float(i), i + 0.5, i + 0.625))
        if batches(policy.dispatch(float(i))):
            break
    assert policy.capacities[0].busy == 1
    assert policy.counts.expired == i > 0


def test_a_stage_that_is_at_work_is_judged_by_its_own_batches_alone():
    policy = ladder(stage(), stage(batch=1, a_s=127 * MS, b_s=MS))
    policy.capacities[1].service.correction = 2.0
    defer(policy, 0.0, [[0.9]], [request("a")])
    policy.dispatch(0.0)
    defer(policy, 0.0, [[0.9]], [request("b", answer_by_s=0.1875)])
    assert policy.counts.stages[0].answers[ExitReason.DEADLINE] == 1
    assert policy.capacities[1].service.correction == 2.0


# -- stages that come and go --------------------------------------------------------------------------------------------


def test_rows_that_wait_for_a_stage_that_goes_out_pass_it():
    policy = three()
    walks = defer(policy, 0.0, [[0.5, 0.6], [0.2, 0.9]], [request("a"), request("b")])
    assert policy.set_slots(1, 0) == []
    assert [walk.stage for walk in walks] == [2, 2]
    (batch,) = batches(policy.dispatch(0.0))
    commands = policy.completed(0.125, batch, judged([], []))
    assert [[span.stage for span in reply.answer.spans] for reply in replies(commands)] == [[0, 2], [0, 2]]
    assert policy.counts.degraded == 0


def test_rows_are_judged_by_the_stages_that_are_open():
    policy = three()
    policy.set_slots(1, 0)
    (walk,) = defer(policy, 0.0, [[0.5, 0.6]], [request("a")])
    assert (walk.state, walk.stage) == (State.DEFERRED, 2)
    policy.set_slots(1, 1)
    (walk,) = defer(policy, 0.0, [[0.5, 0.6]], [request("b")])
    assert walk.stage == 1


def test_passing_a_stage_that_is_out_does_not_break_a_budget():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.9], [0.5, 0.9]], [request("poor", budget=100.0), request("rich", budget=101.0)])
    assert reasons(policy.set_slots(1, 0)) == {"poor": ExitReason.BUDGET}
    assert policy.waiting(2) == 1
    assert policy.counts.degraded == 1


def test_with_every_dearer_stage_out_a_row_is_answered_at_once():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.6]], [request("a")])
    policy.set_slots(2, 0)
    assert reasons(policy.set_slots(1, 0)) == {"a": ExitReason.FAILURE}
    batch = at_stage0(policy, request("b"), request("c"))
    assert reasons(policy.completed(0.0, batch, judged([0.5, 0.6], [0.0, 0.0]))) == {
        "b": ExitReason.FAILURE,
        "c": ExitReason.CONFIDENT,
    }
    assert policy.counts.degraded == 2


def test_a_stage_that_was_out_and_is_back_takes_rows_again_once_its_old_batches_are_home():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.6]], [request("a")])
    (old,) = batches(policy.dispatch(0.0))
    policy.set_slots(1, 0)
    policy.set_slots(1, 1)
    defer(policy, 0.0, [[0.5, 0.6]], [request("b")])
    assert policy.dispatch(0.0) == []
    policy.completed(0.125, old, judged([0.0]))
    (new,) = batches(policy.dispatch(0.125))
    assert new.walks[0].request.tag == "b"


def test_taking_slots_away_stops_new_batches_and_no_running_one():
    policy = ladder(stage(slots=3, batch=1))
    admit(policy, 0.0, *[request(i) for i in range(5)])
    first, second, third = batches(policy.dispatch(0.0))
    policy.set_slots(0, 1)
    for batch, busy in ((first, 2), (second, 1)):
        assert policy.dispatch(MS) == []
        assert len(policy.completed(MS, batch, judged([]))) == 1
        assert policy.capacities[0].busy == busy
    assert policy.dispatch(MS) == []
    policy.completed(MS, third, judged([]))
    assert len(batches(policy.dispatch(MS))) == 1


# -- clients that leave -------------------------------------------------------------------------------------------------


def test_a_row_whose_client_left_is_never_called():
    policy = three()
    (waiting,) = admit(policy, 0.0, request("waiting"))
    policy.cancelled(waiting)
    assert (policy.dispatch(0.0), policy.waiting(0)) == ([], 0)
    (deferred,) = defer(policy, 0.0, [[0.5, 0.5]], [request("deferred")])
    policy.cancelled(deferred)
    assert (policy.dispatch(0.0), policy.waiting(1)) == ([], 0)
    assert (policy.counts.cancelled, policy.counts.live, policy.next_timer()) == (2, 0, None)


def test_a_client_that_leaves_does_not_harm_its_batch_mates():
    policy = three()
    batch = at_stage0(policy, request("gone"), request("here"))
    policy.cancelled(batch.walks[0])
    reply = only_reply(policy.completed(0.0, batch, judged([0.9, 0.9], [0.0, 0.0])))
    assert (reply.tag, reply.answer.row) == ("here", 1)


def test_leaving_after_the_answer_or_twice_changes_nothing():
    policy = three()
    batch = at_stage0(policy, request("a"), request("b"))
    policy.cancelled(batch.walks[1])
    policy.completed(0.0, batch, judged([0.0, 0.0], [0.0, 0.0]))
    before = repr(policy.counts)
    for walk in batch.walks:
        policy.cancelled(walk)
    assert repr(policy.counts) == before
