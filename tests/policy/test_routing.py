"""Direct routing: a row goes straight to the stage of its largest net gain, and to the next one only if that is it."""

from math import inf

import numpy as np
import pytest
from builders import MS, admit, at_stage0, batches, judged, ladder, only_reply, reasons, request, stage
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.policy.classes import ClassConfig
from cascade.policy.policy import Policy
from cascade.policy.price import continuation_value
from cascade.policy.request import ExitReason
from cascade.policy.routing import Ways


def free(_: int) -> bool:
    return False


def direct(*base_prices: float, **changes: object) -> Policy:
    """A policy over stages of cost 1, 10, 100, … with these base prices from the second on."""
    stages = [stage(cost=1.0), *(stage(cost=10.0 ** (k + 1), base_price=p) for k, p in enumerate(base_prices))]
    return ladder(*stages, routing="direct", **changes)


def next_stage(policy: Policy, gains, *, now: float = 0.0, **asked: object) -> int | ExitReason:
    """Where a row of these gains goes after the first stage: the stage that runs it next, or why it stops."""
    batch = at_stage0(policy, request(**asked), now=now)
    commands = policy.completed(now, batch, judged(gains))
    if commands:
        return only_reply(commands).answer.reason
    (batch,) = batches(policy.dispatch(now))
    return batch.stage


@pytest.mark.parametrize(
    ("gains", "goes"),
    [
        ((0.30, 0.31), 1),  # the dearer one adds less than it costs more
        ((0.10, 0.40), 2),
        ((-0.2, 0.40), 2),
        ((0.25, 0.359375), 1),  # equal net gains: the nearer one
        ((0.25, 0.36), 2),
        ((0.01, 0.09), ExitReason.CONFIDENT),
    ],
)
def test_a_row_goes_where_its_gain_less_the_price_is_largest(gains, goes):
    assert next_stage(direct(0.015625, 0.125), gains) == goes


def test_a_cascade_sends_the_same_row_to_the_next_stage():
    policy = ladder(stage(), stage(cost=10, base_price=0.02), stage(cost=100, base_price=0.1))
    assert next_stage(policy, (0.10, 0.40)) == 1


def test_present_prices_move_rows_to_another_stage():
    policy = direct(0.02, 0.10)
    policy.set_prices([0.0, 0.02, 0.50])
    assert next_stage(policy, (0.10, 0.40)) == 1
    policy.set_prices([0.0, 0.90, 0.10])
    assert next_stage(policy, (0.30, 0.31), now=MS) == 2


def test_a_row_that_every_present_price_stops_says_so():
    policy = direct(0.02, 0.10)
    policy.set_prices([0.0, 0.5, 0.6])
    assert next_stage(policy, (0.10, 0.40)) == ExitReason.PRICE


def test_a_stage_that_the_budget_or_the_deadline_forbids_is_passed_over_for_one_that_is_worth_it():
    assert next_stage(direct(0.02, 0.10), (0.10, 0.40), budget=11.0) == 1
    assert next_stage(direct(0.02, 0.10), (0.01, 0.40), budget=11.0) == ExitReason.BUDGET
    slow = ladder(stage(cost=1), stage(cost=10, base_price=0.02), stage(cost=100, base_price=0.1, a_s=2.0), routing="direct")
    assert next_stage(slow, (0.10, 0.40)) == 1


def test_a_stage_that_is_out_is_no_way():
    policy = direct(0.02, 0.10)
    policy.set_slots(2, 0)
    assert next_stage(policy, (0.10, 0.40)) == 1


def test_rows_that_wait_for_a_stage_that_goes_out_are_sent_where_they_are_worth_most_even_back_to_a_cheaper_one():
    policy = direct(0.02, 0.10)
    # The only place at the last stage is taken, so that the second row waits for it.
    for tag in ("first", "second"):
        batch = at_stage0(policy, request(tag))
        assert policy.completed(0.0, batch, judged((0.10, 0.40))) == []
        policy.dispatch(0.0)
    assert policy.waiting(2) == 1
    assert policy.set_slots(2, 0) == []
    assert policy.waiting(1) == 1


def test_the_mix_of_a_batch_is_split_over_the_stages():
    policy = direct(0.02, 0.10)
    walks = admit(policy, 0.0, *(request(tag) for tag in "abc"))
    (batch,) = batches(policy.dispatch(0.0))
    assert tuple(batch.walks) == walks
    commands = policy.completed(0.0, batch, judged((0.3, 0.3), (0.0, 0.5), (0.0, 0.0)))
    assert reasons(commands) == {"c": ExitReason.CONFIDENT}
    sent = {b.stage: [w.request.tag for w in b.walks] for b in batches(policy.dispatch(0.0))}
    assert sent == {1: ["a"], 2: ["b"]}


