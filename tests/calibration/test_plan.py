"""The plan by arrival rate: what its points say, how a rate is looked up, and the file."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cascade.calibration.deployment import Deployment, StageInputs
from cascade.calibration.fluid import Fluid
from cascade.calibration.plan import GRID_STEP, Plan, PlanSources, make_plan, rate_grid
from cascade.calibration.queueing import batched_delay
from cascade.errors import ConfigError
from tests.calibration.judged_cases import difficulty_ladder

LADDER = difficulty_ladder(rows=3000, seed=3)
DEPLOYMENT = Deployment(
    (
        StageInputs("stage0", 0.002, 0.0005, 32, base_price=0.0, fixed=True),
        StageInputs("stage1", 0.006, 0.003, 16, calls=2, base_price=0.01),
        StageInputs("stage2", 0.015, 0.0125, 8, calls=2, base_price=0.02),
    ),
    deadline_s=1.0,
)
"""Capacities 1,778, 296 and 69.6 rows a second."""
SOURCES = PlanSources(rows=LADDER.rows)


class Certificate:
    """Bounds the loss by the price of the last stage."""

    def bound_at(self, prices):
        return min(1.0, prices[-1])


BASE = (0.0, 0.01, 0.02)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(
        LADDER, DEPLOYMENT, ladder="difficulty", sources=SOURCES, rate=123.4, rho=1.1, certificate=Certificate()
    )


def test_shares_add_up_at_every_rate(plan):
    for point in plan.points:
        assert sum(point.exit_shares) + point.shed == pytest.approx(1.0, abs=1e-5)
        assert point.degraded <= 1 - point.shed


def test_accuracy_lies_between_the_floor_and_the_limit(plan):
    for point in plan.points:
        assert point.floor - 1e-6 <= point.accuracy <= point.limit + 1e-6
    assert np.diff([point.limit for point in plan.points]).max() <= 1e-6


def test_no_stage_is_used_beyond_its_capacity(plan):
    assert max(max(point.utilisation) for point in plan.points) <= 1 + 1e-5


def test_below_the_first_capacity_that_binds_nothing_is_degraded(plan):
    first = plan.points[0]
    assert first.prices == BASE
    assert (first.degraded, first.shed) == (0.0, 0.0)
    assert first.accuracy == pytest.approx(plan.unloaded_accuracy, abs=1e-6)
    assert max(first.utilisation) == pytest.approx(0.5, abs=0.01)


def test_beyond_stage_0_requests_are_shed(plan):
    last = plan.points[-1]
    assert last.rate == pytest.approx(1.3 * 32 / 0.018, rel=1e-3)
    assert last.shed == pytest.approx(1 - 1 / 1.3, abs=1e-3)


def test_prices_never_fall_below_the_base_prices_and_rise_with_load(plan):
    assert all(price >= base for point in plan.points for price, base in zip(point.prices, BASE, strict=True))
    assert plan.at(500).prices[2] > plan.at(150).prices[2] > 0.02


def test_rows_that_walk_at_the_prices_ask_for_rho_times_the_capacity(plan):
    for point in plan.points:
        visits = LADDER.walk(point.prices, BASE).visits
        load = (1 - point.shed) * point.rate * visits[2] / DEPLOYMENT.stages[2].rows_per_s
        if point.prices[2] > 0.0201:
            # A row is up to 1.1 % of the dearest stage's capacity here, where nothing is shed.
            assert 1.0 <= load <= 1.2 or point.shed > 0


def test_prices_for_the_next_rate_of_the_grid_still_fill_the_stages(plan):
    # Halfway between two rates, the prices of the higher one leave no capacity idle.
    pairs = [(low, high) for low, high in pairwise(plan.points) if low.prices[2] > 0.0201]
    for low, high in pairs[:10]:
        rate = (low.rate + high.rate) / 2
        visits = LADDER.walk(plan.at(rate).prices, BASE).visits
        assert rate * visits[2] / DEPLOYMENT.stages[2].rows_per_s >= 0.99


def test_a_rate_is_looked_up_upwards(plan):
    rates = [point.rate for point in plan.points]
    assert plan.at(rates[3]).rate == rates[3]
    assert plan.at(rates[3] * 1.0001).rate == rates[4]
    assert plan.at(0.001).rate == rates[0]
    assert plan.at(1e9).rate == rates[-1]


def test_the_rate_asked_for_is_in_the_grid():
    rates = rate_grid(LADDER, DEPLOYMENT, 123.4)
    assert 123.4 in rates
    assert rates == sorted(rates)
    assert max(later / earlier for earlier, later in pairwise(rates)) <= GRID_STEP + 1e-3
    assert len(set(rate_grid(LADDER, DEPLOYMENT)) ^ set(rates)) == 1


def test_a_rate_far_below_the_grid_is_its_first_point():
    assert rate_grid(LADDER, DEPLOYMENT, 0.5)[0] == 0.5


def test_a_plan_survives_its_file(plan, tmp_path):
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


def test_the_loss_is_bounded_at_each_points_prices(plan):
    assert [point.certified_loss for point in plan.points] == [min(1.0, point.prices[-1]) for point in plan.points]


def test_without_a_certificate_no_bound_is_stated():
    bare = make_plan(LADDER, DEPLOYMENT, ladder="difficulty", sources=SOURCES, rho=1.1)
    assert {point.certified_loss for point in bare.points} == {None}


def test_planning_with_less_than_the_capacity_charges_more(plan):
    careful = make_plan(LADDER, DEPLOYMENT, ladder="difficulty", sources=SOURCES, rate=123.4, rho=0.8).at(123.4)
    bold = plan.at(123.4)
    assert careful.prices[2] > bold.prices[2]
    assert max(careful.utilisation) == pytest.approx(0.8, abs=0.02)
    assert careful.accuracy < bold.accuracy


def test_shared_cores_are_a_limit_of_their_own(plan):
    deployment = replace(DEPLOYMENT, shared_cores=1.0)
    shared = make_plan(LADDER, deployment, ladder="difficulty", sources=SOURCES, rate=123.4, rho=1.1)
    assert max(sum(point.utilisation) for point in shared.points) <= 1 + 1e-5
    assert shared.at(123.4).accuracy < plan.at(123.4).accuracy


# -- latency -----------------------------------------------------------------------------------------------------------


def test_latency_rises_with_load_and_stays_within_the_deadline(plan):
    unsaturated = [point.p99_s for point in plan.points if max(point.utilisation) < 0.95]
    assert unsaturated == sorted(unsaturated)
    assert all(0 < point.p99_s <= plan.deadline_s for point in plan.points)


def test_where_nothing_is_saturated_a_stage_delays_as_its_queue_does():
    point = Fluid(LADDER).at(50.0, DEPLOYMENT.capacity, DEPLOYMENT.base_prices)
    for stage, delay, visits in zip(DEPLOYMENT.stages, DEPLOYMENT.delays(point), point.visits, strict=True):
        assert delay == batched_delay(50.0 * visits, stage.a_s, stage.b_s, stage.max_batch_size, stage.replicas, stage.calls)


def test_a_saturated_stage_waits_as_long_as_its_queue_allows(plan):
    # Half of the deadline of work before the last stage, a quarter before the one between.
    loaded = plan.at(400.0)
    assert loaded.utilisation[2] == pytest.approx(1.0, abs=1e-4)
    assert 0.2 < loaded.p99_s < 0.25 + 0.5 + 0.3


def test_a_shorter_deadline_shortens_the_wait_of_saturated_stages():
    short = replace(DEPLOYMENT, deadline_s=0.4)
    plan = make_plan(LADDER, short, ladder="difficulty", sources=SOURCES, rate=400.0, rho=1.1)
    assert plan.at(400.0).p99_s <= 0.4


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_deployment_of_other_stages_is_refused():
    other = replace(DEPLOYMENT, stages=(*DEPLOYMENT.stages[:2], replace(DEPLOYMENT.stages[2], name="huge")))
    with pytest.raises(ConfigError, match="huge"):
        make_plan(LADDER, other, ladder="difficulty", sources=SOURCES)


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"rate": -5.0}, {"rho": 0.0}])
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError):
        make_plan(LADDER, DEPLOYMENT, ladder="difficulty", sources=SOURCES, **changes)


def test_a_file_whose_rates_do_not_rise_is_refused(plan, tmp_path):
    text = plan.model_copy(update={"points": plan.points[::-1]})
    text.write(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="rates must rise"):
        Plan.read(tmp_path / "plan.json")
