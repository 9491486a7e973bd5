"""Costs of stages that resume: what a visit costs, what an answer costs from the inputs on, what exits save."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.calibration.clearing import clear
from cascade.calibration.deployment import Deployment, StageInputs
from cascade.calibration.fluid import Capacity
from cascade.calibration.frontier import frontier
from cascade.calibration.ladder import best_ladders, design, ladder_cost, rung_savings
from cascade.calibration.oracle import Oracle
from cascade.calibration.outcome_arrays import alone_of
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.replicas import best_within, cheapest
from cascade.calibration.zoo import Zoo, visits
from cascade.errors import TableError
from cascade.policy.market import Group, Market
from tests.calibration.judged_cases import difficulty_ladder
from tests.calibration.table_cases import every_form

FALSE = np.zeros(3, np.bool_)
CHAIN = np.array([False, True, True])


def exits_table(**changes) -> OutcomeTable:
    """Three exits of one network, whose segments cost less and less."""
    return OutcomeTable.from_arrays({**every_form(), "cost": np.array([10.0, 4.0, 2.0]), "resumes": CHAIN, **changes})


# -- the table ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_an_answer_costs_all_segments_from_the_inputs_on(stages):
    cost = np.array([float(c) for c, _ in stages])
    resumes = np.array([False, *(goes_on for _, goes_on in stages[1:])])
    expected: list[float] = []
    for own, goes_on in zip(cost, resumes, strict=True):
        expected.append(own + (expected[-1] if goes_on else 0.0))
    np.testing.assert_allclose(alone_of(cost, resumes), expected)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_table_of_exits_is_read_as_it_was_written(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = exits_table()
    path = tmp_path / f"outcomes{suffix}"
    table.write(path)
    again = OutcomeTable.read(path)
    assert again.resumes.tolist() == [False, True, True]
    assert again.alone.tolist() == [10.0, 14.0, 16.0]
    assert again.digest() == table.digest()
    assert table.select("test").resumes.tolist() == [False, True, True]


def test_where_nothing_resumes_a_table_is_the_same_with_and_without_saying_so():
    plain = OutcomeTable.from_arrays(every_form())
    said = OutcomeTable.from_arrays({**every_form(), "resumes": FALSE})
    assert "resumes" not in said.arrays()
    assert said.digest() == plain.digest()
    assert plain.alone is plain.cost


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resumes": np.array([True, True, True])}, r"resumes: row 0 \(small\) is 1"),
        ({"resumes": CHAIN[:2]}, "resumes: has 2 entries, stages has 3"),
        ({"resumes": np.array([0, 1, 2])}, "resumes: row 2 is 2; expected 0 or 1"),
        ({"resumes": FALSE}, r"cost: row 1 \(medium\) is 4 after 10"),
        ({"resumes": np.array([False, True, False]), "cost": np.array([10.0, 4.0, 14.0])}, "is 14 after 14"),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(TableError, match=says):
        exits_table(**changes)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_an_oracle_that_pays_only_the_answer_pays_all_segments_up_to_it():
    right = np.array([[True, True], [False, True], [False, True], [False, False]])
    alone, paid = np.array([10.0, 14.0]), np.array([10.0, 14.0])
    oracle = Oracle.exact(right, alone, paid=paid)
    # One row and the hopeless one at the first exit, two at the second: the same for both, since no exit pays twice.
    assert oracle.router_cost == oracle.sequential_cost == pytest.approx((2 * 10 + 2 * 14) / 4)
    assert oracle.sequential_gain == pytest.approx(14 / 12)
    apart = Oracle.exact(right, alone)
    assert apart.sequential_cost == pytest.approx((2 * 10 + 2 * 24) / 4)


def test_a_frontier_of_exits_compares_with_the_last_exit_alone():
    judged = replace(difficulty_ladder(cost=(10.0, 4.0, 2.0)), resumes=CHAIN)
    found = frontier({"as it is": judged})
    assert found.main.top_cost == 16.0
    assert [single["cost"] for single in found.document()["stages"]] == [10.0, 14.0, 16.0]
    whole = judged.stop_at(2)
    assert whole.cost == 16.0
    assert found.main.oracle.sequential_cost < 16.0
    assert found.main.gain(0.01) is not None


# -- the best ladder ---------------------------------------------------------------------------------------------------


ACCURACY, COST, NETWORK = np.array([0.6, 0.7, 0.8, 0.9]), np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 2, 1])


def test_after_an_exit_a_cascade_pays_what_lies_between_and_after_another_model_all():
    paid = visits(COST, NETWORK)
    assert paid[0].tolist() == [1, 2, 3, 4]
    assert [paid[1, 1], paid[1, 3], paid[2, 3]] == [1, 3, 2]
    assert [paid[1, 2], paid[3, 3]] == [3, 4]


def test_an_exit_between_two_of_its_network_always_pays_and_a_model_between_them_need_not():
    savings = rung_savings(ACCURACY, COST, sequential=True, network=NETWORK)
    without = [
        ladder_cost(np.delete(ACCURACY, m), np.delete(COST, m), sequential=True, network=np.delete(NETWORK, m))
        for m in range(3)
    ]
    whole = ladder_cost(ACCURACY, COST, sequential=True, network=NETWORK)
    np.testing.assert_allclose(savings, np.array(without) - whole, atol=1e-12)
    assert savings[0] > 0
    assert savings[2] < 0


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=6), st.integers(0, 1000))
def test_the_best_ladders_are_those_that_trying_all_of_them_finds(networks, seed):
    random = np.random.default_rng(seed)
    count = len(networks)
    accuracy = np.sort(random.uniform(0.5, 1.0, count)) + np.arange(count) * 1e-3
    cost = np.cumsum(random.uniform(0.5, 3.0, count))
    network = np.array(networks)
    best: dict[int, float] = {}
    for members in range(1 << (count - 1)):
        rungs = [k for k in range(count - 1) if members >> k & 1] + [count - 1]
        found = ladder_cost(accuracy[rungs], cost[rungs], sequential=True, network=network[rungs])
        best[len(rungs)] = min(found, best.get(len(rungs), np.inf))
    found = best_ladders(accuracy, cost, sequential=True, network=network)
    np.testing.assert_allclose([one.sequential_cost for one in found], [best[size] for size in sorted(best)])


def test_a_design_from_a_table_of_exits_knows_what_they_cost():
    table = exits_table()
    zoo = Zoo.of_table(table)
    assert zoo.cost.tolist() == [10.0, 14.0, 16.0]
    assert len(set(zoo.network.tolist())) == 1
    made = design(zoo)
    assert made.top_cost == zoo.cost[made.kept[-1]]
    assert made.all_kept.sequential_cost <= made.top_cost * (1 + 1e-9)


# -- stages on the same replicas ---------------------------------------------------------------------------------------


def test_stages_that_share_replicas_share_their_time():
    capacity = Capacity(np.array([100.0, 50.0, 20.0]), together=((0, 2),))
    use, limit = capacity.rows()
    assert (use / limit[:, None]).tolist() == [[0, 1 / 50, 0], [1 / 100, 0, 1 / 20]]
    assert capacity.times(2.0).rows()[0][1].tolist() == [1 / 200, 0, 1 / 40]
    assert capacity.admitted(200.0) == 0.5


def deployment(together: bool = True) -> Deployment:
    owner = 0 if together else None
    return Deployment(
        (
            StageInputs("stage0", 0.001, 0.001, 8, replicas=2),
            StageInputs("stage1", 0.001, 0.002, 8, replicas=2, owner=owner, fixed=together),
            StageInputs("stage2", 0.002, 0.008, 8, replicas=2, owner=owner, fixed=together),
        ),
        deadline_s=1.0,
    )


def test_prices_of_a_plan_clear_the_time_of_shared_replicas():
    judged, shared = difficulty_ladder(), deployment()
    rate = 240.0
    found = clear(judged, shared.capacity, rate).point
    loads = rate * found.visits / shared.capacity.rows_per_s
    assert loads.sum() == pytest.approx(1.0, abs=0.02)
    assert found.prices[1] > 0
    apart = clear(judged, deployment(together=False).capacity, rate).point
    assert apart.accuracy > found.accuracy + 0.001
    assert shared.latency(found) > 0
    few = clear(judged, shared.capacity, 20.0).point
    assert shared.delays(few)[0].mean_s > deployment(together=False).delays(few)[0].mean_s


def test_replicas_of_the_first_of_them_are_chosen_for_all():
    judged, shared = difficulty_ladder(), deployment()
    found = cheapest(judged, shared, 100.0, judged.stop_at(2).accuracy - 0.02, 1.0)
    assert found.shortfall is None
    assert len({stage.replicas for stage in found.deployment.stages}) == 1
    loads = found.point.rate * found.point.visits / found.deployment.capacity.rows_per_s
    assert loads.sum() <= 1.0 + 1e-6
    assert best_within(judged, shared, 400.0, 3.0, 1.0).replicas["stage2"] == 3


def market(pools=None, rho: float = 1.0) -> Market:
    random = np.random.default_rng(0)
    gains = [random.uniform(-0.2, 0.8, size=(400, 2 - k)) for k in range(2)]
    return Market(gains, np.sort(random.uniform(0.5, 1.0, size=(400, 3)), axis=1), (0.0, 0.0, 0.0), rho, pools)


def used(found, rate: float, rows_per_s) -> float:
    return sum(rate * share / each for share, each in zip(found.visits, rows_per_s, strict=True))


def test_the_market_gives_later_stages_what_the_first_leaves_of_their_replicas():
    rows_per_s = [1000.0, 400.0, 100.0]
    shared = market(pools=(0, 0, 0))
    limit = shared.clear([Group(1.0)], rows_per_s).uncongested_rate
    assert used(shared.clear([Group(limit)], rows_per_s), limit, rows_per_s) == pytest.approx(1.0)
    assert shared.clear([Group(limit)], rows_per_s).prices == (0.0, 0.0, 0.0)
    assert limit < market().clear([Group(1.0)], rows_per_s).uncongested_rate
    busy = shared.clear([Group(600.0)], rows_per_s)
    assert used(busy, 600.0, rows_per_s) == pytest.approx(1.0, abs=0.02)
    assert busy.prices[1] > 0
    flooded = shared.clear([Group(2000.0)], rows_per_s)
    assert flooded.visits == (1.0, 0.0, 0.0)


@given(rate=st.floats(1.0, 3000.0), rho=st.floats(1.0, 1.5))
def test_what_is_asked_beyond_the_time_of_replicas_is_a_part_of_what_the_deepest_stage_would_use(rate, rho):
    rows_per_s = [1000.0, 400.0, 100.0]
    shared = market(pools=(0, 0, 0), rho=rho)
    found = shared.clear([Group(rate)], rows_per_s)
    unloaded = [share / each for share, each in zip(found.unloaded_visits[1:], rows_per_s[1:], strict=True)]
    left = max(0.0, 1.0 - rate / rows_per_s[0])
    excess = 1.0 + (rho - 1.0) * unloaded[-1] / sum(unloaded)
    assert used(found, rate, rows_per_s) <= rate / rows_per_s[0] + left * excess + 1e-6
    assert (found.prices == (0.0, 0.0, 0.0)) == (rate <= found.uncongested_rate * (1 + 1e-9))


@given(rate=st.floats(1.0, 3000.0))
def test_stages_on_the_same_replicas_charge_the_same_for_their_time(rate):
    rows_per_s = [1e6, 400.0, 100.0]
    found = market(pools=(1, 0, 0)).clear([Group(rate)], rows_per_s)
    assert found.prices[1] * rows_per_s[1] == pytest.approx(found.prices[2] * rows_per_s[2])


@given(rate=st.floats(1.0, 3000.0), pools=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_no_replicas_are_asked_for_more_than_all_their_time_unless_the_first_stage_alone_does(rate, pools):
    rows_per_s = [1000.0, 400.0, 100.0]
    found = market(pools=pools).clear([Group(rate)], rows_per_s)
    for pool in set(pools):
        part = [rate * found.visits[k] / rows_per_s[k] for k in range(3) if pools[k] == pool]
        alone = rate / rows_per_s[0] if pools[0] == pool else 0.0
        assert sum(part) <= max(1.0, alone) + 1e-6
