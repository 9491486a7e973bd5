"""The door: who is turned away, and when they may come back."""

from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.admission import HOLD_FACTOR, JITTER, LONGEST_DRAIN_S, LONGEST_HOLD_S, Admission, predicted_wait_s
from cascade.policy.capacity import ServiceTime, StageCapacity


def door(share: float = 0.2, seed: int = 0) -> Admission:
    return Admission(share, Random(seed))


def test_a_first_class_row_may_wait_a_fifth_of_its_time():
    assert door().admits(0.2, 1.0, 1)
    assert not door().admits(0.201, 1.0, 1)


def test_each_lower_class_may_wait_less_and_the_lowest_never_nothing():
    def longest(priority: int) -> float:
        return max(ms for ms in range(201) if door().admits(ms / 1000, 1.0, priority))

    assert [longest(priority) for priority in (1, 2, 3, 4, 5, 8)] == [200, 150, 100, 50, 25, 25]


@given(st.floats(0, 10), st.floats(-1, 10), st.integers(1, 8), st.integers(1, 8))
def test_no_row_comes_in_where_one_of_a_higher_class_would_not(wait_s, remaining_s, one, other):
    high, low = min(one, other), max(one, other)
    assert door().admits(wait_s, remaining_s, high) or not door().admits(wait_s, remaining_s, low)


def test_nothing_comes_in_while_the_first_stage_is_out():
    assert not door().admits(inf, 1.0, 1)
    assert not door().admits(inf, inf, 1)
    assert door().admits(5.0, inf, 8)


@pytest.mark.parametrize("remaining_s", [0.0, -1.0])
@pytest.mark.parametrize("priority", [1, 4])
def test_a_row_with_no_time_left_comes_in_to_expire_unless_the_first_stage_is_out(remaining_s: float, priority: int):
    assert door().admits(0.0, remaining_s, priority)
    assert door().admits(100.0, remaining_s, priority)
    assert not door().admits(inf, remaining_s, priority)


@given(st.floats(0, 100), st.integers(0, 1000))
def test_the_hint_is_whole_seconds_between_the_drain_and_three_times_the_drain(wait_s, seed):
    hint = door(seed=seed).retry_after_s(wait_s)
    drain_s = min(wait_s, LONGEST_DRAIN_S)
    assert isinstance(hint, int)
    assert int(max(1, drain_s)) <= hint <= JITTER * max(1, drain_s)


def test_the_hint_has_an_end_when_the_wait_has_none():
    assert LONGEST_DRAIN_S <= door().retry_after_s(inf) <= JITTER * LONGEST_DRAIN_S


def test_clients_are_spread_over_seconds_even_where_little_waits():
    admission = door()
    assert {admission.retry_after_s(0.1) for _ in range(100)} == {1, 2}


def test_a_refusal_is_held_back_the_longer_the_further_the_driver_is_behind_and_not_for_ever():
    assert door().turn_away(0.5).hold_s == 0.0
    assert door().turn_away(0.5, 0.001).hold_s == pytest.approx(0.001 * HOLD_FACTOR)
    assert door().turn_away(0.5, 10.0).hold_s == LONGEST_HOLD_S


def test_the_same_seed_gives_the_same_hints():
    one, same, other = door(seed=7), door(seed=7), door(seed=8)
    hints = [[admission.retry_after_s(8.0) for _ in range(20)] for admission in (one, same, other)]
    assert hints[0] == hints[1] != hints[2]
    assert len(set(hints[0])) > 3


@pytest.mark.parametrize(
    ("waiting", "first_free_s", "expected"),
    [(0, 0.0, 0.0), (0, 0.5, 0.5), (3, 0.0, 0.0), (4, 0.0, 0.75), (7, 0.5, 1.25), (8, 0.25, 1.75)],
)
def test_the_wait_is_the_full_batches_ahead_spread_over_the_slots(waiting, first_free_s, expected):
    stage = StageCapacity(slots=2, max_batch_size=4, service=ServiceTime(0.5, 0.25))
    assert predicted_wait_s(stage, waiting, first_free_s) == expected
