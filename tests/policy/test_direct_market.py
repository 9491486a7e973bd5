"""Prices that clear the demand of rows that may skip stages: against brute force, and the laws that any market keeps."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.policy.direct_market import DirectMarket
from cascade.policy.market import Group, Market
from cascade.policy.routing import Ways

ROWS = 400


def gains_of(seed: int, stages: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.uniform(-0.2, 0.8, size=(ROWS, stages - 1 - k)) for k in range(stages - 1)]


def market(seed: int = 0, stages: int = 3, base: tuple[float, ...] | None = None, rho: float = 1.0) -> DirectMarket:
    p_correct = np.sort(np.random.default_rng(seed + 1).uniform(0.5, 1.0, size=(ROWS, stages)), axis=1)
    return DirectMarket(gains_of(seed, stages), p_correct, base or (0.0,) * stages, rho)


def walked(seed: int, stages: int, price_of) -> np.ndarray:
    """Share of rows that visit each stage, row by row with the policy's own rule."""
    gains, visits = gains_of(seed, stages), np.zeros(stages)
    for row in range(ROWS):
        stage = 0
        visits[0] += 1
        while stage < stages - 1:
            opened = [j for j in range(stage + 1, stages) if price_of(j) < inf]
            if not opened:
                break
            ways = Ways.behind("direct", gains[stage][row : row + 1], stage, opened, ())
            target, value = ways.best(0, price_of, lambda _: False)
            if value <= price_of(target):
                break
            stage = target
            visits[stage] += 1
    return visits / ROWS


def test_nothing_costs_more_than_its_base_price_while_capacity_is_to_spare():
    found = market(base=(0.0, 0.01, 0.05)).clear([Group(10.0)], [100.0, 100.0, 100.0])
    assert found.prices == (0.0, 0.01, 0.05)
    assert found.degraded == 0.0
    assert found.visits == found.unloaded_visits


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(2, 5), st.lists(st.floats(0.02, 2.0), min_size=4, max_size=4))
def test_visits_are_those_of_the_policys_own_rule_and_demand_fits(seed, stages, room):
    capacities = [1e6, *(1000.0 * each for each in room[: stages - 1])]
    found = market(seed, stages).clear([Group(1000.0)], capacities)
    assert found.visits == pytest.approx(walked(seed, stages, found.prices.__getitem__))
    for stage in range(1, stages):
        # Coordinate by coordinate, each price clears its stage; a few rounds leave a few percent.
        assert 1000.0 * found.visits[stage] <= 1.1 * capacities[stage] + 1000.0 / ROWS
        if found.prices[stage] > 0:
            assert 1000.0 * found.visits[stage] >= 0.8 * capacities[stage] - 1000.0 / ROWS


def test_a_full_stage_is_left_to_others_and_the_next_one_is_skipped():
    gains = [np.array([[0.3, 0.4], [0.1, 0.4]] * 200), np.full((400, 1), 0.1)]
    skipping = DirectMarket(gains, np.full((400, 3), 0.9), (0.0, 0.0, 0.0), 1.0)
    free = skipping.clear([Group(100.0)], [1e6, 1e6, 1e6])
    assert free.visits == (1.0, 0.0, 1.0)
    full = skipping.clear([Group(100.0)], [1e6, 1e6, 50.0])
    # Half of the rows find the second stage nearly as good; the other half have only the third.
    assert full.visits == pytest.approx((1.0, 0.5, 0.5))
    assert full.prices[2] == pytest.approx(0.1)


def test_a_stage_that_is_out_has_an_infinite_price_and_no_visits():
    found = market(stages=4).clear([Group(100.0)], [1e6, 0.0, 1e6, 20.0])
    assert found.prices[1] == inf
    assert found.visits[1] == 0.0
    assert found.visits[3] == pytest.approx(0.2, abs=0.01)
    assert found.visits[0] == 1.0


def test_a_class_of_half_the_weight_gives_way_first_and_one_with_a_floor_does_not():
    one = market().clear([Group(500.0), Group(500.0, weight=0.5)], [1e6, 150.0, 150.0])
    assert max(one.prices) > 0
    capped = market().clear([Group(500.0, cap=(0.0, 0.05, 0.05)), Group(500.0)], [1e6, 150.0, 150.0])
    # What the floor takes is missing elsewhere, so that the price is higher.
    plain = market().clear([Group(500.0), Group(500.0)], [1e6, 150.0, 150.0])
    assert sum(capped.prices[1:]) > sum(plain.prices[1:])


def test_a_class_that_nobody_uses_changes_nothing_and_no_traffic_has_base_prices():
    one = market().clear([Group(1000.0)], [1e6, 100.0, 100.0])
    assert market().clear([Group(1000.0), Group(0.0, weight=4.0)], [1e6, 100.0, 100.0]).prices == one.prices
    assert market(base=(0.0, 0.1, 0.2)).clear([Group(0.0)], [1.0, 1.0, 1.0]).prices == (0.0, 0.1, 0.2)


def test_a_load_at_the_uncongested_rate_needs_no_surcharge_and_a_little_more_does():
    ladder, rows_per_s = market(base=(0.0, 0.02, 0.1)), [1e5, 900.0, 300.0]
    limit = ladder.clear([Group(1.0)], rows_per_s).uncongested_rate
    assert ladder.clear([Group(limit)], rows_per_s).prices == (0.0, 0.02, 0.1)
    assert ladder.clear([Group(limit * 1.05)], rows_per_s).prices != (0.0, 0.02, 0.1)


def test_with_two_stages_it_is_the_market_of_a_cascade():
    gains, p_correct = gains_of(3, 2), np.full((ROWS, 2), 0.9)
    for rate in (10.0, 500.0, 2000.0):
        asked = [Group(rate), Group(rate, weight=0.25)], [1e5, 300.0]
        one = Market(gains, p_correct, (0.0, 0.05)).clear(*asked)
        other = DirectMarket(gains, p_correct, (0.0, 0.05)).clear(*asked)
        assert one.prices == pytest.approx(other.prices)
        assert one.visits == pytest.approx(other.visits)
        assert one.accuracy == pytest.approx(other.accuracy)
        assert one.degraded == pytest.approx(other.degraded)
        assert one.uncongested_rate == pytest.approx(other.uncongested_rate)
