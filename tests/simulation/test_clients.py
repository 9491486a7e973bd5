"""Who asks in a simulated run; and what classes and tenants make of the ladder under load, by the server's own policy."""

from math import inf

import numpy as np
import pytest
from simulation_cases import BATCH, THREE, configs

from cascade.errors import ConfigError
from cascade.policy.classes import ClassConfig
from cascade.policy.policy import Policy
from cascade.policy.request import Request
from cascade.simulation.clients import Clients, Mix, draw_mix
from cascade.simulation.cluster import Cluster
from cascade.simulation.record import Ending, Record
from cascade.simulation.simulator import draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from tests.calibration.judged_cases import difficulty_ladder

DEADLINE_S = 0.4
TABLE = difficulty_ladder()
STAGE0_PER_S = 1882.0


def run(rate: float, kinds: list[Clients], shares: list[float], classes=None, seconds: float = 4.0) -> tuple[Record, Policy]:
    """Simulate Poisson arrivals of these kinds of clients, who have the same time."""
    arrival_seed, row_seed, service_seed = run_streams(0)
    arrivals = draw(parse_workload(f"poisson:{rate}"), seconds, arrival_seed)
    count = len(arrivals.instants)
    policy = Policy(configs(THREE, BATCH, TABLE), usual_deadline_s=kinds[0].deadline_s, classes=classes)
    mix = draw_mix(kinds, shares, count, seed=5)
    rows = draw_rows(TABLE, count, row_seed)
    return simulate(policy, Cluster(THREE, cv=0.1, seed=service_seed), TABLE, arrivals, rows, mix), policy


# -- the mixture -------------------------------------------------------------------------------------------------------


def test_clients_all_ask_for_the_same():
    ask = Clients(0.5, 0.125, 3, "a").asking()
    assert ask(7, 2.0) == Request(7, 2.0, 2.45, 2.5, 3, inf, "a"), "the margin is at most a tenth of the time"


def test_a_mix_asks_for_each_request_what_its_columns_say():
    mix = Mix(np.array([0.5, 2.0]), np.array([1, 3]), np.array(["a", "b"]), 0.0625)
    ask = mix.asking()
    assert ask(0, 1.0) == Request(0, 1.0, 1.45, 1.5, 1, inf, "a")
    assert ask(1, 1.0) == Request(1, 1.0, 2.9375, 3.0, 3, inf, "b")


def test_a_mix_is_drawn_by_shares_and_repeats_by_its_seed():
    kinds = [Clients(0.5, tenant="a"), Clients(1.0, priority=2, tenant="b")]
    mix = draw_mix(kinds, [1, 3], 40_000, 0)
    assert np.mean(mix.tenant == "b") == pytest.approx(0.75, abs=0.01)
    assert (mix.deadline_s == np.where(mix.tenant == "a", 0.5, 1.0)).all()
    assert (mix.priority == np.where(mix.tenant == "a", 1, 2)).all()
    assert (draw_mix(kinds, [1, 3], 40_000, 0).tenant == mix.tenant).all()
    assert (draw_mix(kinds, [1, 3], 40_000, 1).tenant != mix.tenant).any()


