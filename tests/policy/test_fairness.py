"""Fairness between tenants: rates, fair rates, turns in the queue, and who pays a surcharge."""

from collections import Counter

import pytest
from builders import MS, at_stage0, batches, judged, ladder, reasons, request, stage
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.classes import PROTECTED
from cascade.policy.fairness import MOST_TENANTS, TAU_S, FairShare, Tenants, fair_rate
from cascade.policy.lanes import Lanes
from cascade.policy.queue import StageQueue
from cascade.policy.request import ExitReason
from cascade.policy.walk import Walk

rates = st.lists(st.floats(0, 1000), max_size=12)
ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 2), st.integers(0, 6), st.booleans()), min_size=1, max_size=30
)


def entries(rows) -> list:
    """Queue entries of (tenant, priority, value, protected), least valuable first."""
    made = []
    for place, (tenant, priority, value, protected) in enumerate(rows):
        walk = Walk(request(place, tenant=tenant, priority=priority))
        made.append((value / 8 + PROTECTED * protected, -place, walk))
    return sorted(made)


def lanes(found) -> Lanes:
    """These entries, waiting."""
    return Lanes({entry[1]: entry for entry in found})


def lane(entry) -> tuple[int, bool]:
    return entry[2].request.priority, entry[0] >= PROTECTED


def tenants(found) -> list[str]:
    return [entry[2].request.tenant for entry in found]


# -- rates -------------------------------------------------------------------------------------------------------------


@given(rates, st.floats(0.1, 1000))
def test_the_fair_rate_fills_the_capacity_or_limits_nobody(found, capacity):
    fair = fair_rate(found, capacity)
    assert sum(min(rate, fair) for rate in found) == pytest.approx(min(capacity, sum(found)))
    assert fair >= capacity / max(1, len(found)) or fair == pytest.approx(capacity / len(found))


def test_the_fair_rate_gives_what_the_small_leave_to_the_large():
    assert fair_rate([1.0, 10.0, 10.0], 9.0) == 4.0
    assert fair_rate([1.0, 2.0], 9.0) == float("inf")


def test_a_steady_tenants_rate_is_found_and_fades_when_it_stops():
    known = Tenants()
    known.arrived(0.0, "other", 1)
    for i in range(5000):
        known.arrived(i / 1000, "flood", 1)
        if i % 10 == 0:
            known.arrived(i / 1000, "polite", 2)
    assert known.rate(5.0, "flood") == pytest.approx(1000, rel=0.02)
    assert known.rate(5.0, "polite") == pytest.approx(200, rel=0.02)
    assert known.rate(5.0 + 3 * TAU_S, "flood") < 60
    assert known.rate(5.0, "stranger") == 0.0


def test_one_tenant_alone_is_not_counted_and_never_within_a_fair_share():
    known = Tenants()
    for i in range(100):
        known.arrived(i / 10, "only", 1)
    assert not known.several
    assert not FairShare(known).holds(10.0, "only", 1e9)


def test_of_many_tenants_those_not_seen_for_longest_are_forgotten():
    known = Tenants()
    for i in range(3 * MOST_TENANTS):
        known.arrived(i * 1e-6, f"t{i}", 1)
        known.arrived(i * 1e-6, "faithful", 1)
    assert len(known.rates(1.0)) == MOST_TENANTS
    assert known.rate(1.0, "faithful") > known.rate(1.0, f"t{3 * MOST_TENANTS - 1}") > 0.0
    assert known.rate(1.0, "t1") == 0.0


# -- turns -------------------------------------------------------------------------------------------------------------


@given(ROWS, st.integers(1, 12))
def test_turns_give_each_lane_what_its_rank_gives_it_and_no_tenant_two_more_than_one_that_waits(rows, count):
    ranked = entries(rows)[::-1]
    chosen, _ = lanes(ranked).by_turns(ranked[:count], {})
    assert Counter(map(lane, chosen)) == Counter(map(lane, ranked[:count]))
    assert chosen == sorted(chosen, reverse=True)
    for each in {lane(entry) for entry in chosen}:
        here = [entry for entry in ranked if lane(entry) == each]
        got = Counter(tenants(entry for entry in chosen if lane(entry) == each))
        for tenant, waiting in Counter(tenants(here)).items():
            mine = [entry for entry in here if entry[2].request.tenant == tenant]
            assert [e for e in mine if e in chosen] == mine[: got[tenant]], "not its most valuable first"
            if got[tenant] < waiting:
                assert max(got.values()) <= got[tenant] + 1


@given(ROWS, st.integers(1, 12))
def test_with_one_tenant_the_turns_are_the_order_of_the_queue(rows, count):
    ranked = entries([("a", *rest) for _, *rest in rows])[::-1]
    assert lanes(ranked).by_turns(ranked[:count], {})[0] == ranked[:count]
    unprotected = [entry for entry in ranked[::-1] if entry[0] < PROTECTED]
    gone = lanes(unprotected).least_fair(unprotected[:count])
    assert sorted(gone) == sorted(unprotected[:count])


