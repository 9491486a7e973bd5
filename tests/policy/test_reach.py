"""Rows that wait in vain leave at once: those below what a busy stage takes, and those passed over for half their time."""

from math import inf

import pytest
from builders import MS, request
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.classes import PROTECTED
from cascade.policy.queue import PATIENCE, StageQueue
from cascade.policy.reach import Reach
from cascade.policy.walk import Walk


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), min_size=1, max_size=40), st.integers(1, 12))
def test_the_key_is_the_least_that_was_taken_within_the_window_once_the_stage_was_crowded_for_that_long(taken, window):
    reach, now, all_taken = Reach(), 0, []
    for step, key in taken:
        now += step
        reach.taken(float(now), float(key), crowded=True)
        all_taken.append((now, key))
        since = all_taken[0][0]
        expected = min((k for at, k in all_taken if at >= now - window), default=-inf) if now - since >= window else -inf
        assert reach.key(float(now), float(window)) == expected


def test_nothing_is_said_of_a_stage_that_was_not_crowded_all_the_time_or_took_nothing_of_late():
    reach = Reach()
    for now in range(10):
        reach.taken(float(now), 0.5, crowded=now != 6)
    assert reach.key(9.0, 4.0) == -inf
    assert reach.key(9.0, 2.0) == 0.5
    assert reach.key(20.0, 2.0) == -inf


def waiting(tag: object, entered_s: float = 0.0, tenant: str = "") -> Walk:
    """A row that has until 100 s."""
    return Walk(request(tag, entered_s, 100.0, 100.0, tenant=tenant))


def crowded(queue: StageQueue, until: int, key: float = 0.5) -> None:
    """Rows of one value come and are taken, one a second, and never all of them."""
    queue.push(waiting("never taken"), key)
    for now in range(until + 1):
        queue.push(waiting(f"taken {now}", float(now)), key + 0.1)
        queue.take(float(now), 1, lambda rows: 1.0)


def tags(walks) -> list:
    return [walk.request.tag for walk in walks]


def test_a_row_below_all_that_was_taken_leaves_and_one_above_stays():
    queue = StageQueue()
    crowded(queue, 10)
    queue.push(waiting("below", 10.0), 0.2)
    queue.push(waiting("above", 10.0), 0.9)
    assert tags(queue.leave(10.0, 5.0)) == ["below", "never taken"]
    assert tags(queue.drain()) == ["above"]


def test_nothing_leaves_before_the_stage_was_crowded_for_the_window():
    queue = StageQueue()
    crowded(queue, 10)
    queue.push(waiting("below", 10.0), 0.2)
    assert queue.leave(10.0, 10.5) == []


def test_a_protected_row_never_leaves():
    queue = StageQueue()
    crowded(queue, 90, key=PROTECTED + 0.5)
    queue.push(waiting("protected"), PROTECTED + 0.1)
    queue.push(waiting("other"), 0.4)
    assert tags(queue.leave(90.0, 5.0)) == ["other"]
    assert tags(queue.drain()) == ["never taken", "protected"]


def test_a_row_that_was_passed_over_for_half_of_its_time_leaves_whatever_its_key():
    queue = StageQueue()
    queue.push(waiting("old", 0.0), 0.9)
    queue.push(waiting("new", 60.0), 0.1)
    assert queue.leave(100.0 * PATIENCE, inf) == []
    assert tags(queue.leave(100.0 * PATIENCE + 1, inf)) == ["old"]


def test_where_several_tenants_wait_a_row_is_given_the_window_for_its_turn():
    queue = StageQueue()
    crowded(queue, 10)
    queue.push(waiting("stranger", 8.0, tenant="other"), 0.2)
    assert tags(queue.leave(10.0, 5.0)) == ["never taken"]
    for now in (11, 12, 13):
        queue.push(waiting(f"filler {now}", float(now)), 0.6)
        queue.push(waiting(f"next {now}", float(now), tenant="other"), 0.55)
        queue.take(float(now), 1, lambda rows: 1.0)
    assert "stranger" in tags(queue.leave(13.0, 5.0))


@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_that_takes_all_ends_the_crowd(size):
    queue = StageQueue()
    crowded(queue, 10)
    queue.take(10.0, 4, lambda rows: MS)
    for i in range(size):
        queue.push(waiting(i, 11.0), 0.1)
    assert queue.leave(11.0, 5.0) == []
