"""Prices at which demand fits."""

import numpy as np
import pytest

from cascade.calibration.clearing import clear
from cascade.calibration.fluid import Capacity, Fluid
from cascade.calibration.judged import JudgedTable
from tests.calibration.judged_cases import difficulty_ladder

LADDER = difficulty_ladder(rows=3000, seed=3)
SEPARATE = Capacity(np.array([1000.0, 200.0, 40.0]))
SHARED = Capacity(np.array([np.inf, np.inf, np.inf]), np.array([0.001, 0.005, 0.025]), 2.0)
BOTH = Capacity(np.array([1000.0, 200.0, 40.0]), np.array([0.001, 0.005, 0.025]), 1.5)
RATES = [10.0, 50.0, 100.0, 250.0, 600.0, 1200.0]


def loads(judged: JudgedTable, capacity: Capacity, rate: float, prices: np.ndarray) -> np.ndarray:
    use, limit = capacity.rows()
    return rate * capacity.admitted(rate) * use @ judged.walk(prices, lookahead=np.zeros(len(prices))).visits / limit


@pytest.mark.parametrize("capacity", [SEPARATE, SHARED, BOTH], ids=["separate", "shared", "both"])
@pytest.mark.parametrize("rate", RATES)
def test_demand_fits_and_surcharges_are_paid_only_for_what_is_full(capacity, rate):
    cleared = clear(LADDER, capacity, rate)
    demand = loads(LADDER, capacity, rate, cleared.point.prices)
    # Gains are continuous here: demand moves by a few of the 3,000 rows over the width to which a price is found, and a row
    # is up to a hundredth of what the dearest stage can run.
    assert demand.max() <= 1.05
    for load, surcharge in zip(demand, cleared.surcharges, strict=True):
        assert surcharge == 0 or load >= 0.95
    use, limit = capacity.rows()
    assert (rate * use @ cleared.point.visits / limit).max() <= 1 + 1e-6


def test_nothing_is_charged_while_capacity_is_to_spare():
    base = [0.0, 0.01, 0.05]
    assert clear(LADDER, SEPARATE, 10.0, base).point.prices == pytest.approx(base)


def test_prices_rise_with_the_rate():
    points = [clear(LADDER, SHARED, rate).point for rate in np.geomspace(20, 1500, 12)]
    prices = np.array([point.prices[1:] for point in points])
    assert (np.diff(prices, axis=0) >= -2e-3 * prices[1:]).all()
    assert np.diff([point.accuracy for point in points]).max() <= 5e-3


@pytest.mark.parametrize("capacity", [SEPARATE, SHARED, BOTH], ids=["separate", "shared", "both"])
def test_little_is_lost_against_the_fluid_optimum(capacity):
    fluid = Fluid(LADDER)
    points = [clear(LADDER, capacity, rate).point for rate in RATES]
    fluid.add(used for point in points for used, _ in point.mix)
    for point, best in zip(points, fluid.frontier(RATES, capacity), strict=True):
        # The optimum is fitted to the labels of these 3,000 rows; it gets up to a point out of that alone.
        assert best - 0.012 <= point.accuracy <= best + 1e-6


def test_the_neighbours_result_changes_only_the_way():
    near = clear(LADDER, BOTH, 200.0)
    cold, warm = clear(LADDER, BOTH, 220.0), clear(LADDER, BOTH, 220.0, near=near)
    assert warm.point.prices == pytest.approx(cold.point.prices, rel=0.02, abs=1e-3)


def test_rows_of_equal_gain_share_what_is_left():
    # All rows promise 0.3: a price either lets all of them in or none. It must let them in, for the queue to choose.
    rows = 400
    gains = np.zeros((rows, 2, 2))
    gains[:, 0, 1] = 0.3
    right = np.zeros((rows, 2), dtype=np.bool_)
    right[:200, 0] = True
    right[:320, 1] = True
    p_correct = np.tile([0.5, 0.8], (rows, 1))
    judged = JudgedTable(("a", "b"), np.array([1.0, 2.0]), "MAC", right, right, p_correct, gains)
    point = clear(judged, Capacity(np.array([1000.0, 25.0])), 100.0).point
    assert judged.walk(point.prices, lookahead=[0.0, 0.0]).visits[1] == 1.0
    assert point.visits[1] == pytest.approx(0.25)
    assert point.accuracy == pytest.approx(0.5 + 0.25 * 0.3)


def test_what_stage_0_cannot_take_is_shed():
    point = clear(LADDER, SEPARATE, 2000.0).point
    assert point.shed == pytest.approx(0.5)
    assert point.exit_shares.sum() == pytest.approx(0.5)


def test_a_single_stage_needs_no_price():
    one = LADDER.select(slice(None))
    single = JudgedTable(
        ("only",), one.cost[:1], "MAC", one.right[:, :1], one.served[:, :1], one.p_correct[:, :1], one.gains[:, :1, :1]
    )
    point = clear(single, Capacity(np.array([100.0])), 200.0).point
    assert point.shed == pytest.approx(0.5)
    assert point.accuracy == pytest.approx(0.5 * single.stop_at(0).accuracy)
