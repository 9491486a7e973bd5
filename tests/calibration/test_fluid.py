"""The fluid optimum: worked values, duals, order of the limits, and the closed form for two stages."""

import numpy as np
import pytest

from cascade.calibration.fluid import (
    Capacity,
    Fluid,
    floor,
    gear,
    oracle_limit,
    solve,
)
from cascade.calibration.gains import deferral_curve
from cascade.errors import ConfigError
from tests.calibration.judged_cases import difficulty_ladder

F1_ACCURACY = np.array([0.80, 0.88, 0.92])
F1_VISITS = np.array([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5]])
F1_CAPACITY = Capacity(np.array([100.0, 10.0]))
LADDER = difficulty_ladder(rows=3000, seed=3)
CAPACITY = Capacity(np.array([1000.0, 200.0, 40.0]))
RATES = [20.0, 60.0, 120.0, 250.0, 500.0, 900.0, 1100.0, 1500.0]


@pytest.mark.parametrize(
    ("rate", "worked"),
    [(10, 0.92), (20, 0.92), (25, 0.906667), (40, 0.886667), (50, 0.88), (80, 0.85), (100, 0.84), (150, 0.56), (200, 0.42)],
)
def test_the_worked_gears_give_the_worked_limits(rate, worked):
    assert solve(F1_ACCURACY, F1_VISITS, F1_CAPACITY, rate).value == pytest.approx(worked, abs=5e-7)


@pytest.mark.parametrize(("rate", "price"), [(15, 0.0), (30, 0.4 / 3), (45, 0.4 / 3), (60, 0.4), (95, 0.4)])
def test_the_price_of_a_visit_is_the_slope_of_the_hull(rate, price):
    found = solve(F1_ACCURACY, F1_VISITS, F1_CAPACITY, rate)
    assert found.nu == pytest.approx([0.0, price], abs=1e-6)


def test_what_exceeds_the_first_stage_is_shed():
    assert solve(F1_ACCURACY, F1_VISITS, F1_CAPACITY, 200).shed == pytest.approx(0.5)
    assert solve(F1_ACCURACY, F1_VISITS, F1_CAPACITY, 90).shed == pytest.approx(0.0)


def random_problem(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Capacity, float]:
    stages = int(random.integers(2, 5))
    visits = np.cumprod(np.column_stack([np.ones(12), random.random((12, stages - 1))]), axis=1)
    value = random.random(12) + visits.sum(axis=1)
    work = random.random(stages) if random.random() < 0.5 else None
    pool = float(random.uniform(1, 20)) if work is not None else np.inf
    return value, visits, Capacity(random.uniform(2, 40, stages), work, pool), float(random.uniform(5, 60))


def test_duals_are_what_a_little_more_capacity_is_worth():
    # 20 random problems, seed 0, every second with a shared pool. A dual has two values at a kink: one-sided differences
    # bracket it.
    random = np.random.default_rng(0)
    step = 1e-5
    for _ in range(20):
        value, visits, capacity, rate = random_problem(random)
        found = solve(value, visits, capacity, rate)
        for k in range(visits.shape[1]):
            # One more visit a request to stage k for free: it leaves that much of every limit that the stage uses.
            def spared(share: float, k: int = k, given=(value, visits, capacity, rate)) -> float:
                value, visits, capacity, rate = given
                rows = capacity.rows_per_s + share * rate * (np.arange(visits.shape[1]) == k)
                pool = capacity.pool if capacity.work_s is None else capacity.pool + share * rate * capacity.work_s[k]
                return solve(value, visits, Capacity(rows, capacity.work_s, pool), rate).value

            more, less = (spared(step) - found.value) / step, (found.value - spared(-step)) / step
            assert more - 1e-4 <= found.nu[k] <= less + 1e-4


def test_the_optimum_satisfies_the_kkt_conditions():
    # 60 random problems, seed 1.
    random = np.random.default_rng(1)
    for _ in range(60):
        value, visits, capacity, rate = random_problem(random)
        found = solve(value, visits, capacity, rate)
        reduced = value - visits @ found.nu - found.request_price
        assert reduced.max() <= 1e-7
        assert abs(found.mix @ reduced) <= 1e-7
        assert found.shed * found.request_price <= 1e-7
        assert (found.nu >= 0).all()
        use, limit = capacity.rows()
        load = rate * use @ (found.mix @ visits) / limit
        assert load.max() <= 1 + 1e-7
        for k in np.flatnonzero(found.nu > 1e-6):
            assert load[use[:, k] > 0].max() >= 1 - 1e-7


def test_few_gears_are_mixed():
    # A basic solution has no more gears than limits, and one for the traffic. 60 random problems, seed 2.
    random = np.random.default_rng(2)
    for _ in range(60):
        value, visits, capacity, rate = random_problem(random)
        assert (solve(value, visits, capacity, rate).mix > 1e-9).sum() <= len(capacity.rows()[1]) + 1


def test_a_shared_pool_prices_stages_by_their_work():
    capacity = Capacity(np.array([np.inf, np.inf]), np.array([0.01, 0.1]), 2.0)
    found = solve(F1_ACCURACY, F1_VISITS, capacity, 60.0)
    assert found.nu[1] == pytest.approx(10 * found.nu[0])
    assert found.nu[1] > 0