def test_whose_turn_is_next_is_remembered_from_batch_to_batch():
    queue = StageQueue()
    for i in range(12):
        tenant = "flood" if i < 10 else f"small{i}"
        queue.push(Walk(request(i, tenant=tenant)), 0.5 if i < 10 else 0.25)
    taken = [next(w.request.tenant for w in queue.take(0.0, 1, lambda rows: 0.0)[0]) for _ in range(4)]
    assert sorted(taken[:3]) == ["flood", "small10", "small11"]
    assert taken[3] == "flood"


@given(ROWS, st.integers(1, 12))
def test_eviction_takes_from_each_class_what_its_rank_loses_and_from_whoever_has_most(rows, count):
    ranked = [entry for entry in entries(rows) if entry[0] < PROTECTED]
    gone = lanes(ranked).least_fair(ranked[:count])
    assert Counter(map(lane, gone)) == Counter(map(lane, ranked[:count]))
    for each in {lane(entry) for entry in gone}:
        before = Counter(tenants(entry for entry in ranked if lane(entry) == each))
        lost = Counter(tenants(entry for entry in gone if lane(entry) == each))
        left = before - lost
        for tenant in lost:
            mine = [e for e in ranked if lane(e) == each and e[2].request.tenant == tenant]
            assert [e for e in mine if e in gone] == mine[: lost[tenant]], "not its least valuable first"
            assert max(left.values(), default=0) <= left[tenant] + 1


def test_in_a_full_queue_the_flooding_tenants_rows_leave_though_the_others_are_worth_less():
    queue = StageQueue()
    for i in range(10):
        queue.push(Walk(request(i, tenant="flood")), 0.5)
    queue.push(Walk(request("small", tenant="small")), 0.1)
    assert {walk.request.tenant for walk in queue.evict(6)} == {"flood"}
    batch, _ = queue.take(0.0, 3, lambda rows: 0.0)
    assert "small" in [walk.request.tag for walk in batch]


def test_turns_are_kept_among_the_rows_that_can_be_in_time():
    queue = StageQueue()
    for i in range(6):
        queue.push(Walk(request(f"flood{i}", tenant="flood", deadline_s=100.0)), 0.5)
    queue.push(Walk(request("late", tenant="flood", deadline_s=1.5)), 0.5)
    queue.push(Walk(request("small", tenant="small", deadline_s=100.0)), 0.1)
    batch, late = queue.take(0.0, 4, lambda rows: 1.0 + rows / 2)
    assert late == []
    assert "small" in [walk.request.tag for walk in batch]
    assert "late" not in [walk.request.tag for walk in batch]
    assert len(batch) == 4


# -- prices ------------------------------------------------------------------------------------------------------------


def flooded(uncongested_rate: float):
    """A policy that has seen a tenant of about 1,000 rows/s and one of about 10, with a price set."""
    policy = ladder(stage(batch=16), stage(cost=10, base_price=0.0625))
    for i in range(2000):
        policy.door(i / 1000, -1.0, 1, tenant="flood")  # counted by `arrived` alone, which is asked below
    for i in range(400):
        now = 1.6 + i / 1000
        policy.arrived(now, [request(i, now, now, now, tenant="flood")])
        if i % 100 == 0:
            policy.arrived(now, [request(i, now, now, now, tenant="polite")])
    running = batches(policy.dispatch(2.0))
    policy.tick(2.0)
    for batch in running:
        policy.completed(2.0, batch, judged(*[[0.0]] * len(batch.walks)))
    policy.set_prices([0.0, 0.5], uncongested_rate)
    return policy


@pytest.mark.parametrize(
    ("uncongested_rate", "stopped"), [(100.0, {"flood"}), (float("inf"), {"flood", "polite"}), (4.0, {"flood", "polite"})]
)
def test_a_tenant_within_its_fair_rate_pays_no_surcharge(uncongested_rate, stopped):
    policy = flooded(uncongested_rate)
    rows = [request(name, 2.0, 2.9, 3.0, tenant=name) for name in ("flood", "polite")]
    walks = [policy.arrived(2.0, [row])[0] for row in rows]
    found = {}
    for command in policy.dispatch(2.0):
        batch = command.batch
        found |= reasons(policy.completed(2.0 + MS, batch, judged(*[[0.25]] * len(batch.walks))))
    assert all(walk.has_answer or walk.done for walk in walks)
    assert {tag for tag, reason in found.items() if reason is ExitReason.PRICE} == stopped


def test_with_one_tenant_every_row_pays_the_present_price():
    policy = ladder(stage(batch=16), stage(cost=10, base_price=0.0625))
    policy.set_prices([0.0, 0.5], 1e9)
    batch = at_stage0(policy, request("a"), request("b"))
    assert set(reasons(policy.completed(MS, batch, judged([0.25], [0.75])))) == {"a"}