def test_a_run_of_one_kind_is_the_same_as_a_mix_of_only_that_kind():
    arrivals = draw(parse_workload("poisson:500"), 1.0, 0)
    rows = draw_rows(TABLE, len(arrivals.instants), 0)
    one, other = (
        simulate(Policy(configs(THREE, BATCH, TABLE), usual_deadline_s=0.4), Cluster(THREE), TABLE, arrivals, rows, clients)
        for clients in (Clients(0.4), draw_mix([Clients(0.4)], [1.0], len(rows), 0))
    )
    assert (one.done_s == other.done_s).all()
    assert (one.deadline_s == other.deadline_s).all()
    assert one.priority is None
    assert (other.priority == 1).all()


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda: Mix(np.ones(2), np.ones(3, dtype=int), np.array(["", ""])), "equally many, got 2, 3 and 2"),
        (lambda: Mix(np.zeros(1), np.ones(1, dtype=int), np.array([""])), "above 0 and finite, got 0"),
        (lambda: Mix(np.ones(1), np.zeros(1, dtype=int), np.array([""])), "first class is 1, got 0"),
        (lambda: draw_mix([Clients(1.0)], [1.0, 2.0], 3, 0), "one share for each of 1 kinds"),
        (lambda: draw_mix([Clients(1.0)], [-1.0], 3, 0), "none negative"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(make, mentions):
    with pytest.raises(ConfigError, match=mentions):
        make()


def test_a_mix_must_have_one_item_a_request():
    arrivals = draw(parse_workload("poisson:100"), 1.0, 0)
    rows = draw_rows(TABLE, len(arrivals.instants), 0)
    policy = Policy(configs(THREE, BATCH, TABLE), usual_deadline_s=0.4)
    with pytest.raises(ConfigError, match="need a mix of as many, got 3"):
        simulate(policy, Cluster(THREE), TABLE, arrivals, rows, draw_mix([Clients(0.4)], [1.0], 3, 0))


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_a_tenant_that_floods_ten_times_beyond_stage_0_leaves_a_polite_one_its_answers_in_time():
    kinds = [Clients(DEADLINE_S, tenant="flood"), Clients(DEADLINE_S, tenant="polite")]
    record, _ = run(10.1 * STAGE0_PER_S, kinds, [100, 1], seconds=3.0)
    settled = record.arrivals.instants > 0.5
    polite = settled & (record.tenant == "polite")
    assert polite.sum() > 400
    assert record.on_time[polite].mean() >= 0.99
    flood = settled & (record.tenant == "flood")
    assert (record.ending[flood] == Ending.SHED).mean() > 0.85
    assert record.on_time[flood].sum() > 0.7 * STAGE0_PER_S * 2.5, "and stage 0 is kept busy"


def test_a_tenant_that_floods_the_dear_stage_leaves_a_polite_one_most_of_its_accuracy():
    # Alone, the polite one would go unhindered: the dearest stage runs 111 rows a second.
    kinds = [Clients(DEADLINE_S, tenant="flood"), Clients(DEADLINE_S, tenant="polite")]
    record, _ = run(1020.0, kinds, [1000, 20])
    right = TABLE.right[record.row, record.stage] & record.on_time
    polite, flood = record.tenant == "polite", record.tenant == "flood"
    assert record.degraded[polite].mean() < 0.1
    assert record.degraded[flood].mean() > 0.3
    assert right[polite].mean() > right[flood].mean() + 0.02


# -- classes -----------------------------------------------------------------------------------------------------------

CAP = (0.0, 0.05, 0.1)
BOTH = [Clients(DEADLINE_S, priority=1), Clients(DEADLINE_S, priority=2)]


def test_under_load_the_class_of_less_weight_is_degraded_first():
    record, policy = run(800.0, BOTH, [1, 1], [ClassConfig(1.0), ClassConfig(0.25)])
    high, low = (record.degraded[record.priority == priority].mean() for priority in (1, 2))
    assert high < 0.75 * low
    even, _ = run(800.0, BOTH, [1, 1], [ClassConfig(1.0), ClassConfig(1.0)])
    assert high < even.degraded.mean() < low
    assert policy.counts.classes[0].degraded == record.degraded[record.priority == 1].sum()
    assert record.on_time.all()


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_class_that_is_shed_beyond_its_floor_keeps_it_for_those_it_lets_in(share):
    kinds = [Clients(1.0, priority=1), Clients(1.0, priority=2)]
    found = {}
    for beyond in ("shed", "wait"):
        record, policy = run(800.0, kinds, [share, 1 - share], [ClassConfig(1.0, CAP, beyond), ClassConfig(0.25)])
        found[beyond] = policy.counts.classes[0]
        assert record.on_time[record.ending == Ending.ANSWERED].all()
    high = found["shed"]
    assert high.below_floor <= 0.03 * high.answered
    assert (high.shed > 0) == (share == 0.9) == (found["wait"].below_floor > 0.2 * found["wait"].answered)
    assert policy.counts.classes[1].shed == 0


def test_a_class_that_waits_beyond_its_floor_is_never_turned_away_and_says_what_fell_below():
    record, policy = run(800.0, BOTH, [0.9, 0.1], [ClassConfig(1.0, CAP), ClassConfig(0.25)])
    assert policy.counts.classes[0].shed == 0
    assert policy.counts.classes[0].below_floor > 0.05 * policy.counts.classes[0].answered
    assert record.on_time.all()
