"""One policy takes over from another: rows stay where they were admitted, and the places and counters are there once."""

import pytest
from builders import MS, admit, batches, judged, ladder, replies, request, stage
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.commands import Reply
from cascade.policy.succession import take_over


def pair(slots=2):
    """A policy and the one that takes over from it, which wants less for a visit to the second stage."""
    stages = (stage(slots=slots, batch=2), stage(slots=slots, batch=2, cost=10.0, base_price=0.5))
    before = ladder(*stages)
    after = ladder(stages[0], stage(slots=slots, batch=2, cost=10.0, base_price=0.1))
    take_over(after, before)
    return before, after


def test_each_row_is_decided_by_the_policy_that_admitted_it():
    before, after = pair()
    admit(before, 0.0, request("old"))
    admit(after, 0.0, request("new"))
    (old,), (new,) = batches(before.dispatch(0.0)), batches(after.dispatch(0.0))
    (answer,) = replies(before.completed(MS, old, judged([0.3])))
    assert answer.tag == "old"
    assert not answer.answer.degraded
    assert replies(after.completed(MS, new, judged([0.3]))) == [], "worth its price to the new one, and on its way"
    assert [batch.stage for batch in batches(after.dispatch(MS))] == [1]


def test_a_place_that_one_has_taken_is_taken_for_both():
    before, after = pair(slots=1)
    admit(before, 0.0, request("old"))
    admit(after, 0.0, request("new"))
    (batch,) = batches(before.dispatch(0.0))
    assert batches(after.dispatch(0.0)) == []
    before.completed(MS, batch, judged([0.0]))
    assert len(batches(after.dispatch(MS))) == 1


def test_counters_and_learned_times_go_on():
    before, after = pair()
    admit(before, 0.0, request())
    (batch,) = batches(before.dispatch(0.0))
    before.completed(64 * MS, batch, judged([0.0]))
    assert after.counts.answered == 1
    assert after.capacities[0].service.correction > 1
    assert (after.counts.arrived, after.counts.live) == (1, 0)


def test_a_stage_that_is_out_is_out_for_the_rows_of_both():
    before, after = pair(slots=1)
    for policy, tag in ((before, "old"), (after, "new")):
        admit(policy, 0.0, request(tag))
        (batch,) = batches(policy.dispatch(0.0))
        assert replies(policy.completed(MS, batch, judged([0.9]))) == []
    gone = [command for policy in (before, after) for command in policy.set_slots(1, 0)]
    assert sorted(command.tag for command in gone if isinstance(command, Reply)) == ["new", "old"]
    assert before.capacities[1] is after.capacities[1]


def test_policies_of_different_ladders_do_not_take_over():
    with pytest.raises(ValueError, match=r"\(1, 1\) stages and classes cannot take over from one of \(2, 1\)"):
        take_over(ladder(stage()), ladder(stage(), stage(cost=10.0)))


@given(st.lists(st.tuples(st.sampled_from("oncd"), st.floats(0, 1)), max_size=60))
def test_together_they_never_exceed_the_places_and_lose_no_row(events):
    before, after = pair()
    running, seen, now = [], 0, 0.0
    for kind, value in events:
        now += MS * value
        if kind in "on":
            admitted = (before if kind == "o" else after).arrived(
                now, (request(arrived_s=now, answer_by_s=now + 900, deadline_s=now + 999),)
            )
            seen += isinstance(admitted, tuple)
        elif kind == "c" and running:
            policy, batch = running.pop(int(value * (len(running) - 1)))
            policy.completed(now, batch, judged(*([[value]] if batch.stage == 0 else [[]]) * len(batch.walks)))
        for policy in (before, after):
            running += [(policy, batch) for batch in batches(policy.dispatch(now))]
        for place, capacity in enumerate(before.capacities):
            assert sum(batch.stage == place for _, batch in running) == capacity.busy <= capacity.slots
    while running:
        policy, batch = running.pop()
        policy.completed(now, batch, judged(*([[0.3]] if batch.stage == 0 else [[]]) * len(batch.walks)))
        for each in (before, after):
            running += [(each, batch) for batch in batches(each.dispatch(now))]
    assert before.counts.answered == seen
    assert before.counts.live == 0
