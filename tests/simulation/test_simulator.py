"""The simulator: conservation, determinism, common random numbers, slowdowns and outages, planners."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import BATCH, THREE, configs, run

from cascade.errors import ConfigError
from cascade.policy.commands import Reply
from cascade.policy.policy import Policy
from cascade.policy.request import ExitReason
from cascade.simulation.cluster import Cluster, Slowdown, StageServers
from cascade.simulation.record import REASONS, Ending
from cascade.simulation.simulator import Clients, ConservationBroken, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from tests.calibration.judged_cases import difficulty_ladder

OUT = inf


def agrees_with_counts(record, policy):
    """The policy's own counts say the same as the driver's books, and nothing is left with it."""
    counts = policy.counts
    assert counts.live == 0
    endings = np.bincount(record.ending, minlength=len(Ending))
    assert endings[Ending.NONE] == 0
    assert counts.arrived == len(record.row)
    for ending, count in (
        (Ending.ANSWERED, counts.answered),
        (Ending.SHED, counts.shed),
        (Ending.EXPIRED, counts.expired),
        (Ending.FAILED, counts.failed),
        (Ending.CANCELLED, counts.cancelled),
    ):
        assert endings[ending] == count
    assert counts.cost == pytest.approx(record.cost[record.ending == Ending.ANSWERED].sum())
    assert counts.degraded == record.degraded.sum()
    for stage, kept in enumerate(counts.stages):
        answered = record.stage == stage
        assert list(kept.answers.values()) == [
            int((answered & (record.reason == code)).sum()) for code in range(len(REASONS))
        ]
    assert [capacity.busy for capacity in policy.capacities] == [0] * len(policy.capacities)
    assert all(policy.waiting(stage) == 0 for stage in range(len(policy.capacities)))


@pytest.mark.parametrize("rate", [20, 100, 1000, 4000])
def test_every_request_ends_once_and_the_policy_counts_the_same(rate):
    record, policy = run(f"poisson:{rate}", seconds=2000 / rate)
    agrees_with_counts(record, policy)
    assert record.on_time.sum() == (record.ending == Ending.ANSWERED).sum()


@pytest.mark.parametrize("rate", [100, 500])
def test_poisoned_rows_fail_and_all_others_are_answered(rate):
    record, policy = run(f"poisson:{rate}", seconds=4000 / rate, poisoned=0.02, deadline_s=1.0)
    poison = np.random.default_rng(0).random(len(record.row)) < 0.02
    agrees_with_counts(record, policy)
    assert (record.ending[~poison] == Ending.ANSWERED).all()
    assert (record.ending[poison] == Ending.FAILED).all()
    assert record.on_time.sum() == (~poison).sum()
    stages = policy.counts.stages
    assert stages[0].poisoned <= poison.sum() == policy.counts.failed


def test_marks_of_poison_must_be_as_many_as_requests():
    table, arrivals = difficulty_ladder(), draw(parse_workload("poisson:5"), 2.0, 1)
    policy, rows = Policy(configs(THREE, BATCH, table), usual_deadline_s=1.0), draw_rows(table, len(arrivals.instants), 1)
    with pytest.raises(ConfigError, match="as many marks of poison"):
        simulate(policy, Cluster(THREE), table, arrivals, rows, Clients(1.0), poison=np.zeros(1, bool))


def test_low_load_answers_as_the_table_does_without_load():
    table = difficulty_ladder()
    record, _ = run("poisson:5", seconds=200, table=table, deadline_s=5.0)
    assert (record.stage == table.exits([0.0, 0.001, 0.001])[record.row]).all()
    assert not record.degraded.any()


def test_latency_without_load_is_service_and_hops():
    servers = (StageServers(0.004, 0.001, hop_s=0.002), StageServers(0.01, 0.005, hop_s=0.002))
    table = difficulty_ladder(100, errors=(0.9, 0.1), cost=(1.0, 4.0))
    record, _ = run("constant:10", seconds=10, servers=servers, batch=(4, 4), table=table, cv=0.0)
    one = 0.004 + 0.001 + 2 * 0.002
    expected = np.where(record.stage == 0, one, one + 0.01 + 0.005 + 2 * 0.002)
    assert record.done_s - record.arrivals.instants == pytest.approx(expected)
    assert set(record.stage.tolist()) == {0, 1}


def test_same_seed_same_run_and_another_seed_another():
    first, second, other = (run("burst:50@1,1500@0.3", seconds=4, seed=seed)[0] for seed in (1, 1, 2))
    for name in ("row", "ending", "done_s", "stage", "reason", "cost", "batch_start_s", "batch_finish_s"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert len(first.row) != len(other.row) or (first.row != other.row).any()


def test_two_policies_meet_the_same_requests_and_service_times():
    cheap, dear = (run("poisson:100", seconds=5, deadline_s=deadline)[0] for deadline in (0.05, 1.0))
    np.testing.assert_array_equal(cheap.arrivals.instants, dear.arrivals.instants)
    np.testing.assert_array_equal(cheap.row, dear.row)
    assert (cheap.stage != dear.stage).any()
    # The k-th batch of stage 0 has the same noise, whatever the policies did: its time over what its rows make it take.
    noise = []
    for record in (cheap, dear):
        own = np.flatnonzero(record.batch_stage == 0)
        own = own[np.argsort(record.batch_start_s[own])][:300]
        plain = THREE[0].a_s + THREE[0].b_s * record.batch_rows[own]
        noise.append((record.batch_finish_s[own] - record.batch_start_s[own]) / plain)
    np.testing.assert_allclose(noise[0], noise[1])


def test_replicas_share_the_work():
    twice = (THREE[0], THREE[1], replace(THREE[2], replicas=2))
    one, two = (run("poisson:400", seconds=5, servers=servers)[0] for servers in (THREE, twice))
    visits = [record.batch_rows[record.batch_stage == 2].sum() for record in (one, two)]
    assert 1.8 < visits[1] / visits[0] < 2.1
    assert two.replicas.tolist() == [1, 1, 2]


def test_a_replica_runs_one_batch_at_a_time():
    record, _ = run("poisson:1000", seconds=3)
    for stage in range(3):
        own = record.batch_stage == stage
        order = np.argsort(record.batch_start_s[own])
        start, finish = record.batch_start_s[own][order], record.batch_finish_s[own][order]
        assert (start[1:] >= finish[:-1] - 1e-12).all()


def test_work_under_a_slowdown_is_stretched_only_while_it_holds():
    # 1 s of work begun 0.4 s before a slowdown by 3 that lasts 0.9 s: 0.4 + 0.3 of it done by then, 0.3 s left.
    cluster = Cluster([StageServers(1.0, 0.0)], slowdowns=[Slowdown(0, 1.0, 1.9, 3.0)], cv=0.0)
    policy = Policy(configs([StageServers(1.0, 0.0)], [1], difficulty_ladder(9, (0.5,), (1.0,))), usual_deadline_s=50.0)
    table = difficulty_ladder(9, errors=(0.5,), cost=(1.0,))
    arrivals = replace(draw(parse_workload("constant:1"), 1.0, 0), instants=np.array([0.6]))
    record = simulate(policy, cluster, table, arrivals, np.zeros(1, dtype=np.intp), Clients(50.0))
    assert record.done_s.tolist() == pytest.approx([1.9 + 0.3])


def test_overlapping_slowdowns_multiply():
    slow = [Slowdown(0, 0.0, 9.0, 2.0), Slowdown(0, 0.0, 9.0, 1.5)]
    record, _ = run(
        "constant:1", seconds=1, servers=[StageServers(0.1, 0.0)], batch=[1], cv=0.0, slowdowns=slow, deadline_s=5.0,
        table=difficulty_ladder(9, errors=(0.5,), cost=(1.0,)),
    )  # fmt: skip
    assert record.done_s - record.arrivals.instants == pytest.approx([0.3])


def test_an_outage_of_a_middle_stage_is_passed_by():
    down = [Slowdown(1, 2.0, 4.0, OUT)]
    record, policy = run("poisson:60", seconds=6, slowdowns=down)
    agrees_with_counts(record, policy)
    instants = record.arrivals.instants
    during = (instants > 2.0) & (instants < 3.5)
    assert (record.stage[during] != 1).all()
    assert (record.stage[during] == 2).any()
    assert record.on_time[during].all()
    middle = record.batch_start_s[record.batch_stage == 1]
    assert [((middle > begin) & (middle < begin + 2)).any() for begin in (0, 2, 4)] == [True, False, True]


def test_an_outage_of_the_last_stage_is_answered_by_the_stages_before():
    record, policy = run("poisson:60", seconds=4, slowdowns=[Slowdown(2, 1.0, 3.0, OUT)])
    agrees_with_counts(record, policy)
    during = (record.arrivals.instants > 1.0) & (record.arrivals.instants < 2.9)
    assert record.on_time.all()
    assert (record.stage[during] < 2).all()
    assert (record.reason[during] == REASONS.index(ExitReason.FAILURE)).any()


def test_an_outage_of_the_first_stage_turns_requests_away_and_ends():
    record, policy = run("poisson:60", seconds=4, slowdowns=[Slowdown(0, 1.0, 3.0, OUT)])
    agrees_with_counts(record, policy)
    instants = record.arrivals.instants
    assert (record.ending[(instants > 1.0) & (instants < 3.0)] == Ending.SHED).all()
    assert (record.ending[instants > 3.01] == Ending.ANSWERED).all()


def test_a_stage_that_hangs_is_given_up_and_recovers():
    # 10,000 times slower for 3 s: batches are given up after a second, tried again, and rows answered from stage 0.
    table = difficulty_ladder(errors=(0.9, 0.1), cost=(1.0, 4.0))
    record, policy = run(
        "poisson:40", seconds=8, servers=THREE[:2], batch=BATCH[:2], table=table, slowdowns=[Slowdown(1, 1.0, 4.0, 1e4)]
    )
    agrees_with_counts(record, policy)
    assert record.on_time.all()
    assert policy.counts.stages[1].failures > 0
    assert (record.stage[record.arrivals.instants > 5.0] == 1).any()


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([3, 60, 600, 5000]),
    deadline_s=st.sampled_from([0.01, 0.05, 0.4, 3.0]),
    replicas=st.tuples(*[st.integers(1, 3)] * 3),
    calls=st.tuples(*[st.integers(1, 3)] * 3),
    cv=st.sampled_from([0.0, 0.1, 1.0]),
    hop_s=st.sampled_from([0.0, 0.002]),
    troubles=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(0.0, 0.5),
            st.floats(0.01, 0.6),
            st.sampled_from([0.5, 3.0, 100.0, 1e6, OUT]),
        ),
        max_size=4,
    ),
    seed=st.integers(0, 5),
)
def test_nothing_is_lost_whatever_happens(rate, deadline_s, replicas, calls, cv, hop_s, troubles, seed):
    # 60 examples of up to 300 requests; simulate() itself raises if a conservation law is broken.
    servers = [
        replace(server, replicas=n, calls_per_replica=c, hop_s=hop_s)
        for server, n, c in zip(THREE, replicas, calls, strict=True)
    ]
    slowdowns = [Slowdown(stage, begin, begin + lasts, factor) for stage, begin, lasts, factor in troubles]
    record, policy = run(
        f"poisson:{rate}",
        seconds=min(1.0, 300 / rate),
        servers=servers,
        deadline_s=deadline_s,
        cv=cv,
        slowdowns=slowdowns,
        seed=seed,
    )
    agrees_with_counts(record, policy)
    answered = record.ending == Ending.ANSWERED
    assert (record.done_s[answered] <= record.deadline_s[answered] + 1e-9).all()
    assert (record.batch_finish_s >= record.batch_start_s).all()


def test_a_planner_sees_the_rate_and_its_prices_are_obeyed():
    seen = []

    def planner(now, rate, policy):
        seen.append((now, rate))
        return (0.0, 2.0, 2.0) if now > 1.9 else None

    record, policy = run("step:100@2,400@2", planner=planner)
    agrees_with_counts(record, policy)
    assert [now for now, _ in seen] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
    # The estimate of a Poisson rate r with time constant tau has variance r / (2 tau) in the long run.
    for now, rate in seen:
        true = 100 if now <= 2.0 else 400 - 300 * np.exp(-(now - 2.0) / 0.5)
        assert abs(rate - true) < 4 * np.sqrt(400 / (2 * 0.5))
    instants = record.arrivals.instants
    assert (record.stage[instants > 2.0] == 0).all()
    assert (record.stage[instants < 1.8] > 0).any()
    assert record.prices[0] == (2.0, (0.0, 2.0, 2.0))


class _Law:
    """The product's policy with its face passed through, to break one law at a time."""

    def __init__(self, policy):
        self._policy = policy

    def __getattr__(self, name):
        return getattr(self._policy, name)


