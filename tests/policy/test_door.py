"""The door before a body is read: what it costs nobody, what it counts, and whom it lets in for longer."""

import pytest
from builders import MS, admit, ladder, request, stage

from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Shed
from cascade.policy.policy import Policy

BATCH_S = 16 * MS
"""A batch of stage 0, of eight rows: 500 rows/s."""


def slow(**more) -> Policy:
    """A policy whose first stage runs eight rows in 16 ms."""
    return ladder(stage(batch=8, a_s=BATCH_S - 8 * MS, b_s=MS), **more)


def filled(batches_waiting: int, **more) -> Policy:
    """One batch runs, and so many wait behind it."""
    policy = slow(**more)
    admit(policy, 0.0, *(request(deadline_s=60.0, answer_by_s=59.0) for _ in range(8 * (batches_waiting + 1))))
    policy.dispatch(0.0)
    return policy


@pytest.mark.parametrize("waiting", [0, 3, 9])
@pytest.mark.parametrize("remaining_s", [0.05, 0.25, 1.0, -1.0])
@pytest.mark.parametrize("priority", [1, 4])
@pytest.mark.parametrize("lag_s", [0.0, 0.1])
def test_the_door_says_what_arriving_would_say(waiting, remaining_s, priority, lag_s):
    at_door, inside = filled(waiting), filled(waiting)
    said = at_door.door(0.0, remaining_s, priority, lag_s)
    found = inside.arrived(0.0, [request(deadline_s=remaining_s, answer_by_s=0.0, priority=priority)], lag_s)
    assert isinstance(found, Shed) == (said is not None)
    if said is not None:
        assert said == found
        assert at_door.counts == inside.counts


def test_a_message_that_may_come_in_is_not_counted_before_it_does():
    policy = filled(3)
    before = repr(policy.counts)
    assert policy.door(0.0, 10.0, 1) is None
    assert repr(policy.counts) == before
    assert policy.waiting(0) == 24


def test_what_is_turned_away_is_counted_by_class():
    policy = filled(9, classes=[ClassConfig(), ClassConfig(0.5)])
    assert policy.door(0.0, 0.1, 2, rows=5) is not None
    assert policy.counts.shed == policy.counts.classes[1].shed == 5
    assert policy.counts.classes[0].shed == 0
    assert policy.counts.live == 80


def test_a_driver_that_is_behind_shuts_the_door_earlier():
    policy = slow()
    assert policy.door(0.0, 1.0, 1, 0.2) is None
    refusal = policy.door(0.0, 1.0, 1, 0.201)
    assert refusal is not None
    assert refusal.wait_s == pytest.approx(0.201)


def test_a_tenant_within_its_share_of_stage_0_may_wait_twice_as_long():
    policy = slow()
    for i in range(3000):
        policy.door(i / 3000, 0.1, 1, 0.5, tenant="flood")
        if i % 300 == 0:
            policy.door(i / 3000, 0.1, 1, 0.5, tenant="polite")
    assert policy.counts.shed == 3010
    for lag_s, let_in in ((0.19, {"flood", "polite"}), (0.21, {"polite"}), (0.39, {"polite"}), (0.41, set())):
        assert {name for name in ("flood", "polite") if policy.door(1.0, 1.0, 1, lag_s, name) is None} == let_in
