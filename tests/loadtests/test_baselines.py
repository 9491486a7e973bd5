"""The fixed-threshold baseline in virtual time: it waits where the policy would degrade."""

from inspect import signature

import numpy as np
import pytest

from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import Request
from cascade.simulation.cluster import Cluster, Slowdown
from cascade.simulation.record import Ending, Record
from cascade.simulation.simulator import Clients, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from loadtests.static import StaticPolicy
from tests.calibration.judged_cases import difficulty_ladder
from tests.simulation.simulation_cases import BATCH, THREE, configs

DEADLINE_S = 0.4
TABLE = difficulty_ladder()
CONFIGS = configs(THREE, BATCH, TABLE)
TOP_ROWS_PER_S = 110


def run(policy: Policy, workload: str, slowdowns: tuple[Slowdown, ...] = ()) -> Record:
    arrival_seed, row_seed, service_seed = run_streams(0)
    arrivals = draw(parse_workload(workload), 6.0, arrival_seed)
    rows = draw_rows(TABLE, len(arrivals.instants), row_seed)
    cluster = Cluster(THREE, slowdowns=slowdowns, cv=0.1, seed=service_seed)
    return simulate(policy, cluster, TABLE, arrivals, rows, Clients(DEADLINE_S))


def static() -> StaticPolicy:
    return StaticPolicy(CONFIGS, usual_deadline_s=DEADLINE_S)


@pytest.fixture(scope="module")
def overloaded() -> tuple[Record, StaticPolicy]:
    policy = static()
    return run(policy, f"poisson:{8 * TOP_ROWS_PER_S}"), policy


def unloaded_exits(record: Record) -> np.ndarray:
    return TABLE.exits([stage.base_price for stage in CONFIGS])[record.row]


def test_with_little_load_every_row_gets_the_answer_that_its_evidence_asks_for():
    record = run(static(), f"poisson:{0.3 * TOP_ROWS_PER_S}")
    assert (record.ending == Ending.ANSWERED).all()
    assert (record.stage == unloaded_exits(record)).all()


def test_under_load_no_answer_is_degraded_and_none_comes_from_another_stage(overloaded):
    record, _ = overloaded
    answered = record.ending == Ending.ANSWERED
    assert answered.any()
    assert not record.degraded.any()
    assert (record.stage[answered] == unloaded_exits(record)[answered]).all()


def test_under_load_rows_expire_at_their_deadline_and_nobody_is_shed(overloaded):
    record, policy = overloaded
    expired = record.ending == Ending.EXPIRED
    assert set(np.unique(record.ending)) == {Ending.ANSWERED, Ending.EXPIRED}
    assert expired.mean() > 0.5
    assert record.done_s[expired] == pytest.approx(record.deadline_s[expired])
    assert policy.counts.shed == 0
    assert policy.counts.expired == expired.sum()
    assert policy.counts.live == 0


def test_the_product_answers_the_same_requests_on_time(overloaded):
    record, _ = overloaded
    ours = run(Policy(CONFIGS, usual_deadline_s=DEADLINE_S), f"poisson:{8 * TOP_ROWS_PER_S}")
    assert (ours.row == record.row).all()
    assert ((ours.ending == Ending.ANSWERED) & (ours.done_s <= ours.deadline_s)).mean() > 0.99


def test_a_queue_has_no_bound_and_is_served_in_order_of_arrival():
    policy = StaticPolicy([StageConfig(1, 4, 1.0, 0.0, 0.01, 0.01)], usual_deadline_s=1.0)
    for tag in range(1000):
        policy.arrived(0.001 * tag, [Request(tag, 0.001 * tag, 10.0, 10.0)])
    (command,) = policy.dispatch(1.0)
    assert [walk.request.tag for walk in command.batch.walks] == [0, 1, 2, 3]
    assert policy.waiting(0) == 996


def test_a_row_that_expired_or_whose_client_left_takes_no_place_in_a_batch():
    policy = StaticPolicy([StageConfig(1, 2, 1.0, 0.0, 0.01, 0.01)], usual_deadline_s=1.0)
    deadlines = (1.0, 5.0, 5.0, 5.0)
    walks = [policy.arrived(0.0, [Request(tag, 0.0, at_s, at_s)])[0] for tag, at_s in enumerate(deadlines)]
    policy.cancelled(walks[1])
    assert [command.tag for command in policy.tick(policy.next_timer())] == [0]
    (command,) = policy.dispatch(2.0)
    assert [walk.request.tag for walk in command.batch.walks] == [2, 3]
    assert policy.waiting(0) == 0


def test_prices_of_a_plan_are_not_followed():
    policy = static()
    policy.set_prices([0.0, 0.5, 0.5])
    assert policy.prices == tuple(stage.base_price for stage in CONFIGS)


def test_while_the_last_stage_is_out_rows_wait_for_it_and_fail_with_it():
    record = run(static(), f"poisson:{0.5 * TOP_ROWS_PER_S}", (Slowdown(2, 2.0, 3.0, float("inf")),))
    asked = unloaded_exits(record) == 2
    late = asked & (record.arrivals.instants > 2.0) & (record.arrivals.instants < 2.5)
    assert late.any()
    assert not (record.ending[late] == Ending.ANSWERED).any()
    assert (record.ending[~asked] == Ending.ANSWERED).all()


@pytest.mark.parametrize("event", ["arrived", "completed", "failed", "cancelled", "tick", "dispatch", "set_slots"])
def test_a_driver_may_tell_it_all_that_it_tells_the_policy(event):
    told, understood = (signature(getattr(each, event)).parameters for each in (Policy, StaticPolicy))
    assert list(told) == list(understood)