class _Forgetful(_Law):
    def completed(self, now, batch, judgement, run_s=None):
        return [c for c in self._policy.completed(now, batch, judgement, run_s) if not isinstance(c, Reply) or c.tag != 7]


class _Stuttering(_Law):
    def completed(self, now, batch, judgement, run_s=None):
        commands = self._policy.completed(now, batch, judgement, run_s)
        return commands + [command for command in commands if isinstance(command, Reply)][:1]


class _Overcharging(_Law):
    def completed(self, now, batch, judgement, run_s=None):
        commands = self._policy.completed(now, batch, judgement, run_s)
        for i, command in enumerate(commands):
            if isinstance(command, Reply):
                commands[i] = Reply(command.tag, command.answer._replace(cost=command.answer.cost + 1))
        return commands


@pytest.mark.parametrize(
    ("law", "complaint"), [(_Forgetful, "no ending"), (_Stuttering, "was answered and is"), (_Overcharging, "it used")]
)
def test_a_broken_law_is_an_error(law, complaint):
    table = difficulty_ladder()
    arrivals = draw(parse_workload("poisson:50"), 1.0, 0)
    policy = law(Policy(configs(THREE, BATCH, table), usual_deadline_s=0.4))
    with pytest.raises(ConservationBroken, match=complaint):
        simulate(policy, Cluster(THREE), table, arrivals, draw_rows(table, len(arrivals.instants), 0), Clients(0.4))


