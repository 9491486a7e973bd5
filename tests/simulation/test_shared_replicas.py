"""Stages that run on the same replicas, in virtual time: one pass at a time, of one stage, and nothing is lost."""

from dataclasses import replace
from math import inf

import pytest
from simulation_cases import BATCH, THREE, run

from cascade.policy.commands import Batch
from cascade.policy.request import Request
from cascade.policy.walk import Walk
from cascade.simulation.cluster import Cluster, Slowdown, StageServers

SHARED = (
    replace(THREE[0], merged_rows=BATCH[0]),
    *(replace(THREE[k], owner=0, merged_rows=BATCH[k]) for k in (1, 2)),
)
PAIR = (StageServers(1.0, 0.0, merged_rows=8), StageServers(2.0, 0.0, merged_rows=8, owner=0))


def sent(stage: int, at_s: float, rows: int = 1) -> Batch:
    return Batch(stage, [Walk(Request(row, 0.0, inf, inf)) for row in range(rows)], 1, at_s, inf)


def test_a_pass_begins_when_that_of_another_stage_is_done():
    cluster = Cluster(PAIR, cv=0.0)
    first, second, third = (cluster.send(0.0, sent(stage, 0.0)) for stage in (0, 1, 0))
    assert [call.back_s for call in (first, second, third)] == [1.0, 3.0, 4.0]
    assert len({id(call.work) for call in (first, second, third)}) == 3


def test_calls_of_one_stage_that_wait_together_are_one_pass():
    cluster = Cluster(PAIR, cv=0.0)
    cluster.send(0.0, sent(0, 0.0))
    second, third = (cluster.send(0.0, sent(1, 0.0)) for _ in range(2))
    assert second.work is third.work
    assert [call.back_s for call in (second, third)] == [3.0, 3.0]


def test_a_call_that_is_taken_out_lets_those_of_the_other_stages_go_before():
    cluster = Cluster(PAIR, cv=0.0)
    calls = [cluster.send(0.0, sent(stage, 0.0)) for stage in (0, 1, 0)]
    assert cluster.give_up(0.5, calls[1]) == [calls[2]]
    assert calls[2].back_s == 2.0


@pytest.mark.parametrize("rate", [100, 900])
def test_every_row_has_its_outcome(rate):
    _, policy = run(f"poisson:{rate}", seconds=4.0, servers=SHARED)
    counts = policy.counts
    assert counts.live == 0
    assert counts.failed == counts.expired == 0
    assert [books.batches > 0 for books in counts.stages] == [True] * 3


@pytest.mark.parametrize("seed", range(3))
def test_shared_replicas_get_fewer_rows_to_the_last_stage_than_replicas_of_their_own(seed):
    _, shared = run("poisson:600", seconds=4.0, servers=SHARED, seed=seed)
    _, apart = run("poisson:600", seconds=4.0, seed=seed)
    assert shared.counts.stages[2].rows < apart.counts.stages[2].rows


def test_an_outage_of_the_shared_replicas_is_one_of_all_their_stages():
    outage = Slowdown(0, 1.0, 2.0, inf)
    assert Cluster(SHARED, slowdowns=[outage]).turns == [(at, k, at == 1.0) for k in range(3) for at in (1.0, 2.0)]
    _, policy = run("poisson:200", seconds=4.0, servers=SHARED, slowdowns=[outage])
    assert policy.counts.live == 0
    assert policy.counts.shed > 0
    assert policy.reachable == (True, True, True)
