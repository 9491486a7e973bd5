"""Loads simulated beside the fluid limits: where degradation begins, how much of the limit is reached, what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.calibration.fluid import Capacity
from cascade.errors import ConfigError
from cascade.policy.policy import Policy
from cascade.report.degradation import Rig, degradation_figure, degrade, first_full, latency_figure, shuffled_rows
from cascade.report.style import pyplot
from cascade.simulation.cluster import Cluster
from cascade.simulation.simulator import Clients
from tests.calibration.judged_cases import difficulty_ladder
from tests.simulation.simulation_cases import BATCH, THREE, configs

BASE = (0.0, 0.001, 0.001)
DEADLINE_S = 0.4


def machines() -> Capacity:
    return Capacity(np.array([n * s.replicas / (s.a_s + s.b_s * n) for n, s in zip(BATCH, THREE, strict=True)]))


def made(multiples, seconds: float | None = None, seed: int = 0):
    table = difficulty_ladder()
    rig = Rig(
        policy=lambda seed: Policy(configs(THREE, BATCH, table), usual_deadline_s=DEADLINE_S, seed=seed),
        cluster=lambda seed: Cluster(THREE, seed=seed),
        clients=Clients(DEADLINE_S),
    )
    return degrade(table, machines(), BASE, rig, multiples, seconds=seconds, seed=seed)


@pytest.fixture(scope="module")
def found():
    return made((4.0, 0.5, 1.5), seconds=20.0)


def test_the_stage_that_is_full_first_is_the_one_with_most_visits_for_its_capacity() -> None:
    table = difficulty_ladder()
    visits = table.walk(BASE).visits
    stage, rate = first_full(table, machines(), BASE)
    assert stage == 2
    assert rate * visits[2] == pytest.approx(machines().rows_per_s[2])
    assert (rate * visits[:2] < machines().rows_per_s[:2]).all()


def test_stages_on_the_same_replicas_are_full_together() -> None:
    table = difficulty_ladder()
    alone, capacity = table.walk(BASE).visits, machines().rows_per_s
    stage, rate = first_full(table, replace(machines(), together=((1, 2),)), BASE)
    assert stage == 1
    assert rate == pytest.approx(1 / (alone[1] / capacity[1] + alone[2] / capacity[2]))


def test_every_row_comes_equally_often() -> None:
    rows = shuffled_rows(7, 24, np.random.SeedSequence(1))
    assert set(np.bincount(rows[:21], minlength=7)) == {3}
    assert len(set(rows[21:])) == 3
    assert rows[:7].tolist() != rows[7:14].tolist()
    assert len(shuffled_rows(7, 0, np.random.SeedSequence(1))) == 0


def test_loads_come_in_order_with_their_limits(found) -> None:
    assert [load.multiple for load in found.loads] == [0.5, 1.5, 4.0]
    for load in found.loads:
        assert load.rate == pytest.approx(load.multiple * found.full_at)
        assert load.requests == pytest.approx(20 * load.rate, rel=0.1)
        assert load.floor < load.best
        assert load.efficiency == pytest.approx((load.accuracy - load.floor) / (load.best - load.floor))
    assert (np.diff(found.best) <= 1e-12).all()


def test_accuracy_gives_way_to_load_and_nothing_else_does(found) -> None:
    light, middle, heavy = found.loads
    assert light.accuracy == pytest.approx(difficulty_ladder().walk(BASE).accuracy, abs=4 * light.accuracy_se + 0.005)
    assert light.accuracy > middle.accuracy > heavy.accuracy > heavy.floor
    assert light.degraded == pytest.approx(0.0, abs=0.01)
    assert heavy.degraded is not None
    assert heavy.degraded > 0.1
    for load in found.loads:
        assert load.slo_attainment > 0.999
        assert load.shed == 0
        assert load.p99_s is not None
        assert load.p99_s <= DEADLINE_S


def test_the_policy_comes_close_to_the_limit(found) -> None:
    for load in found.loads:
        assert load.efficiency is not None
        assert load.efficiency_se is not None
        assert load.efficiency + 3 * load.efficiency_se > 0.9


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    one, again, other = (made((2.0,), 2.0, seed).document() for seed in (0, 0, 1))
    assert one == again
    assert one["curve"] == other["curve"]
    assert one["loads"] != other["loads"]


@pytest.mark.parametrize(
    ("multiples", "seconds", "named"),
    [
        ((), None, "loads"),
        ((1.0, 0.0), None, "loads"),
        ((1.0, float("nan")), None, "loads"),
        ((1.0,), 0.0, "seconds"),
        ((0.5,), 0.001, "measure longer"),
    ],
)
def test_what_cannot_be_simulated_is_refused(multiples, seconds, named) -> None:
    with pytest.raises(ConfigError, match=named):
        made(multiples, seconds)


def test_figures_show_the_limit_the_floor_and_every_load(found) -> None:
    figure = degradation_figure(found)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    limit = next(line for label, line in lines.items() if label.startswith("A*"))
    np.testing.assert_allclose(limit.get_ydata(), 100 * found.best)
    measured = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    np.testing.assert_allclose(measured[0].get_ydata().astype(float), [100 * load.accuracy for load in found.loads])
    latency = latency_figure(found)
    np.testing.assert_allclose(latency.axes[0].lines[0].get_ydata(), [1e3 * load.p99_s for load in found.loads])
    for drawn in (figure, latency):
        pyplot().close(drawn)
