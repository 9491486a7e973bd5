"""Classes: weights, floors and what is counted of them."""

from math import inf

import pytest
from builders import MS, admit, at_stage0, batches, defer, judged, ladder, only_reply, reasons, request, stage
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import ConfigError
from cascade.policy.classes import MAX_WEIGHT, PROTECTED, ClassConfig, Classes
from cascade.policy.commands import Shed
from cascade.policy.policy import Policy
from cascade.policy.request import ExitReason

BASE = (0.0, 0.0625)
FLOOR = ClassConfig(1.0, (0.0, 0.25))
value = st.floats(-1, 1)
price = st.floats(0, 1)


def classes(*configs: ClassConfig, base: tuple[float, ...] = BASE) -> Classes:
    return Classes(configs, base)


def two(*configs: ClassConfig, **more) -> Policy:
    """Two stages, the dear one with one slot and batches of two."""
    return ladder(stage(batch=16), stage(batch=2, cost=10, base_price=BASE[1]), classes=configs, **more)


# -- weights -----------------------------------------------------------------------------------------------------------


@given(value, price, price)
def test_one_class_of_weight_1_goes_on_where_its_value_is_above_the_price_and_is_ordered_by_it(v, p, q):
    one = classes(ClassConfig(), base=(0.0, 0.0))
    key = one.key(1, 1, v, 0.0, p)
    assert key == (v if v > p else None)
    assert one.key(1, 1, v, 0.0, max(p, q)) is None or key is not None


@given(value, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.01, MAX_WEIGHT), st.floats(0.01, MAX_WEIGHT))
def test_a_lower_weight_never_stands_higher_at_equal_value(v, base, surcharge, one, other):
    high, low = max(one, other), min(one, other)
    both = classes(ClassConfig(high), ClassConfig(low), base=(0.0, base))
    above, below = (both.key(priority, 1, v, base, base + surcharge) for priority in (1, 2))
    assert below is None or (above is not None and above >= below)


def test_half_the_weight_gives_way_at_half_the_surcharge_and_without_one_all_are_alike():
    both = classes(ClassConfig(1.0), ClassConfig(0.5))
    assert both.key(1, 1, 0.1875, 0.0625, 0.15) == 0.125
    assert both.key(2, 1, 0.1875, 0.0625, 0.15) is None
    assert both.key(2, 1, 0.1875, 0.0625, 0.12) == 0.0625
    assert [both.key(priority, 1, 0.07, 0.0625, 0.0625) is None for priority in (1, 2)] == [False, False]
    assert [both.key(priority, 1, 0.0625, 0.0625, 0.0625) for priority in (1, 2)] == [None, None]


def test_a_priority_beyond_the_last_class_is_of_the_last_class():
    both = classes(ClassConfig(1.0), ClassConfig(0.5))
    assert [both.index(priority) for priority in (1, 2, 3, 8)] == [0, 1, 1, 1]
    assert both.key(8, 1, 0.5, 0.0, 0.0) == 0.25


def test_under_a_price_the_low_class_stops_and_the_high_one_goes_on():
    policy = two(ClassConfig(1.0), ClassConfig(0.5))
    policy.set_prices([0.0, 0.1875])
    batch = at_stage0(policy, request("high", priority=1), request("low", priority=2))
    commands = policy.completed(MS, batch, judged([0.25], [0.25]))
    assert reasons(commands) == {"low": ExitReason.PRICE}
    assert policy.waiting(1) == 1
    assert [each.degraded for each in policy.counts.classes] == [0, 1]


def test_in_the_queue_a_gain_counts_by_its_weight():
    policy = two(ClassConfig(1.0), ClassConfig(0.25))
    rows = [request("a", priority=2), request("b", priority=1), request("c", priority=1), request("d", priority=2)]
    defer(policy, MS, [[0.9], [0.3], [0.2], [0.3]], rows)
    (batch,) = batches(policy.dispatch(MS))
    assert [walk.request.tag for walk in batch.walks] == ["b", "a"]


# -- floors ------------------------------------------------------------------------------------------------------------


@given(value, st.floats(0, 0.5), price, st.floats(0, 1), st.floats(0.01, MAX_WEIGHT))
def test_a_row_above_its_cap_goes_on_at_any_price_and_stands_before_all_that_are_not(v, base, p, cap, weight):
    floor = classes(ClassConfig(weight, (0.0, cap)), ClassConfig(MAX_WEIGHT), base=(0.0, base))
    key = floor.key(1, 1, v, base, max(base, p))
    protected = v > max(cap, base)
    assert floor.protects(1, 1, v) == protected
    assert (key is not None and key >= PROTECTED) == protected
    other = floor.key(2, 1, 1.0, base, base)
    assert not protected or other is None or key > other


