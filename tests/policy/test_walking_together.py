"""Rows that walk together: each fares as it would alone, whatever happens, at the work of one row where that can be."""

from collections.abc import Callable
from math import inf

import pytest
from builders import MS, admit, at_stage0, batches, judged, ladder, only_reply, replies, request, stage, three
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.policy import Policy
from cascade.policy.request import ExitReason, Request
from cascade.policy.walk import State, Walk

RowId = tuple[int, int]
"""A message, and a row of it."""


class Driver:
    """Drives a policy and keeps a book of every row.

    Args:
        policy: fresh.
        together: whether the rows of a message come as one request, or as a request each.
    """

    def __init__(self, policy: Policy, *, together: bool) -> None:
        self.policy = policy
        self.together = together
        self.messages: list[tuple[Walk, ...]] = []
        self.running: list[Batch] = []
        self.book: list[tuple[object, ...]] = []

    def arrive(self, now: float, rows: int, left_s: float, priority: int, budget: float, tenant: str, lag_s: float) -> None:
        facts = (now, max(now, now + left_s - MS), now + left_s, priority, budget, tenant)
        message = len(self.messages)
        if self.together:
            verdict = self.policy.arrived(now, [Request((message, 0), *facts, rows=rows)], lag_s)
        else:
            verdict = self.policy.arrived(now, [Request((message, row), *facts) for row in range(rows)], lag_s)
        if isinstance(verdict, Shed):
            self.book.append(("shed", message, verdict))
            verdict = ()
        self.messages.append(verdict)

    def complete(self, now: float, place: int, gain: Callable[[int, RowId], float], salt: int) -> None:
        if not self.running:
            return
        batch = self.running.pop(place % len(self.running))
        behind = self.policy_stages - 1 - batch.stage
        gains = [[gain(batch.stage + step, row) for step in range(behind)] for row in rows_of(batch)]
        poisoned = [at for at, row in enumerate(rows_of(batch)) if hash((row, salt)) % 11 == 0]
        self.obey(now, self.policy.completed(now, batch, judged(*gains), poisoned=poisoned))

    @property
    def policy_stages(self) -> int:
        return len(self.policy.capacities)

    def fail(self, now: float, place: int) -> None:
        if self.running:
            self.obey(now, self.policy.failed(now, self.running.pop(place % len(self.running))))

    def cancel(self, place: int) -> None:
        for walk in self.messages[place % len(self.messages)] if self.messages else ():
            self.policy.cancelled(walk)

    def obey(self, now: float, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Run(batch):
                    self.running.append(batch)
                case Abandon(batch):
                    self.running.remove(batch)
                case Reply((message, row), answer, places):
                    for place in places:
                        at = answer.row + place - places[0]
                        facts = answer._replace(row=at, judgement=answer.judgement.gains[at].tolist())
                        self.book.append((now, "answered", message, row + place, facts))
                case Expire((message, row), places) | Fail((message, row), places):
                    self.book.extend((now, type(command), message, row + place) for place in places)

    def state(self) -> tuple[object, ...]:
        """All that can be seen of it; what happened at one instant in no order."""
        return (
            sorted(self.book, key=repr),
            [(batch.stage, batch.attempt, batch.started_s, batch.give_up_s, rows_of(batch)) for batch in self.running],
            [self.policy.waiting(index) for index in range(self.policy_stages)],
            repr(self.policy.counts),
            self.policy.next_timer(),
        )


def rows_of(batch: Batch) -> list[RowId]:
    found = []
    for walk in batch.walks:
        message, row = walk.request.tag
        found += [(message, row + place) for place in walk.places]
    assert len(found) == batch.rows
    return found


LEFT = st.sampled_from([0, 8, 12, 16, 24, 40, 100, 400])
STEP = st.one_of(
    st.tuples(
        st.just("arrive"),
        st.integers(1, 9),
        LEFT.map(lambda left: left * MS),
        st.integers(1, 3),
        st.sampled_from([inf, inf, inf, 1.0, 11.0, 0.5]),
        st.sampled_from(["", "", "", "a", "b"]),
        st.sampled_from([0.0, 0.0, 30 * MS]),
    ),
    st.tuples(st.just("complete"), st.integers(0, 7)),
    st.tuples(st.just("complete"), st.integers(0, 7)),
    st.tuples(st.just("fail"), st.integers(0, 7)),
    st.tuples(st.just("cancel"), st.integers(0, 7)),
    st.tuples(st.just("pass"), st.integers(1, 40)),
    st.tuples(st.just("prices"), st.sampled_from([0.0, 0.25, 0.5])),
    st.tuples(st.just("slots"), st.integers(0, 2), st.integers(0, 2)),
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(STEP, st.booleans()), min_size=4, max_size=40),
    most=st.sampled_from([1, 3, 4, 8]),
    salt=st.integers(0, 1000),
    floor=st.sampled_from([None, 0.25]),
    single=st.booleans(),
)
def test_rows_that_walk_together_fare_as_rows_that_walk_alone(steps, most, salt, floor, single):
    stages = [stage(1, most, 1), stage(2, 3, 10, 0.125), stage(1, 2, 100)][: 1 if single else 3]
    classes = [ClassConfig(1.0, None if floor is None else (floor,) * len(stages)), ClassConfig(0.5)]

    def gain(index: int, row: RowId) -> float:
        return (hash((index, row, salt)) % 17 - 8) / 16

    drivers = [
        Driver(Policy(stages, usual_deadline_s=64 * MS, wait_share=1.0, classes=classes), together=together)
        for together in (True, False)
    ]
    now = 0.0
    for (what, *with_what), dispatch in steps:
        if what == "pass":
            now += with_what[0] * MS
        for driver in drivers:
            policy = driver.policy
            match what:
                case "arrive":
                    driver.arrive(now, *with_what)
                case "complete":
                    driver.complete(now, *with_what, gain, salt)
                case "fail":
                    driver.fail(now, *with_what)
                case "cancel":
                    driver.cancel(*with_what)
                case "pass":
                    driver.obey(now, policy.tick(now))
                case "prices":
                    policy.set_prices(with_what * len(stages))
                case "slots":
                    driver.obey(now, policy.set_slots(with_what[0] % len(stages), with_what[1]))
            if dispatch:
                driver.obey(now, policy.dispatch(now))
        together, alone = drivers
        assert together.state() == alone.state()