def test_the_limit_never_rises_with_the_rate_and_the_order_of_limits_holds():
    fluid = Fluid(LADDER)
    path = fluid.gears.copy()
    limits = fluid.frontier(RATES, CAPACITY)
    assert (np.diff(limits) <= 1e-9).all()
    accuracy, visits = np.array([one.accuracy for one in path]), np.array([one.visits for one in path])
    for rate, best in zip(RATES, limits, strict=True):
        coarse = solve(accuracy[[0, 30, -1]], visits[[0, 30, -1]], CAPACITY, rate).value
        gears = solve(accuracy, visits, CAPACITY, rate).value
        lowest = floor(LADDER, rate, CAPACITY)
        assert lowest <= coarse + 1e-9 <= gears + 2e-9 <= best + 3e-9 <= oracle_limit(LADDER, rate, CAPACITY) + 4e-9
    assert limits[2] > floor(LADDER, RATES[2], CAPACITY) + 0.02


def test_what_a_second_can_get_right_is_concave_in_capacity():
    fluid = Fluid(LADDER)
    scales = np.linspace(0.2, 2.0, 10)
    fluid.frontier([500.0 / scale for scale in scales], CAPACITY)
    right = [fluid.at(500.0, CAPACITY.times(scale), rounds=0).accuracy for scale in scales]
    slopes = np.diff(right)
    assert (np.diff(slopes) <= 1e-9).all()


def test_column_generation_finds_more_than_the_path():
    fluid = Fluid(LADDER)
    before = len(fluid.gears)
    on_path = fluid.at(300.0, CAPACITY, rounds=0).accuracy
    found = fluid.at(300.0, CAPACITY).accuracy
    assert len(fluid.gears) > before
    assert found > on_path + 1e-4


def test_base_prices_buy_less():
    fluid = Fluid(LADDER)
    free, priced = fluid.at(10.0, CAPACITY), fluid.at(10.0, CAPACITY, [0.0, 0.05, 0.2])
    assert priced.visits @ LADDER.cost < free.visits @ LADDER.cost
    assert priced.accuracy < free.accuracy


def test_an_operating_point_adds_up():
    point = Fluid(LADDER).at(1500.0, CAPACITY)
    assert point.exit_shares.sum() + point.shed == pytest.approx(1.0)
    assert point.shed == pytest.approx(1 - 1000 / 1500)
    everything = LADDER.stop_at(2).exits
    assert point.exits_before(everything) == pytest.approx(1 - point.shed - point.exit_shares[-1])


@pytest.mark.parametrize("rate", [10.0, 50.0, 100.0, 300.0, 1000.0, 2000.0])
def test_two_stages_have_a_closed_form(rate):
    # A*(rate) = theta A(min(phi*, cap_1 / (rate theta))): defer by gain until the dearer stage is full.
    judged = difficulty_ladder(rows=3000, errors=(0.8, 0.2), cost=(1.0, 10.0), seed=5)
    # Served by its probability, so that accuracy is just the expected gain: then the hull is the deferral curve itself.
    gain = judged.gains[:, 0, 1]
    curve = deferral_curve(gain, judged.p_correct[:, 1] - judged.p_correct[:, 0])
    capacity = Capacity(np.array([1000.0, 80.0]))
    theta = min(1.0, 1000.0 / rate)
    wanted = theta * (judged.p_correct[:, 0].mean() + curve(min(1.0, 80.0 / (rate * theta))))
    path = [gear(judged, [0.0, price]) for price in np.quantile(gain, np.linspace(0, 1, 400))] + [gear(judged, [0.0, 0.0])]
    expected = np.array([judged.p_correct[np.arange(judged.rows), one.exits].mean() for one in path])
    found = solve(expected, np.array([one.visits for one in path]), capacity, rate)
    assert found.value == pytest.approx(wanted, abs=2e-5)
    # By labels, the curve is a sample: the optimum may only be above it.
    by_labels = deferral_curve(gain, judged.served[:, 1].astype(float) - judged.served[:, 0])
    sampled = theta * (judged.served[:, 0].mean() + by_labels(min(1.0, 80.0 / (rate * theta))))
    assert sampled - 2e-3 <= Fluid(judged).at(rate, capacity).accuracy <= sampled + 0.02


def test_an_oracle_with_room_gets_everything_right_that_any_stage_does():
    assert oracle_limit(LADDER, 1.0, CAPACITY) == pytest.approx(LADDER.served.any(axis=1).mean())


def test_an_oracle_fills_the_dear_stage_last():
    # 1,000/s: stage 1 runs 200, stage 2 runs 40 of them.
    first = np.where(LADDER.served.any(axis=1), LADDER.served.argmax(axis=1), -1)
    share = np.array([(first == k).mean() for k in range(3)])
    third = min(share[2], 0.04)
    second = min(share[1], 0.2 - third)
    best = max(share[0] + second + third, share[0] + min(share[1], 0.2))
    assert oracle_limit(LADDER, 1000.0, CAPACITY) == pytest.approx(best)


def test_an_oracle_with_shared_cores_is_bound_by_them():
    shared = Capacity(np.full(3, np.inf), np.array([0.001, 0.005, 0.025]), 2.0)
    at_once = oracle_limit(LADDER, 2500.0, shared)
    assert at_once == pytest.approx(0.8 * LADDER.stop_at(0).accuracy, abs=1e-9)
    assert oracle_limit(LADDER, 100.0, shared) == pytest.approx(LADDER.served.any(axis=1).mean())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Capacity(np.array([1.0, 0.0])),
        lambda: Capacity(np.array([1.0, 1.0]), np.array([1.0]), 1.0),
        lambda: Capacity(np.array([1.0, 1.0]), pool=3.0),
        lambda: solve(F1_ACCURACY, F1_VISITS, F1_CAPACITY, 0.0),
        lambda: solve(F1_ACCURACY, F1_VISITS[:, :1], F1_CAPACITY, 1.0),
        lambda: Fluid(LADDER).at(1.0, CAPACITY, [0.1]),
    ],
)
def test_impossible_problems_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