def test_simultaneous_arrivals_share_a_batch():
    table = difficulty_ladder()
    arrivals = replace(draw(parse_workload("constant:8"), 1.0, 0), instants=np.full(8, 0.5))
    policy = Policy(configs(THREE, BATCH, table), usual_deadline_s=0.4)
    record = simulate(policy, Cluster(THREE), table, arrivals, draw_rows(table, 8, 0), Clients(0.4))
    assert record.batch_rows[record.batch_stage == 0].tolist() == [8]


def test_progress_ends_near_one():
    shares = []
    table = difficulty_ladder()
    arrivals = draw(parse_workload("poisson:100"), 5.0, 0)
    policy = Policy(configs(THREE, BATCH, table), usual_deadline_s=0.4)
    rows = draw_rows(table, len(arrivals.instants), 0)
    simulate(policy, Cluster(THREE), table, arrivals, rows, Clients(0.4), progress=shares.append)
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1.0


def test_what_does_not_fit_together_is_refused():
    table = difficulty_ladder()
    policy = Policy(configs(THREE, BATCH, table), usual_deadline_s=0.4)
    arrivals = draw(parse_workload("poisson:50"), 1.0, run_streams(0)[0])
    rows = draw_rows(table, len(arrivals.instants), 0)
    with pytest.raises(ConfigError, match="3 stages, the cluster 2"):
        simulate(policy, Cluster(THREE[:2]), table, arrivals, rows, Clients(0.4))
    with pytest.raises(ConfigError, match="as many rows"):
        simulate(policy, Cluster(THREE), table, arrivals, rows[1:], Clients(0.4))
    with pytest.raises(ConfigError, match="deadline above 0"):
        Clients(0.0)
    with pytest.raises(ConfigError, match="factor above 0"):
        Slowdown(0, 2.0, 1.0, 3.0)
    with pytest.raises(ConfigError, match="names stage 3"):
        Cluster(THREE, slowdowns=[Slowdown(3, 0.0, 1.0, 2.0)])
    with pytest.raises(ConfigError, match="cv must be"):
        Cluster(THREE, cv=-1.0)
