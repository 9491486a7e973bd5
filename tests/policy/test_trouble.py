"""What the policy does when batches fail or hang, stages come and go, and clients leave."""

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
    replies,
    request,
    stage,
    three,
)

from cascade.policy.commands import Abandon, Fail, Reply, Run
from cascade.policy.request import ExitReason
from cascade.policy.walk import State

# -- failures -----------------------------------------------------------------------------------------------------------


def test_a_failed_batch_is_tried_once_more_and_then_answered_with_what_there_is():
    policy = three()
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    (again,) = batches(policy.failed(0.125, batch))
    assert (again.stage, again.attempt, again.walks, again.started_s) == (1, 2, [*batch.walks], 0.125)
    assert policy.failed(0.125, batch) == []
    answer = only_reply(policy.failed(0.25, again)).answer
    assert (answer.stage, answer.reason, answer.degraded, answer.cost) == (0, ExitReason.FAILURE, True, 11.0)
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
    (first,) = batches(policy.failed(0.0, at_stage0(policy, request("a"), request("b"))))
    assert policy.failed(0.0, first) == [Fail("a")]
    (second,) = batches(policy.dispatch(0.0))
    assert policy.failed(0.0, second) == [Fail("b")]
    assert (policy.counts.failed, policy.counts.live) == (2, 0)


def test_only_the_rows_that_can_still_be_in_time_are_tried_again():
    policy = three()
    batch = at_stage0(
        policy, *[request(tag, deadline_s=18 * MS if tag == "late" else 1.0) for tag in ("late", "a", "b", "c")]
    )
    run, fail = policy.failed(7 * MS, batch)
    assert isinstance(run, Run)
    assert [walk.request.tag for walk in run.batch.walks] == ["a"]
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


def test_a_retry_takes_the_place_of_the_call_that_failed_also_where_slots_were_taken_away():
    policy = ladder(stage(slots=2, batch=1))
    admit(policy, 0.0, request("a"), request("b"), request("c"))
    first, second = batches(policy.dispatch(0.0))
    policy.set_slots(0, 1)
    (again,) = batches(policy.failed(MS, first))
    assert (again.walks, again.attempt, policy.capacities[0].busy) == ([*first.walks], 2, 2)
    policy.completed(2 * MS, again, judged([]))
    assert policy.dispatch(2 * MS) == []  # a new row waits for a place that there is
    policy.completed(3 * MS, second, judged([]))
    assert [batch.walks[0].request.tag for batch in batches(policy.dispatch(3 * MS))] == ["c"]


def test_a_batch_that_hangs_is_given_up_and_tried_once_more():
    policy = ladder(stage(), stage(timeout_floor_s=0.125), stage())
    defer(policy, 0.0, [[0.5, 0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    assert policy.next_timer() == batch.give_up_s == 0.125
    abandon, run = policy.tick(0.125)
    assert abandon == Abandon(batch)
    assert isinstance(run, Run)
    assert (run.batch.attempt, run.batch.walks, policy.capacities[1].busy) == (2, [*batch.walks], 1)
    assert policy.tick(0.25) == []  # the time that the first took was learned from
    abandon, reply = policy.tick(run.batch.give_up_s)
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


def test_a_batch_that_is_given_up_teaches_how_long_batches_take():
    policy = ladder(stage(), stage(batch=1, timeout_floor_s=0.0))
    defer(policy, 0.0, [[0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    assert batch.give_up_s == 50 * MS
    (again,) = batches(policy.tick(50 * MS))
    assert policy.capacities[1].service.correction == 3.0  # halfway from 1 to 5
    assert again.give_up_s == 50 * MS + 150 * MS
    assert policy.completed(70 * MS, batch, judged([])) == []
    assert policy.capacities[1].service.correction == 3.0


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


def test_rows_that_the_next_open_stage_is_not_worth_are_answered_when_theirs_goes_out():
    policy = three()
    policy.set_prices([0.0, 0.125, 0.25])
    rows = {"above": [0.5, 0.375], "at the price": [0.5, 0.25], "worse": [0.5, -0.125], "poor": [0.5, 0.5]}
    defer(policy, 0.0, list(rows.values()), [request(tag, budget=100.0 if tag == "poor" else 101.0) for tag in rows])
    assert policy.waiting(1) == 4
    assert reasons(policy.set_slots(1, 0)) == {
        "at the price": ExitReason.FAILURE,
        "worse": ExitReason.FAILURE,
        "poor": ExitReason.BUDGET,
    }
    assert (policy.waiting(1), policy.waiting(2), policy.counts.degraded) == (0, 1, 3)


def test_rows_that_pass_a_stage_wait_in_the_order_of_what_the_next_one_promises():
    policy = ladder(stage(), stage(), stage(batch=1))
    defer(policy, 0.0, [[0.9, 0.25], [0.5, 0.75]], [request("first before"), request("first now")])
    policy.set_slots(1, 0)
    (batch,) = batches(policy.dispatch(0.0))
    assert [walk.request.tag for walk in batch.walks] == ["first now"]


def test_rows_are_judged_again_at_present_prices_and_by_the_best_answer_they_have():
    policy = ladder(*[stage(batch=8)] * 4)
    defer(policy, 0.0, [[0.5, 0.5, 0.5]] * 2, [request("a"), request("b")])
    (batch,) = batches(policy.dispatch(0.0))
    # Stage 1 promises less of stage 3 than stage 0 did.
    policy.completed(MS, batch, judged([0.5, 0.125], [0.5, 0.375]))
    assert policy.waiting(2) == 2
    policy.set_prices([0.0, 0.0, 0.0, 0.25])
    assert reasons(policy.set_slots(2, 0)) == {"a": ExitReason.FAILURE}
    assert policy.waiting(3) == 1


def test_rows_judged_again_must_be_worth_the_present_price_of_the_next_open_stage():
    policy = ladder(*[stage()] * 4)
    defer(policy, 0.0, [[0.5, 0.125, 0.25], [0.5, 0.125, 0.3125]], [request("a"), request("b")])
    policy.set_prices([0.0, 0.0, 0.25, 0.375])
    assert reasons(policy.set_slots(1, 0)) == {"a": ExitReason.FAILURE}
    assert policy.waiting(2) == 1


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