def test_the_price_that_a_class_sees_is_never_above_its_cap():
    floor = classes(ClassConfig(2.0, (0.0, 0.25)))
    assert floor.key(1, 1, 0.2, 0.0625, inf) == pytest.approx(0.275)
    assert floor.key(1, 1, 0.15, 0.0625, inf) is None


def test_a_protected_row_is_not_stopped_by_a_price_nor_evicted():
    policy = two(FLOOR, ClassConfig(), usual_deadline_s=4 * MS)
    policy.set_prices([0.0, 1.0])
    batch = at_stage0(policy, *(request(i) for i in range(8)))
    assert policy.completed(MS, batch, judged(*[[0.3]] * 8)) == []
    policy.set_prices([0.0, 0.0])
    defer(policy, MS, [[0.9]] * 8, [request(100 + i, priority=2) for i in range(8)])
    assert policy.waiting(1) == 14, "eight more than the two that went with the last dispatch left"
    gone = reasons(policy.dispatch(MS))
    assert gone == dict.fromkeys(range(100, 108), ExitReason.EVICTED)
    assert policy.waiting(1) == 6, "all protected, and more than the bound of the queue"


def test_a_protected_row_that_its_deadline_ends_is_answered_and_counted_as_below_its_floor():
    policy = two(FLOOR)
    defer(policy, 0.0, [[0.3]] * 4 + [[0.1]], [request(i) for i in range(5)])
    batches(policy.dispatch(0.0))
    assert policy.waiting(1) == 3
    assert reasons(policy.tick(0.9375)) == dict.fromkeys((0, 1, 2, 3, 4), ExitReason.DEADLINE)
    assert (policy.counts.classes[0].below_floor, policy.counts.classes[0].degraded) == (4, 5)


def test_a_budget_or_a_failure_that_stops_a_protected_row_is_counted_and_one_that_stops_another_is_not():
    policy = two(FLOOR)
    batch = at_stage0(policy, request("protected", budget=5), request("other", budget=5), request("rich"))
    assert set(reasons(policy.completed(MS, batch, judged([0.5], [0.2], [0.1]))).values()) == {ExitReason.BUDGET}
    assert policy.counts.classes[0].below_floor == 1
    policy.set_slots(1, 0)
    batch = at_stage0(policy, request("protected"), request("other"), now=2 * MS)
    assert set(reasons(policy.completed(3 * MS, batch, judged([0.5], [0.2]))).values()) == {ExitReason.FAILURE}
    assert policy.counts.classes[0].below_floor == 2


def test_a_protected_row_that_went_on_and_is_content_there_is_not_below_its_floor():
    policy = two(FLOOR)
    defer(policy, 0.0, [[0.5]], [request("a")])
    (batch,) = batches(policy.dispatch(0.0))
    assert only_reply(policy.completed(MS, batch, judged([]))).answer.reason is ExitReason.LAST_STAGE
    assert policy.counts.classes[0].below_floor == 0


@pytest.mark.parametrize(("beyond_floor", "closed"), [("wait", False), ("shed", True)])
def test_a_class_that_sheds_beyond_its_floor_closes_when_protected_rows_fill_a_quarter_of_its_time(beyond_floor, closed):
    policy = two(ClassConfig(1.0, (0.0, 0.25), beyond_floor), ClassConfig())
    defer(policy, 0.0, [[0.5]] * 16, [request(i) for i in range(16)])
    stage = policy.capacities[1]
    full_s = 16 / stage.rows_per_s + stage.service.predict(2)
    assert policy.door(0.0, 4.1 * full_s, 1) is None
    refusal = policy.door(0.0, 3.9 * full_s, 1)
    assert (refusal is not None) == closed
    assert policy.door(0.0, 3.9 * full_s, 2) is None, "the class below promises nothing and is not closed for it"
    assert policy.counts.classes[0].shed == closed
    if closed:
        assert refusal.wait_s == pytest.approx(full_s)
        assert isinstance(policy.arrived(0.0, [request("late", deadline_s=3.9 * full_s)]), Shed)
    else:
        admit(policy, 0.0, request("late", deadline_s=3.9 * full_s))


def test_rows_within_no_floor_do_not_close_a_class():
    policy = two(ClassConfig(1.0, (0.0, 0.25), "shed"))
    defer(policy, 0.0, [[0.2]] * 16, [request(i) for i in range(16)])
    assert policy.door(0.0, 16 * MS, 1) is None


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda: ClassConfig(0.0), "weight .* above 0 .* got 0"),
        (lambda: ClassConfig(101.0), "at most 100, got 101"),
        (lambda: ClassConfig(1.0, (0.0, inf)), "finite"),
        (lambda: Classes([], BASE), "at least one"),
        (lambda: Classes([ClassConfig(1.0, (0.0,))], BASE), "class 1 needs 2 prices as its cap, got 1"),
    ],
)
def test_a_class_that_makes_no_sense_is_refused(make, mentions):
    with pytest.raises(ConfigError, match=mentions):
        make()
