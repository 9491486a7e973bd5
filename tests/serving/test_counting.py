"""How handles choose a replica: all of a few are compared, a sample of many, those left out never; what is taken down."""

import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from cascade.serving import replicas
from cascade.serving.counting import MOST_ASKED, UNAVAILABLE_S, AddressedRouter, CountingRouter


class Id(NamedTuple):
    unique_id: str


DEPLOYMENT = "a stage of this test"


def router(kind=CountingRouter):
    made = kind.__new__(kind)  # choosing needs nothing else of what Serve sets up
    made._deployment_id = SimpleNamespace(name=DEPLOYMENT)
    made._unavailable_s = {}
    made._get_curr_time_s = time.monotonic
    return made


def some(count):
    return [SimpleNamespace(replica_id=Id(f"replica {number}")) for number in range(count)]


def tag(replica):
    return replicas.tag_of(replica.replica_id.unique_id)


def asks(**named):
    return SimpleNamespace(kwargs=named, routing_context=SimpleNamespace(should_backoff=False))


@pytest.fixture(autouse=True)
def nothing_known():
    yield
    replicas.leave_out(DEPLOYMENT, replicas.NOBODY)
    replicas._running.pop(DEPLOYMENT, None)


async def test_of_a_few_replicas_all_are_compared_in_an_order_that_changes():
    few = some(4)
    orders = set()
    for _ in range(50):
        (asked,) = await router().choose_replicas(few)
        assert {tag(each) for each in asked} == {tag(each) for each in few}
        orders.add(tuple(tag(each) for each in asked))
    assert len(orders) > 5


async def test_of_many_replicas_a_sample_is_compared():
    (asked,) = await router().choose_replicas(some(100))
    assert len({tag(each) for each in asked}) == MOST_ASKED


async def test_without_a_replica_there_is_nothing_to_compare():
    assert await router().choose_replicas([]) == []


async def test_a_call_for_which_all_replicas_are_full_asks_again_after_a_pause():
    for kind in (CountingRouter, AddressedRouter):
        call = asks()
        await router(kind).choose_replicas(some(2), call)
        assert call.routing_context.should_backoff


async def test_a_replica_that_is_left_out_is_asked_only_by_name_or_where_there_is_no_other():
    one, two = few = some(2)
    replicas.leave_out(DEPLOYMENT, frozenset({tag(one)}))
    assert [await router().choose_replicas(few) for _ in range(20)] == [[[two]]] * 20
    assert await router(AddressedRouter).choose_replicas(few, asks(to=tag(one))) == [[one]]
    assert await router(AddressedRouter).choose_replicas(few, asks(to=None)) == [[two]]
    assert await router().choose_replicas([one]) == [[one]]


async def test_a_router_spreads_its_own_calls_evenly():
    few = some(3)
    for number, replica in ((-1, few[0]), (-2, few[1])):
        replicas.follow(number)
        replicas.note_sent(number, tag(replica))
    try:
        for _ in range(20):
            first, then = await router().choose_replicas(few)
            assert first == [few[2]]
            assert len(then) == 3
        replicas.ended(-1)
        first, _ = await router().choose_replicas(few)
        assert {tag(each) for each in first} == {tag(few[0]), tag(few[2])}
    finally:
        replicas.ended(-1)
        replicas.ended(-2)


async def test_a_replica_that_a_call_did_not_reach_is_passed_over_for_a_while():
    one, two = few = some(2)
    made = router()
    made._get_curr_time_s = lambda: now
    now = 10.0
    made._unavailable_s = {one.replica_id: now}
    assert await made.choose_replicas(few) == [[two]]
    assert await made.choose_replicas([one]) == [[one]]
    now += UNAVAILABLE_S
    (asked,) = await made.choose_replicas(few)
    assert len(asked) == 2


async def test_a_call_whose_replica_is_gone_goes_to_any():
    (asked,) = await router(AddressedRouter).choose_replicas(some(2), asks(to=7))
    assert len(asked) == 2


def test_replicas_are_unknown_until_a_handle_has_heard_of_them():
    assert replicas.running(DEPLOYMENT) is None
    replicas.note(DEPLOYMENT, [1, 2, 3])
    assert replicas.running(DEPLOYMENT) == 3


def test_those_that_are_left_out_do_not_count_unless_there_are_no_others():
    replicas.note(DEPLOYMENT, [1, 2, 3])
    replicas.leave_out(DEPLOYMENT, frozenset({2}))
    assert replicas.running(DEPLOYMENT) == 2
    replicas.note(DEPLOYMENT, [2])
    assert replicas.running(DEPLOYMENT) == 1
    replicas.note(DEPLOYMENT, [])
    assert replicas.running(DEPLOYMENT) == 0


def test_only_calls_that_somebody_follows_are_taken_down():
    replicas.note_sent(-1, 11)
    assert replicas.ended(-1) is None
    replicas.follow(-1)
    replicas.note_sent(-1, 11)
    replicas.note_sent(-1, 12)  # the first one refused it
    assert replicas.sent()[-1] == 12
    assert replicas.ended(-1) == 12
    assert -1 not in replicas.sent()
