"""Numbers of replicas: enough, no more than needed, and a plain word where none are enough."""

from dataclasses import replace
from itertools import product

import pytest

from cascade.calibration.clearing import clear
from cascade.calibration.deployment import Deployment, StageInputs
from cascade.calibration.replicas import HEADROOM, best_within, cheapest
from cascade.errors import ConfigError
from tests.calibration.judged_cases import difficulty_ladder

LADDER = difficulty_ladder(rows=2000, seed=3)
DEPLOYMENT = Deployment(
    (
        StageInputs("stage0", 0.002, 0.0005, 32, fixed=True),
        StageInputs("stage1", 0.006, 0.003, 16, calls=2, base_price=0.01),
        StageInputs("stage2", 0.015, 0.0125, 8, calls=2, base_price=0.02),
    ),
    deadline_s=1.0,
)
WITH_GPUS = replace(
    DEPLOYMENT,
    stages=(DEPLOYMENT.stages[0], DEPLOYMENT.stages[1], replace(DEPLOYMENT.stages[2], num_gpus=1.0)),
)
UNLOADED = LADDER.walk(DEPLOYMENT.base_prices).accuracy


def accuracy(counts: tuple[int, ...], rate: float) -> float:
    capacity = DEPLOYMENT.with_replicas(counts).capacity.times(HEADROOM)
    return clear(LADDER, capacity, rate, DEPLOYMENT.base_prices).point.accuracy


def test_the_cheapest_that_reach_a_target_are_found():
    target = UNLOADED - 0.02
    found = cheapest(LADDER, DEPLOYMENT, 300.0, target, slo_s=1.0)
    assert found.shortfall is None
    counts = tuple(found.replicas.values())
    assert accuracy(counts, 300.0) >= target
    fewer = [other for other in product([1], range(1, 6), range(1, 8)) if sum(other) < sum(counts)]
    assert all(accuracy(other, 300.0) < target for other in fewer)


def test_a_light_load_needs_one_of_each():
    assert cheapest(LADDER, DEPLOYMENT, 5.0, UNLOADED - 0.001, slo_s=1.0).replicas == {"stage0": 1, "stage1": 1, "stage2": 1}


def test_a_tighter_latency_takes_more_replicas():
    loose = cheapest(LADDER, DEPLOYMENT, 300.0, UNLOADED - 0.02, slo_s=1.0)
    tight = cheapest(LADDER, DEPLOYMENT, 300.0, UNLOADED - 0.02, slo_s=0.2)
    assert tight.shortfall is None
    assert tight.p99_s <= 0.2 < loose.p99_s
    assert sum(tight.replicas.values()) > sum(loose.replicas.values())


def test_no_replica_of_the_result_could_be_spared():
    found = cheapest(LADDER, DEPLOYMENT, 300.0, UNLOADED - 0.001, slo_s=0.15)
    assert found.shortfall is None
    for name, count in found.replicas.items():
        if name == "stage0" or count == 1:
            continue
        fewer = tuple(other - (key == name) for key, other in found.replicas.items())
        deployment = DEPLOYMENT.with_replicas(fewer)
        point = clear(LADDER, deployment.capacity, 300.0, deployment.base_prices).point
        assert accuracy(fewer, 300.0) < UNLOADED - 0.001 or deployment.latency(point) > 0.15


def test_a_row_that_takes_longer_than_the_slo_is_named():
    found = cheapest(LADDER, DEPLOYMENT, 20.0, UNLOADED - 0.001, slo_s=0.02)
    assert found.shortfall is not None
    assert "'stage2'" in found.shortfall
    assert "27.5 ms" in found.shortfall


def test_more_than_the_ladder_can_do_is_not_promised():
    found = cheapest(LADDER, DEPLOYMENT, 20.0, min(1.0, UNLOADED + 0.02), slo_s=1.0)
    assert found.shortfall is not None
    assert f"{UNLOADED:.2%}" in found.shortfall


def test_shared_cores_cannot_be_helped_by_replicas():
    found = cheapest(LADDER, replace(DEPLOYMENT, shared_cores=1.0), 400.0, UNLOADED - 0.001, slo_s=1.0)
    assert found.shortfall is not None
    assert "shared cores" in found.shortfall


@pytest.mark.parametrize("budget", [2, 3, 5, 8])
def test_the_best_within_a_budget_is_found(budget):
    found = best_within(LADDER, DEPLOYMENT, 300.0, budget, slo_s=1.0)
    counts = tuple(found.replicas.values())
    assert sum(counts[1:]) <= budget
    best = max(accuracy((1, one, budget - one), 300.0) for one in range(1, budget))
    # The program mixes gears by their labels, the policy fills stages by price: they may differ by a little.
    assert found.assured >= best - 0.005


def test_where_some_stages_have_gpus_only_those_count():
    found = best_within(LADDER, WITH_GPUS, 300.0, 3.0, slo_s=1.0)
    assert found.gpus == found.replicas["stage2"] <= 3
    assert found.replicas["stage1"] >= 2


def test_a_budget_below_one_of_each_is_refused():
    with pytest.raises(ConfigError, match="one replica of each stage"):
        best_within(LADDER, DEPLOYMENT, 300.0, 1.0, slo_s=1.0)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"slo_s": 0.0}, {"accuracy": 0.0}, {"accuracy": 1.1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        cheapest(LADDER, DEPLOYMENT, **({"rate": 10.0, "accuracy": 0.8, "slo_s": 1.0} | wrong))


def test_replicas_are_at_least_one():
    with pytest.raises(ConfigError):
        DEPLOYMENT.with_replicas([1, 0, 1])