def message(rows: int, tag: object = "m", **more) -> Request:
    return request(tag, **more)._replace(rows=rows)


def test_rows_that_stop_leave_together_and_the_others_alone():
    policy = three()
    batch = at_stage0(policy, message(4))
    assert (len(batch.walks), batch.rows) == (1, 4)
    reply = only_reply(policy.completed(MS, batch, judged([0.0, 0.0], [0.5, 0.5], [0.0, 0.0], [0.5, 0.5])))
    assert (list(reply.places), reply.answer.row, reply.answer.reason) == ([0, 2], 0, ExitReason.CONFIDENT)
    (batch,) = batches(policy.dispatch(MS))
    assert [list(walk.places) for walk in batch.walks] == [[1], [3]]
    found = replies(policy.completed(2 * MS, batch, judged([0.0], [0.0])))
    assert [(list(reply.places), reply.answer.row, reply.answer.cost) for reply in found] == [([1], 0, 11.0), ([3], 1, 11.0)]
    assert (policy.counts.answered, policy.counts.cost, policy.counts.live) == (4, 2 * 1.0 + 2 * 11.0, 0)
    assert policy.next_timer() is None


def test_a_message_larger_than_a_batch_takes_several_and_the_rest_of_one_shares_its_batch_with_the_next():
    policy = ladder(stage(3, batch=4))
    admit(policy, 0.0, message(6, "a"))
    admit(policy, 0.0, message(4, "b"))
    found = batches(policy.dispatch(0.0))
    assert [[(walk.request.tag, list(walk.places)) for walk in batch.walks] for batch in found] == [
        [("a", [0, 1, 2, 3])],
        [("a", [4, 5]), ("b", [0, 1])],
        [("b", [2, 3])],
    ]
    answered = [reply for batch in found for reply in replies(policy.completed(MS, batch, judged(*[[]] * batch.rows)))]
    assert [(reply.tag, list(reply.places), reply.answer.row) for reply in answered] == [
        ("a", [0, 1, 2, 3], 0),
        ("a", [4, 5], 0),
        ("b", [0, 1], 2),
        ("b", [2, 3], 0),
    ]


def test_a_client_that_leaves_takes_all_rows_with_it_wherever_they_are():
    policy = three()
    (walk,) = admit(policy, 0.0, message(6))
    (batch,) = batches(policy.dispatch(0.0))
    policy.completed(MS, batch, judged([0.0, 0.0], *[[0.5, 0.5]] * 3))
    assert (policy.waiting(0), policy.waiting(1)) == (2, 3)
    policy.cancelled(walk)
    assert (policy.counts.answered, policy.counts.cancelled, policy.counts.live) == (1, 5, 0)
    assert (policy.waiting(0), policy.waiting(1)) == (0, 0)
    assert policy.next_timer() is None


def test_rows_without_an_answer_expire_together_while_those_that_have_one_are_answered():
    policy = ladder(stage(1, batch=3, timeout_floor_s=4.0), stage(timeout_floor_s=4.0))
    admit(policy, 0.0, message(5))
    (batch,) = batches(policy.dispatch(0.0))
    policy.completed(MS, batch, judged([0.5], [0.5], [0.0]))
    assert batches(policy.dispatch(MS))
    answered = replies(policy.tick(0.9375))
    assert sorted(place for reply in answered for place in reply.places) == [0, 1]
    assert policy.next_timer() == 1.0
    expired = [command for command in policy.tick(1.0) if isinstance(command, Expire)]
    assert [list(command.places) for command in expired] == [[3, 4]]
    assert (policy.counts.answered, policy.counts.expired, policy.counts.live) == (3, 2, 0)


def test_rows_part_where_tenants_take_turns():
    policy = ladder(stage(1, batch=4))
    admit(policy, 0.0, message(6, "a", tenant="a"))
    admit(policy, 0.0, message(6, "b", tenant="b"))
    (batch,) = batches(policy.dispatch(0.0))
    assert [(walk.request.tag, *walk.places) for walk in batch.walks] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


@pytest.mark.parametrize("part", [lambda walk: [walk.part(2)], lambda walk: walk.part_each([1, 3])[1:]])
def test_what_is_parted_is_in_the_same_state_and_knows_its_own_rows(part):
    walk = Walk(message(4))
    walk.admit()
    walk.called(2 * MS, 3.0)
    walk.result(5 * MS, judged(*[[0.1 * row] for row in range(8)]), 4)
    others = part(walk)
    every = sorted([(place, each) for each in (walk, *others) for place in each.places], key=lambda found: found[0])
    assert [place for place, _ in every] == [0, 1, 2, 3]
    assert sum(each.rows for each in (walk, *others)) == 4
    for each in (walk, *others):
        assert (each.state, each.best[1][0, 0]) == (State.JUDGED, pytest.approx(0.1 * (4 + each.places[0])))
        answer = each.exit(ExitReason.CONFIDENT, deferred=False)
        assert (answer.cost, answer.row, [tuple(span) for span in answer.spans]) == (
            3.0,
            4 + each.places[0],
            [(0, 2 * MS, 3 * MS)],
        )
    assert walk.ended
    assert walk.parted == []
