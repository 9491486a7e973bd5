"""Ladders chosen from a zoo: worked numbers, every choice against trying them all, and what a rung is worth."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import networks

from cascade.calibration.ladder import (
    MOST_EXACT,
    Zoo,
    best_exact_ladders,
    best_ladders,
    design,
    ladder_cost,
    rung_savings,
)
from cascade.calibration.oracle import Oracle
from cascade.errors import ConfigError
from cascade.report.ladder import ladder_figure
from cascade.report.style import pyplot

TWELVE_COST = np.geomspace(1, 500, 12)
TWELVE_ACCURACY = 0.9 - 0.35 * TWELVE_COST**-0.35

both_costs = pytest.mark.parametrize("sequential", [False, True])
steps = st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 10.0)), min_size=1, max_size=8)


def rising(drawn: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Models that are not dominated."""
    accuracy, cost = np.cumsum(np.array(drawn), axis=0).T
    return accuracy / (accuracy[-1] + 0.1), cost


def random_zoo(models: int, rows: int, seed: int) -> Zoo:
    random = np.random.default_rng(seed)
    ease = random.normal(size=(rows, 1))
    right = ease + random.normal(size=(rows, models)) + random.uniform(-1, 1.5, size=models) > 0
    cost = np.cumsum(random.exponential(size=models) + 0.05)
    return Zoo(tuple(f"m{k}" for k in range(models)), right.mean(axis=0), cost, "MAC", right)


class TestTwelveModels:
    def test_gain_of_all(self) -> None:
        assert 500 / ladder_cost(TWELVE_ACCURACY, TWELVE_COST, sequential=False) == pytest.approx(34.29, abs=0.005)

    def test_best_of_every_size(self) -> None:
        ladders = best_ladders(TWELVE_ACCURACY, TWELVE_COST, sequential=False, most=6)
        gains = [500 / one.router_cost for one in ladders]
        assert gains == pytest.approx([1.00, 8.26, 15.70, 21.12, 24.58, 27.51], abs=0.005)
        assert [one.rungs for one in ladders[:4]] == [(11,), (5, 11), (3, 8, 11), (2, 6, 9, 11)]
        assert gains[3] / 34.29 == pytest.approx(0.62, abs=0.005)

    def test_a_router_gains_by_every_rung_and_a_cascade_does_not(self) -> None:
        of_router = best_ladders(TWELVE_ACCURACY, TWELVE_COST, sequential=False)
        of_cascade = best_ladders(TWELVE_ACCURACY, TWELVE_COST, sequential=True)
        assert np.all(np.diff([one.router_cost for one in of_router]) < 0)
        costs = [one.sequential_cost for one in of_cascade]
        assert len(costs) == 12
        assert int(np.argmin(costs)) == 5

    def test_design_names_the_three_axes(self) -> None:
        lines = [
            {"model": f"m{k}", "accuracy": a, "cost": r}
            for k, (a, r) in enumerate(zip(TWELVE_ACCURACY, TWELVE_COST, strict=True))
        ]
        made = design(Zoo.of([*lines, {"model": "worse", "accuracy": 0.6, "cost": 80}], "GFLOP"), most=4)
        document = json.loads(json.dumps(made.document(), allow_nan=False))
        assert [model["model"] for model in document["models"] if model["dominated"]] == ["worse"]
        best = document["best_by_router"]
        assert len(best) == 4
        assert best[3]["rungs"] == ["m2", "m6", "m9", "m11"]
        assert best[3]["size"] == 4
        assert best[3]["range"] == pytest.approx(500 ** (9 / 11))
        assert best[3]["granularity"] == pytest.approx(500 ** (4 / 11))
        assert best[3]["router"]["subset_gain"] == pytest.approx(21.12, abs=0.005)
        assert best[3]["router"]["subset_regret"] == pytest.approx(34.29 / 21.12, abs=0.001)
        assert document["all"]["router"]["subset_gain"] == pytest.approx(34.29, abs=0.005)
        assert document["all"]["router"]["subset_regret"] == 1.0
        assert document["exact_best_by_router"] is None
        assert document["alpha"] is None


@both_costs
@settings(max_examples=100, deadline=None)
@given(drawn=steps)
def test_the_shortest_path_is_the_best_of_all_ladders(sequential: bool, drawn: list[tuple[float, float]]) -> None:
    accuracy, cost = rising(drawn)
    top = len(cost) - 1
    for size, found in enumerate(best_ladders(accuracy, cost, sequential=sequential), start=1):
        every = [[*others, top] for others in itertools.combinations(range(top), size - 1)]
        least = min(ladder_cost(accuracy[one], cost[one], sequential=sequential) for one in every)
        assert len(found.rungs) == size
        reached = found.sequential_cost if sequential else found.router_cost
        assert reached == pytest.approx(least, rel=1e-12)


@both_costs
@settings(max_examples=100, deadline=None)
@given(drawn=steps)
def test_the_cost_is_that_of_the_nested_oracle(sequential: bool, drawn: list[tuple[float, float]]) -> None:
    accuracy, cost = rising(drawn)
    oracle = Oracle.nested(accuracy, cost)
    expected = oracle.sequential_cost if sequential else oracle.router_cost
    assert ladder_cost(accuracy, cost, sequential=sequential) == pytest.approx(expected, rel=1e-12)


