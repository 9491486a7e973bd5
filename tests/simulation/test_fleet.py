"""Several routers before one cluster: nothing is lost between them, one of them is none, and more cost next to nothing."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from simulation_cases import BATCH, THREE, configs

from cascade.errors import ConfigError
from cascade.policy.commands import Batch
from cascade.policy.policy import Policy
from cascade.policy.request import Request
from cascade.policy.walk import Walk
from cascade.simulation.cluster import GATHER_SHARE, Cluster, Slowdown, StageServers
from cascade.simulation.fleet import Fleet
from cascade.simulation.outcome import served_right
from cascade.simulation.record import Ending, Record
from cascade.simulation.simulator import Clients, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from tests.calibration.judged_cases import difficulty_ladder

DEADLINE_S = 0.4
ONE_CALL = tuple(replace(servers, calls_per_replica=1) for servers in THREE)
MERGING = tuple(replace(servers, merged_rows=rows) for servers, rows in zip(ONE_CALL, BATCH, strict=True))
TABLE = difficulty_ladder()
OVERLOAD = "poisson:900"
"""Eight times what the last of the three stages can do."""


def fleet(routers, *, servers=MERGING, rows=None, balance="leastconn"):
    """Routers that may each put ``rows`` into a call."""
    told = configs(servers, rows or BATCH, TABLE)
    return Fleet([Policy(told, usual_deadline_s=DEADLINE_S, seed=k) for k in range(routers)], balance)


def parts(routers):
    """Each router's part of a full batch."""
    return [-(-rows // routers) for rows in BATCH]


def run(driven, workload=OVERLOAD, *, seconds=4.0, servers=MERGING, slowdowns=(), seed=0, planner=None) -> Record:
    arrival_seed, row_seed, service_seed = run_streams(seed)
    arrivals = draw(parse_workload(workload), seconds, arrival_seed)
    rows = draw_rows(TABLE, len(arrivals.instants), row_seed)
    cluster = Cluster(servers, slowdowns=slowdowns, seed=service_seed)
    return simulate(driven, cluster, TABLE, arrivals, rows, Clients(DEADLINE_S), planner=planner)


def right(record: Record) -> float:
    """Points of the requests that got a right answer on time, after the first half second."""
    return 100 * float(served_right(record, TABLE)[record.arrivals.instants > 0.5].mean())


def test_a_fleet_needs_a_router():
    with pytest.raises(ConfigError, match="at least one router"):
        Fleet([])


@pytest.mark.parametrize("balance", ["leastconn", "roundrobin"])
def test_a_fleet_of_one_is_that_router(balance):
    slow = (Slowdown(1, 1.0, 1.5, 4.0), Slowdown(2, 2.0, 2.5, inf))
    alone = Policy(configs(THREE, BATCH, TABLE), usual_deadline_s=DEADLINE_S)
    one, expected = (
        run(driven, "burst:60@1,1500@0.3", servers=THREE, slowdowns=slow)
        for driven in (fleet(1, servers=THREE, balance=balance), alone)
    )
    for name in ("row", "ending", "done_s", "stage", "reason", "cost", "degraded", "batch_rows", "batch_finish_s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))


@pytest.mark.parametrize("routers", [2, 4])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("calls", [1, 3])
def test_no_row_is_lost_or_doubled_between_routers(routers, merged, calls):
    # A pace of 40 makes batches hang, so that calls are given up while they run and while they wait; then a stage is out.
    trouble = (
        Slowdown(1, 0.5, 2.0, 40.0),
        Slowdown(2, 0.5, 1.5, 400.0),
        Slowdown(2, 2.5, 3.0, inf),
        Slowdown(0, 3.2, 3.4, inf),
    )
    servers = [replace(server, replicas=2, calls_per_replica=calls) for server in (MERGING if merged else ONE_CALL)]
    several = fleet(routers, servers=servers, rows=parts(routers))
    record = run(several, "poisson:500", servers=servers, slowdowns=trouble)
    counted = [sum(getattr(router.counts, name) for router in several.routers) for name in ("answered", "shed", "failed")]
    assert counted == [int((record.ending == end).sum()) for end in (Ending.ANSWERED, Ending.SHED, Ending.FAILED)]
    assert sum(router.counts.live for router in several.routers) == 0
    assert sum(stage.failures for router in several.routers for stage in router.counts.stages) > 0
    assert all(capacity.busy == 0 for router in several.routers for capacity in router.capacities)


@pytest.mark.parametrize("balance", ["leastconn", "roundrobin"])
def test_requests_are_spread_evenly(balance):
    several = fleet(4, rows=parts(4), balance=balance)
    record = run(several, "poisson:300")
    arrived = [router.counts.arrived for router in several.routers]
    assert sum(arrived) == len(record.row)
    assert max(arrived) - min(arrived) <= (1 if balance == "roundrobin" else 0.1 * len(record.row))


def test_the_least_busy_router_gets_the_next_request():
    several = fleet(3)
    requests = [Request(tag, 0.0, 1.0, 1.0) for tag in range(5)]
    walks = [several.arrived(0.0, [request]) for request in requests[:4]]
    assert [router.counts.live for router in several.routers] == [2, 1, 1]
    several.routers[2].cancelled(walks[2][0])
    several.arrived(0.0, [requests[4]])
    assert [router.counts.live for router in several.routers] == [2, 1, 1]


def test_every_router_is_planned_from_its_own_arrivals_and_capacities():
    told = []

    def planner(_now, rate, router):
        told.append((rate, router))
        return [0.0, 0.5, 0.5]

    several = fleet(2, rows=parts(2))
    run(several, "constant:100", seconds=2.0, planner=several.planned_by(planner))
    assert [router for _, router in told] == list(several.routers) * 3
    assert [rate for rate, _ in told] == pytest.approx([50.0] * 6, rel=0.1)
    assert all(router.prices[1:] == (0.5, 0.5) for router in several.routers)


# -- replicas that run calls together ----------------------------------------------------------------------------------


def batch(rows, now=0.0):
    return Batch(0, [Walk(Request(tag, 0.0, 9.0, 9.0)) for tag in range(rows)], 1, now, now + 9.0)


def cluster(rows=8, hop_s=0.0):
    return Cluster([StageServers(1.0, 0.1, hop_s=hop_s, merged_rows=rows)], cv=0.0)


def test_calls_that_wait_are_run_together_and_share_the_time():
    stage = cluster()
    first, second, third = (stage.send(now, batch(rows, now)) for now, rows in ((0.0, 2), (0.1, 1), (0.2, 3)))
    assert first.back_s == pytest.approx(1.2)
    # The first caller is given a tenth of its pass to come back.
    assert second.work is third.work
    assert second.back_s == third.back_s == pytest.approx(1.2 + GATHER_SHARE * 1.2 + 1.4)
    assert (second.run_s, third.run_s) == pytest.approx((0.35, 1.05))
    assert stage.moved(third) == [first, second, third]


def test_a_pass_begins_when_the_callers_of_the_last_one_are_back():
    stage = cluster()
    first, second = stage.send(0.0, batch(2)), stage.send(0.1, batch(2, 0.1))
    assert stage.came_back(first) is first.work
    again = stage.send(1.25, batch(1, 1.25))
    assert again.work is second.work
    assert again.work.start_s == pytest.approx(1.25)


def test_a_lone_caller_is_not_waited_for():
    stage = cluster()
    stage.came_back(stage.send(0.0, batch(2)))
    assert stage.send(1.21, batch(1, 1.21)).work.start_s == pytest.approx(1.21)


def test_a_full_pass_does_not_wait_and_takes_no_more():
    stage = cluster(rows=4)
    stage.send(0.0, batch(1))
    full = [stage.send(0.1, batch(rows, 0.1)) for rows in (3, 1)]
    over = stage.send(0.2, batch(1, 0.2))
    assert full[0].work is full[1].work
    assert full[0].work.start_s == pytest.approx(1.1)
    assert over.work.start_s >= full[0].work.finish_s


def test_a_call_that_is_given_up_before_its_pass_leaves_it():
    stage = cluster()
    running, given_up, kept = (stage.send(now, batch(2, now)) for now in (0.0, 0.1, 0.2))
    assert stage.give_up(0.3, given_up) == [kept]
    assert given_up.back_s == inf
    assert kept.work.rows == 2
    assert kept.back_s == pytest.approx(1.2 + GATHER_SHARE * 1.2 + 1.2)
    assert stage.give_up(0.3, running) == []  # it has begun
    assert running.back_s == pytest.approx(1.2)


def test_passes_hold_no_more_rows_than_they_may_and_do_not_overlap():
    record = run(fleet(4, rows=parts(4)))
    for stage, most in enumerate(BATCH):
        own = record.batch_stage == stage
        assert record.batch_rows[own].max() <= most
        order = np.argsort(record.batch_start_s[own])
        start_s, finish_s = record.batch_start_s[own][order], record.batch_finish_s[own][order]
        assert (start_s[1:] >= finish_s[:-1] - 1e-12).all()
    last = record.batch_stage == 2
    assert record.batch_rows[last].mean() > 0.8 * BATCH[2]


# -- what it is for ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_router():
    return np.mean([right(run(fleet(1), seed=seed)) for seed in (0, 1)])


@pytest.mark.parametrize("routers", [2, 4])
def test_more_routers_lose_less_than_a_point(one_router, routers):
    several = np.mean([right(run(fleet(routers, rows=parts(routers)), seed=seed)) for seed in (0, 1)])
    assert several > one_router - 1.0


def test_whole_batches_of_several_routers_lose_more_than_a_point(one_router):
    whole = np.mean([right(run(fleet(4, servers=ONE_CALL), servers=ONE_CALL, seed=seed)) for seed in (0, 1)])
    assert whole < one_router - 1.0


class AskingAll(Fleet):
    """A fleet that also asks the routers that nothing has happened to."""

    asked = 0

    def dispatch(self, now):
        for index, router in enumerate(self.routers):
            if index not in self._touched:
                self.asked += 1
                assert router.dispatch(now) == []
                assert router.next_timer() == self._timer[index]
        return super().dispatch(now)


def test_a_router_that_nothing_has_happened_to_has_nothing_to_say():
    told = configs(MERGING, parts(4), TABLE)
    several = AskingAll([Policy(told, usual_deadline_s=DEADLINE_S, seed=k) for k in range(4)])
    run(several, seconds=2.0, slowdowns=(Slowdown(1, 0.5, 1.0, 40.0), Slowdown(2, 1.2, 1.4, inf)))
    assert several.asked > 1000


@pytest.mark.parametrize("compared", [1, 2, 8])
def test_a_batch_goes_to_the_least_busy_of_the_replicas_that_are_compared(compared):
    servers = StageServers(1.0, 0.0, replicas=8, calls_per_replica=8)
    cluster, held = Cluster([servers], cv=0.0, compared=compared), [0] * 8
    for tag in range(16):
        walk = Walk(Request(tag, 0.0, 9.0, 9.0))
        call = cluster.send(0.0, Batch(0, [walk], 1, 0.0, 9.0))
        held[call.replica] += 1
    assert sum(held) == 16
    assert (max(held) == 2) == (compared == 8)


def test_a_cluster_compares_at_least_one_replica():
    with pytest.raises(ConfigError, match="at least one is compared"):
        Cluster(THREE, compared=0)