def test_a_row_that_a_full_stage_will_not_take_goes_to_a_cheaper_one_that_is_worth_its_price():
    rows = 40
    policy = ladder(
        stage(cost=1, batch=rows),
        stage(cost=10, base_price=0.015625, batch=rows),
        stage(cost=100, base_price=0.125, batch=1, a_s=0.25),
        routing="direct",
    )
    walks = admit(policy, 0.0, *(request(tag) for tag in range(rows)))
    (batch,) = batches(policy.dispatch(0.0))
    # All would rather go to the last stage, which can take a few of them in time; of the others half have another way.
    gains = [(0.25 if tag % 2 else 0.0, 0.5 + tag / 1024) for tag in range(rows)]
    assert policy.completed(0.0, batch, judged(*gains)) == []
    commands = policy.dispatch(0.0)
    sent = {b.stage: {w.request.tag for w in b.walks} for b in batches(commands)}
    assert sent[2] == {rows - 1}
    assert sent[1]
    assert all(tag % 2 for tag in sent[1])
    given_up = reasons(commands)
    assert set(given_up.values()) == {ExitReason.EVICTED}
    assert not any(tag % 2 for tag in given_up)
    assert len(given_up) + len(sent[1]) + 1 + policy.waiting(2) == rows
    assert {walk.stage for walk in walks if walk.request.tag in sent[1]} == {1}


def test_a_class_pays_by_its_weight_and_never_more_than_its_floor():
    light = direct(0.0, 0.0, classes=[ClassConfig(weight=1.0), ClassConfig(weight=0.25)])
    light.set_prices([0.0, 0.05, 0.10])
    # A quarter of the weight makes surcharges of 0.20 and 0.40 of them.
    assert next_stage(light, (0.10, 0.30), priority=1) == 2
    assert next_stage(light, (0.25, 0.42), priority=2, now=MS) == 1
    floored = direct(0.0, 0.0, classes=[ClassConfig(weight=1.0, cap=(0.0, 0.05, 0.1))])
    floored.set_prices([0.0, 0.9, 0.9])
    assert next_stage(floored, (0.01, 0.2)) == 2


def test_a_row_that_its_floor_sends_on_waits_before_all_others_wherever_it_goes():
    classes = [ClassConfig(cap=(0.0, 0.9, 0.1)), ClassConfig()]
    policy = direct(0.0, 0.0, classes=classes)
    policy.set_prices([0.0, 0.0, 0.3])
    # By its floor it would go on to the last stage; at present prices the second is worth more to it.
    batch = at_stage0(policy, request("floored", priority=1))
    assert policy.completed(0.0, batch, judged((0.30, 0.35))) == []
    (walk,) = batch.walks
    assert walk.protected
    assert walk.stage == 1


@settings(max_examples=200)
@given(st.data())
def test_with_one_stage_behind_direct_is_cascade_and_with_more_it_is_never_worth_less(data):
    stages = data.draw(st.integers(2, 5))
    stage_of = data.draw(st.integers(0, stages - 2))
    numbers = st.floats(-1, 1, allow_nan=False)
    behind = stages - 1 - stage_of
    gains = np.array([data.draw(st.lists(numbers, min_size=behind, max_size=behind)) for _ in range(3)])
    prices = data.draw(st.lists(st.floats(0, 1), min_size=stages, max_size=stages))
    opened = range(stage_of + 1, stages)
    by_turns = Ways.behind("cascade", gains, stage_of, opened, prices)
    straight = Ways.behind("direct", gains, stage_of, opened, prices)
    for row in range(3):
        target, value = straight.best(row, prices.__getitem__, free)
        there, cascaded = by_turns.best(row, prices.__getitem__, free)
        assert there == stage_of + 1
        assert cascaded == continuation_value(gains, stage_of, opened, prices)[row]
        assert value - prices[target] >= cascaded - prices[there] - 1e-12
        if behind == 1:
            assert (target, value) == (there, cascaded)
        best = max(gains[row, j - stage_of - 1] - prices[j] for j in opened)
        assert value - prices[target] == pytest.approx(best)
        values, least = straight.worth(prices)
        assert (values[row] > least) == (best > 0)


def test_where_every_stage_is_barred_the_best_of_them_is_named():
    ways = Ways.behind("direct", np.array([[0.1, 0.5]]), 0, (1, 2), (0.0, 0.0, 0.0))
    assert ways.best(0, lambda _: 0.0, lambda _: True) == (2, 0.5)
    assert ways.best(0, lambda j: inf if j == 2 else 0.0, free) == (1, 0.1)