@both_costs
@settings(max_examples=100, deadline=None)
@given(drawn=steps)
def test_a_rung_saves_what_the_ladder_costs_more_without_it(sequential: bool, drawn: list[tuple[float, float]]) -> None:
    accuracy, cost = rising(drawn)
    savings = rung_savings(accuracy, cost, sequential=sequential)
    assert len(savings) == len(cost) - 1
    full = ladder_cost(accuracy, cost, sequential=sequential)
    for rung, saving in enumerate(savings):
        without = ladder_cost(np.delete(accuracy, rung), np.delete(cost, rung), sequential=sequential)
        assert saving == pytest.approx(without - full, abs=1e-9)
        if sequential and rung > 0:
            share = (accuracy[rung] - accuracy[rung - 1]) / (accuracy[-1] - accuracy[rung - 1])
            if abs(cost[rung] / cost[rung + 1] - share) > 1e-9:
                assert (saving > 0) == (cost[rung] / cost[rung + 1] < share)


@both_costs
def test_trying_all_ladders_row_by_row(sequential: bool) -> None:
    """10 zoos of 5 models on 200 rows."""
    for seed in range(10):
        zoo = random_zoo(5, 200, seed)
        assert zoo.right is not None
        top = int(zoo.accuracy.argmax())
        for size, found in enumerate(best_exact_ladders(zoo, sequential=sequential), start=1):
            costs = []
            for one in itertools.combinations(range(5), size):
                if top in one:
                    oracle = Oracle.exact(zoo.right[:, one], zoo.cost[list(one)])
                    costs.append(oracle.cost_at(float(zoo.accuracy[top]), sequential=sequential))
            assert found.cost == pytest.approx(min(costs), rel=1e-9)
            assert len(found.rungs) == size


def test_the_exact_oracle_needs_no_more_than_the_marginals_promise() -> None:
    """20 zoos of 6 models on 300 rows."""
    for seed in range(20):
        made = design(random_zoo(6, 300, seed))
        assert made.exact_by_router is not None
        assert made.exact_by_cascade is not None
        for ladders, exact in ((made.by_router, made.exact_by_router), (made.by_cascade, made.exact_by_cascade)):
            for promised, reached in zip(ladders, exact, strict=False):
                cost = promised.router_cost if ladders is made.by_router else promised.sequential_cost
                assert reached.cost <= cost * (1 + 1e-9)


def test_what_a_cascade_does_not_pay_for_is_named() -> None:
    lines = [("small", 0.6, 1.0), ("hardly-better", 0.61, 8.0), ("large", 0.9, 10.0)]
    made = design(Zoo.of([{"model": name, "accuracy": a, "cost": r} for name, a, r in lines]))
    assert [made.zoo.names[k] for k in made.not_paying] == ["hardly-better"]
    assert [made.zoo.names[k] for k in made.chosen.rungs] == ["small", "large"]


def test_a_zoo_of_one() -> None:
    made = design(Zoo.of([{"model": "only", "accuracy": 0.7, "cost": 3}]))
    assert made.chosen.rungs == (0,)
    assert made.document()["chosen"]["router"]["subset_gain"] == 1.0
    assert made.document()["chosen"]["granularity"] == 1.0


def test_a_table_is_a_zoo_with_rows() -> None:
    table = networks(400, seed=2)
    made = design(Zoo.of_table(table))
    assert made.zoo.accuracy.tolist() == [table.correct(stage).mean() for stage in table.stages]
    assert made.alpha is not None
    document = made.document()
    assert document["cost_unit"] == "MAC"
    assert len(document["exact_best_by_cascade"]) == 3
    assert document["all"]["cascade"]["gain_constant_alpha"] > 1


def test_too_many_models_are_not_tried_row_by_row() -> None:
    zoo = random_zoo(MOST_EXACT + 1, 50, 0)
    assert design(zoo).exact_by_router is None
    with pytest.raises(ConfigError, match="too many to try"):
        best_exact_ladders(zoo, sequential=True)


def test_the_figure_names_the_chosen_rungs() -> None:
    made = design(Zoo.of_table(networks(300, seed=1)))
    figure = ladder_figure(made)
    named = [text.get_text() for text in figure.axes[0].texts]
    assert named == [made.zoo.names[k] for k in made.chosen.rungs]
    pyplot().close(figure)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "no models"),
        ([{"model": "a", "accuracy": 0.5, "cost": 1}, {"model": "a", "accuracy": 0.6, "cost": 2}], "'a' is there twice"),
        ([{"model": "a", "accuracy": 76.1, "cost": 1}], "model 1: accuracy: .* got 76.1"),
        ([{"model": "a", "accuracy": 0.5}], "model 1: cost: Field required"),
        ([{"model": "a", "accuracy": 0.5, "cost": 0}], "model 1: cost: "),
        ([{"model": "a", "accuracy": "good", "cost": 1}], "model 1: accuracy: .* got 'good'"),
        ([{"model": "", "accuracy": 0.5, "cost": 1}], "model 1: model: "),
    ],
)
def test_a_wrong_line_is_refused(lines, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Zoo.of(lines)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: best_ladders(np.array([0.5, 0.4]), np.array([1.0, 2.0]), sequential=True), "must rise"),
        (lambda: best_ladders(np.array([]), np.array([]), sequential=True), "must rise"),
        (lambda: best_ladders(TWELVE_ACCURACY, TWELVE_COST, sequential=True, most=0), "at least one rung"),
        (lambda: design(Zoo.of([{"model": "a", "accuracy": 0.5, "cost": 1}]), most=0), "at least one rung"),
        (
            lambda: best_exact_ladders(Zoo.of([{"model": "a", "accuracy": 0.5, "cost": 1}]), sequential=True),
            "only accuracies",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()
