"""Stages that resume: only a row that the stage before has just answered can be sent to one."""

from dataclasses import replace

from builders import MS, at_stage0, batches, defer, judged, ladder, reasons, request, stage
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.request import ExitReason
from cascade.policy.walk import State


def chain(*resumes: bool):
    """A policy over stages of rising cost, of which some resume the one before."""
    return ladder(*(replace(stage(cost=10.0**k), resumes=goes_on) for k, goes_on in enumerate(resumes)))


def test_rows_climb_a_chain_and_pay_each_segment_once():
    policy = chain(False, True, True)
    (walk,) = defer(policy, 0.0, [[0.3, 0.5]], [request("a")])
    assert walk.stage == 1
    (batch,) = batches(policy.dispatch(MS))
    policy.completed(2 * MS, batch, judged([0.2]))
    (batch,) = batches(policy.dispatch(3 * MS))
    assert (batch.stage, walk.cost) == (2, 111.0)


def test_past_a_stage_that_is_out_its_followers_cannot_be_reached():
    policy = chain(False, True, True)
    policy.set_slots(1, 0)
    assert policy.reachable == (True, False, False)
    assert reasons(policy.completed(MS, at_stage0(policy, request("a")), judged([0.3, 0.5]))) == {"a": ExitReason.FAILURE}


def test_past_a_chain_that_is_out_rows_go_to_a_stage_that_begins_at_the_inputs():
    policy = chain(False, False, True, False)
    policy.set_slots(1, 0)
    assert policy.reachable == (True, False, False, True)
    (walk,) = defer(policy, 0.0, [[0.3, 0.4, 0.5]], [request("a")])
    assert walk.stage == 3


def test_rows_that_wait_for_a_stage_that_goes_out_do_not_wait_for_its_follower():
    policy = chain(False, True, True, False)
    first, second = defer(policy, 0.0, [[0.3, 0.4, 0.5], [0.3, 0.4, 0.0]], [request("a"), request("b")])
    commands = policy.set_slots(1, 0)
    assert (first.state, first.stage) == (State.DEFERRED, 3)
    assert reasons(commands) == {"b": ExitReason.FAILURE}
    assert second.done


def test_rows_that_wait_for_the_last_of_a_chain_that_goes_out_are_answered():
    policy = chain(False, True)
    defer(policy, 0.0, [[0.3]], [request("a")])
    assert reasons(policy.set_slots(1, 0)) == {"a": ExitReason.FAILURE}


def test_a_chain_whose_first_stage_is_out_can_be_reached_by_nobody_new():
    policy = chain(False, True, False)
    policy.set_slots(0, 0)
    assert policy.reachable == (False, False, True)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=7))
def test_a_stage_is_within_reach_if_it_and_all_that_it_resumes_are_there(facts):
    resumes = [False, *(goes_on for goes_on, _ in facts)]
    policy = chain(*resumes)
    there = [True, *(present for _, present in facts)]
    for k, present in enumerate(there):
        if not present:
            policy.set_slots(k, 0)
    expected = []
    for k, present in enumerate(there):
        expected.append(present and (not resumes[k] or expected[k - 1]))
    assert policy.reachable == tuple(expected)
