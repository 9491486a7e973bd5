"""The product's policy beside the usual laws of load control, in simulated time: two short scenarios, one seed.

The whole comparison is ``python -m benchmarks.laws``; this keeps its ordering from being lost.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from benchmarks.laws.ablations import UNGUARDED
from benchmarks.laws.compare import Outcome, bench, measure, play
from benchmarks.laws.laws import BY_NAME as LAW
from benchmarks.laws.scenarios import BY_NAME as SCENARIO
from benchmarks.laws.scenarios import CAPACITY, TOP, Scenario, step
from benchmarks.laws.storm import storm
from benchmarks.laws.synthetic import ACCURACY, draw

SEEDS = (0, 1)
SHORT = (replace(SCENARIO["x10"], seconds=10.0), Scenario("step", step(0.5, 8.0, seconds=12.0), seconds=12.0))


def mean_gap(outcomes: dict[tuple[str, int], Outcome], law: str) -> float:
    return float(np.mean([outcomes[law, seed].gap for seed in SEEDS]))


@pytest.fixture(scope="module", params=SHORT, ids=lambda scenario: scenario.name)
def outcomes(request) -> dict[tuple[str, int], Outcome]:
    """Every law on the same requests, by law and seed."""
    laws = ("ours", "ours+plan", "gear-drain", "aimd", "static")
    found = {}
    for seed in SEEDS:
        played = play(request.param, seed)
        found |= {(law, seed): measure(request.param, LAW[law], seed, played) for law in laws}
    return found


@pytest.mark.parametrize("ours", ["ours", "ours+plan"])
def test_the_value_queue_beats_fifo_by_gear_beats_aimd_beats_static_thresholds(outcomes, ours):
    gaps = [mean_gap(outcomes, law) for law in (ours, "gear-drain", "aimd", "static")]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[1] - 0.1


@pytest.mark.parametrize("law", ["ours", "ours+plan"])
def test_the_value_queue_stays_near_the_fluid_optimum(outcomes, law):
    assert mean_gap(outcomes, law) < 0.7  # points


def test_the_value_queue_answers_everything_on_time(outcomes):
    for seed in SEEDS:
        assert outcomes["ours", seed].on_time == 1.0
        assert outcomes["ours", seed].shed == 0.0


def test_a_run_repeats_exactly():
    scenario = replace(SCENARIO["x10"], seconds=4.0)
    first, second = (measure(scenario, LAW["ours+plan"], 0, play(scenario, 0)) for _ in range(2))
    assert first == second


def test_the_ladder_has_the_accuracies_it_was_built_for():
    sample = draw(200_000, np.random.default_rng(0))
    assert sample.right.mean(axis=0) == pytest.approx(ACCURACY, abs=0.004)  # four standard errors


@pytest.mark.parametrize(("unsolvable", "nested"), [(0.0, True), (0.2, True), (0.2, False)])
def test_the_true_probabilities_are_those_of_the_labels(unsolvable, nested):
    sample = draw(100_000, np.random.default_rng(0), unsolvable=unsolvable, nested=nested)
    for seen in (1, 2):
        p = sample.true_p(seen)
        for stage in range(3):
            for tenth in np.array_split(np.argsort(p[:, stage]), 10):
                assert p[tenth, stage].mean() == pytest.approx(sample.right[tenth, stage].mean(), abs=0.02)


def test_the_optimum_fills_the_scarce_stages_and_prices_only_those():
    world = bench().world
    scarce, idle = world.solve(10 * TOP, CAPACITY), world.solve(0.5 * TOP, CAPACITY)
    assert scarce.visits[1:] * 10 * TOP == pytest.approx(CAPACITY[1:], rel=0.01)
    assert (scarce.prices[1:] > 0).all()
    assert idle.prices == pytest.approx([0, 0, 0], abs=1e-3)
    assert world.solve(2 * CAPACITY[0], CAPACITY).theta == 0.5


def test_no_pair_of_thresholds_that_fits_does_better_than_the_optimum():
    world = bench().world
    room = CAPACITY[1:] / (10 * TOP)
    best = world.solve(10 * TOP, CAPACITY).accuracy
    fitting = 0
    for price1, price2 in product(np.linspace(0.0, 0.45, 16), repeat=2):
        goes, leaps = world.value(price1, price2) > 0, world.g12 > price2
        visits = [goes.mean(), (leaps & goes[:, None]).mean()]
        if (visits <= room).all():
            fitting += 1
            accuracy = world.acc0 + (world.g01 * goes).mean() + (world.g12 * leaps * goes[:, None]).mean()
            assert accuracy <= best + 1e-9
    assert fitting > 50


def test_retries_bury_a_ladder_without_door_and_slack_check_and_pass_over_the_product():
    # The last part is only there so that the one before it does not see the end of the load.
    parts = (("before", 1.0, 15.0), ("burst", 2.0, 40.0), ("soon", 1.0, 15.0), ("later", 1.0, 15.0), ("end", 2.0, 15.0))
    buried = storm(UNGUARDED, 3, 0, parts=parts)
    assert buried.answered["before"] == 1.0
    assert buried.answered["later"] < 0.05
    assert storm(UNGUARDED, 0, 0, parts=parts).answered["later"] > 0.95  # it is the retries
    assert storm(LAW["ours"], 3, 0, parts=parts).answered["later"] > 0.99
