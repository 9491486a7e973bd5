"""Prices clear demand: no stage is asked for more than rho of what it can run, and none has a surcharge for nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.policy.market import Group, Market
from cascade.policy.price import continuation_value

ROWS = 400


def market(seed: int = 0, stages: int = 3, base: tuple[float, ...] | None = None, rho: float = 1.0) -> Market:
    random = np.random.default_rng(seed)
    gains = [random.uniform(-0.2, 0.8, size=(ROWS, stages - 1 - k)) for k in range(stages - 1)]
    p_correct = np.sort(random.uniform(0.5, 1.0, size=(ROWS, stages)), axis=1)
    return Market(gains, p_correct, base or (0.0,) * stages, rho)


def test_nothing_costs_more_than_its_base_price_while_capacity_is_to_spare():
    found = market(base=(0.0, 0.01, 0.05)).clear([Group(10.0)], [100.0, 100.0, 100.0])
    assert found.prices == (0.0, 0.01, 0.05)
    assert found.degraded == 0.0
    assert found.visits == found.unloaded_visits


def test_one_scarce_stage_gets_the_surcharge_at_which_its_demand_is_what_it_can_run():
    found = market().clear([Group(1000.0)], [1e6, 1e6, 100.0])
    assert found.prices[1] == 0.0
    assert found.prices[2] > 0.0
    assert found.visits[2] == pytest.approx(0.1, abs=1 / ROWS)
    assert found.degraded == pytest.approx(found.unloaded_visits[2] - found.visits[2], abs=1e-9)


def test_a_load_at_the_uncongested_rate_needs_no_surcharge_and_a_little_more_does():
    ladder, rows_per_s = market(base=(0.0, 0.02, 0.1)), [1e5, 900.0, 300.0]
    limit = ladder.clear([Group(1.0)], rows_per_s).uncongested_rate
    assert ladder.clear([Group(limit)], rows_per_s).prices == (0.0, 0.02, 0.1)
    assert max(ladder.clear([Group(limit * 1.05)], rows_per_s).prices[1:]) > 0.1 or (
        ladder.clear([Group(limit * 1.05)], rows_per_s).prices[1] > 0.02
    )


def test_a_stage_that_is_out_has_no_price_and_rows_go_past_it():
    found = market().clear([Group(100.0)], [1e6, 0.0, 1e6])
    assert found.prices[1] == np.inf
    assert found.prices[2] == 0.0
    assert found.visits[1] == 0.0
    assert found.visits[2] > 0.0


def test_without_any_dearer_stage_everything_stops_at_the_first():
    found = market().clear([Group(100.0)], [1e6, 0.0, 0.0])
    assert found.visits == (1.0, 0.0, 0.0)


def test_traffic_without_a_rate_is_priced_as_unloaded():
    found = market(base=(0.0, 0.1, 0.2)).clear([Group(0.0), Group(0.0, weight=0.5)], [10.0, 10.0, 10.0])
    assert found.prices == (0.0, 0.1, 0.2)


def test_the_lower_class_gives_way_first():
    ladder = market(stages=2)
    both = ladder.clear([Group(500.0), Group(500.0, weight=0.25)], [1e6, 200.0])
    # 200 of 1000 rows fit. At that price a row of the lower class must be worth four times as much.
    alone = ladder.clear([Group(1000.0)], [1e6, 200.0])
    assert both.prices[1] < alone.prices[1]
    assert both.visits[1] == pytest.approx(0.2, abs=1 / ROWS)


def test_rows_under_the_floor_of_their_class_are_not_priced_out():
    ladder = market(stages=2)
    found = ladder.clear([Group(500.0, cap=(0.0, 0.3)), Group(500.0)], [1e6, 100.0])
    protected = float((ladder._gains[0][:, 0] > 0.3).mean())
    assert found.visits[1] >= protected / 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 50),
    stages=st.integers(2, 5),
    rate=st.floats(1.0, 1e5),
    data=st.data(),
)
def test_demand_fits_and_surcharges_are_complementary(seed, stages, rate, data):
    base = tuple(data.draw(st.floats(0, 0.3)) for _ in range(stages))
    rows_per_s = [data.draw(st.floats(1.0, 1e5)) for _ in range(stages)]
    groups = [Group(rate, data.draw(st.sampled_from([1.0, 0.5])))]
    found = market(seed, stages, base).clear(groups, rows_per_s)
    for stage in range(1, stages):
        asked, most = found.visits[stage] * rate, rows_per_s[stage]
        assert asked <= most * (1 + 1e-6)
        assert found.prices[stage] >= base[stage]
        if found.prices[stage] > base[stage] + 1e-12:
            assert asked + rate / ROWS > most * (1 - 1e-6)


def test_rows_that_walk_at_the_prices_visit_what_was_predicted():
    ladder = market(seed=3, base=(0.0, 0.01, 0.02))
    found = ladder.clear([Group(1000.0)], [1e6, 400.0, 100.0])
    going = np.ones(ROWS, np.bool_)
    for stage in range(2):
        value = continuation_value(ladder._gains[stage], stage, range(stage + 1, 3), (0.0, 0.01, 0.02))
        going &= value > found.prices[stage + 1]
        assert going.mean() == pytest.approx(found.visits[stage + 1])
