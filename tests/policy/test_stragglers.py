"""Who is ejected, and who never is: replicas that do not answer, that are slow, that fail; and how they come back."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.stragglers import (
    ENOUGH,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    NEW_STALL_FLOOR_S,
    SLOW_FACTOR,
    STALL_FACTOR,
    STALL_FLOOR_S,
    Stragglers,
)

A, B, C, D = 1, 2, 3, 4
PACE_S = 0.02


class Stage:
    """Replicas of a stage in virtual time: calls go where a test sends them, and take as long as it says."""

    def __init__(self, *running: int) -> None:
        self.running = set(running)
        self.judge = Stragglers()
        self.now = 0.0
        self.where: dict[int, int | None] = {}
        self._numbers = count(1)
        self.judge.look(0.0, self.running, {})

    def begin(self, replica: int, kind: object = "call", to: int | None = None) -> int:
        number = next(self._numbers)
        self.judge.begun(self.now, number, kind, to)
        self.where[number] = replica
        return number

    def call(self, replica: int, seconds: float = PACE_S, kind: object = "call", to: int | None = None) -> None:
        number = self.begin(replica, kind, to)
        self.now += seconds
        self.judge.answered(self.now, number, self.where.pop(number))

    def look(self) -> list[int]:
        return self.judge.look(self.now, self.running, self.where)

    def calls(self, times: int, seconds: dict[int, float]) -> None:
        for _ in range(times):
            for replica, each in seconds.items():
                self.call(replica, each)
            self.look()


def stalled(stage: Stage, replica: int, *others: int) -> int:
    """Let a replica stop answering while the others go on; the call that it has."""
    stage.calls(ENOUGH, dict.fromkeys((replica, *others), PACE_S))
    number = stage.begin(replica)
    while replica not in stage.judge.ejected:
        assert stage.now < 60
        stage.calls(1, dict.fromkeys(others, PACE_S))
    return number


# -- stalled -----------------------------------------------------------------------------------------------------------


def test_a_replica_that_stops_answering_while_others_go_on_is_ejected_within_a_second():
    stage = Stage(A, B)
    began_s = ENOUGH * 2 * PACE_S
    stalled(stage, A, B)
    assert stage.judge.ejected == {A}
    assert STALL_FLOOR_S < stage.now - began_s < 1.0


def test_calls_with_a_replica_that_stalls_are_given_up():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    first, second = stage.begin(A), stage.begin(A)
    stage.now += STALL_FLOOR_S
    third = stage.begin(A)  # not overdue itself, but with the same replica
    mine = stage.begin(B)
    stage.call(B)
    assert sorted(stage.look()) == [first, second, third]
    assert mine in stage.where


def test_nobody_is_ejected_where_nobody_answers():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    stage.begin(A)
    stage.begin(B)
    stage.now += 30
    assert stage.look() == []
    assert stage.judge.ejected == set()


def test_a_call_that_a_peer_answered_before_this_one_began_tells_nothing():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    other = stage.begin(B)
    stage.now += 0.001
    stage.begin(A)
    stage.now += 10
    stage.judge.answered(stage.now, other, B)
    assert stage.look() == []


def test_a_single_replica_is_never_ejected():
    stage = Stage(A)
    stage.calls(ENOUGH, {A: PACE_S})
    number = stage.begin(A)
    stage.now += 30
    assert stage.look() == []
    stage.judge.failed(stage.now, number, A)
    for _ in range(20):
        stage.judge.failed(stage.now, stage.begin(A), A)
    stage.look()
    assert stage.judge.ejected == set()


def test_calls_that_take_long_are_waited_for_in_proportion():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: 1.0, B: 1.0})
    stage.begin(A)
    for _ in range(int(STALL_FACTOR)):
        stage.call(B, 1.0)
        assert stage.look() == []
    stage.call(B, 1.0)
    assert len(stage.look()) == 1


def test_the_first_call_of_a_new_replica_may_take_longer():
    stage = Stage(A, B)
    stage.calls(2 * ENOUGH, {B: PACE_S})
    stage.begin(A)
    while stage.now < 2 * ENOUGH * PACE_S + NEW_STALL_FLOOR_S - PACE_S:
        stage.call(B)
        assert stage.look() == []
    stage.calls(2, {B: PACE_S})
    assert stage.judge.ejected == {A}


def test_a_call_that_its_sender_gave_up_still_tells_that_the_replica_did_not_answer():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    number = stage.begin(A)
    stage.now += STALL_FLOOR_S / 2
    stage.judge.left(stage.now, number, stage.where.pop(number))
    stage.now += STALL_FLOOR_S
    stage.calls(1, {B: PACE_S})
    assert stage.judge.ejected == {A}


def test_a_replica_that_answers_a_later_call_is_forgiven_the_one_that_was_given_up():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    number = stage.begin(A)
    stage.now += PACE_S
    stage.judge.left(stage.now, number, stage.where.pop(number))
    stage.calls(40, {A: PACE_S, B: PACE_S})
    assert stage.now > STALL_FLOOR_S
    assert stage.judge.ejected == set()


# -- slow, and failing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [3.0, 10.0])
def test_a_replica_that_is_several_times_slower_than_its_peers_is_ejected(factor):
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    stage.calls(ENOUGH + 1, {A: factor * PACE_S, B: PACE_S})
    assert stage.judge.ejected == {A}


def test_where_all_are_slow_nobody_is_ejected():
    stage = Stage(A, B, C)
    stage.calls(ENOUGH, dict.fromkeys((A, B, C), PACE_S))
    stage.calls(30, dict.fromkeys((A, B, C), 20 * PACE_S))
    assert stage.judge.ejected == set()


def test_a_replica_that_is_a_little_slower_keeps_its_calls():
    stage = Stage(A, B)
    stage.calls(30, {A: 0.9 * SLOW_FACTOR * PACE_S, B: PACE_S})
    assert stage.judge.ejected == set()


def test_a_way_of_a_few_milliseconds_more_is_no_reason():
    stage = Stage(A, B)
    stage.calls(30, {A: 0.006, B: 0.001})
    assert stage.judge.ejected == set()


def test_large_batches_are_compared_with_large_ones():
    stage = Stage(A, B)
    for _ in range(30):
        for kind, seconds in (("large", 0.2), ("small", 0.02)):
            stage.call(A, seconds, kind)
        stage.call(B, 0.02, "small")
        stage.look()
    assert stage.judge.ejected == set()


def test_a_replica_that_fails_what_others_can_do_is_ejected():
    stage = Stage(A, B)
    for _ in range(ENOUGH):
        number = stage.begin(A)
        stage.judge.failed(stage.now, number, stage.where.pop(number))
        stage.call(B)
    stage.look()
    assert stage.judge.ejected == {A}


def test_where_all_fail_nobody_is_ejected():
    stage = Stage(A, B)
    for _ in range(30):
        for replica in (A, B):
            number = stage.begin(replica)
            stage.judge.failed(stage.now, number, stage.where.pop(number))
        stage.look()
    assert stage.judge.ejected == set()


# -- back again --------------------------------------------------------------------------------------------------------


def test_after_a_pause_one_call_probes_and_a_good_answer_lets_the_replica_in():
    stage = Stage(A, B)
    stalled(stage, A, B)
    assert stage.judge.probe(stage.now) is None
    stage.now += FIRST_PAUSE_S
    assert stage.judge.probe(stage.now) == A
    number = stage.begin(A, to=A)
    assert stage.judge.probe(stage.now) is None  # one at a time
    stage.now += PACE_S
    stage.judge.answered(stage.now, number, A)
    assert stage.judge.ejected == set()


def test_probes_that_get_no_answer_are_given_up_and_come_ever_later():
    stage = Stage(A, B)
    number = stalled(stage, A, B)
    stage.judge.left(stage.now, number, stage.where.pop(number))
    pauses = []
    for _ in range(6):
        began_s = stage.now
        while stage.judge.probe(stage.now) is None:
            stage.now += 0.01
        pauses.append(round(stage.now - began_s, 1))
        number = stage.begin(A, to=A)
        stage.now += STALL_FLOOR_S + 0.01
        assert stage.look() == [number]
        stage.judge.left(stage.now, number, stage.where.pop(number))
        assert stage.judge.ejected == {A}
    assert pauses == pytest.approx(
        [FIRST_PAUSE_S, 2, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S], abs=0.1
    )


def test_a_probe_that_is_answered_slowly_leaves_the_replica_out():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    stage.calls(ENOUGH + 1, {A: 10 * PACE_S, B: PACE_S})
    stage.now += FIRST_PAUSE_S
    stage.call(A, 10 * PACE_S, to=stage.judge.probe(stage.now))
    assert stage.judge.ejected == {A}


def test_a_late_answer_to_an_old_call_does_not_end_an_ejection():
    stage = Stage(A, B)
    number = stalled(stage, A, B)
    stage.judge.answered(stage.now, number, stage.where.pop(number))
    assert stage.judge.ejected == {A}


def test_the_slow_calls_of_before_do_not_count_against_a_replica_that_is_back():
    stage = Stage(A, B)
    stage.calls(ENOUGH, {A: PACE_S, B: PACE_S})
    stage.calls(ENOUGH + 1, {A: 10 * PACE_S, B: PACE_S})
    stage.now += FIRST_PAUSE_S
    stage.call(A, to=stage.judge.probe(stage.now))
    stage.calls(20, {A: PACE_S, B: PACE_S})
    assert stage.judge.ejected == set()


# -- how many ----------------------------------------------------------------------------------------------------------


def test_at_most_half_of_the_replicas_are_left_out():
    stage = Stage(A, B, C)
    stage.calls(ENOUGH, dict.fromkeys((A, B, C), PACE_S))
    stage.begin(A)
    stage.begin(B)
    stage.now += 1
    stage.calls(1, {C: PACE_S})
    assert len(stage.judge.ejected) == 1


def test_a_replica_that_is_left_out_serves_again_where_the_others_have_gone():
    stage = Stage(A, B)
    stalled(stage, A, B)
    stage.running = {A}
    stage.look()
    assert stage.judge.ejected == set()


def test_what_is_known_of_a_replica_goes_with_it():
    stage = Stage(A, B)
    number = stalled(stage, A, B)
    stage.judge.left(stage.now, number, stage.where.pop(number))
    stage.running = {B, C}
    stage.look()
    assert stage.judge.ejected == set()
    assert stage.judge.calls == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "answer", "fail", "leave", "look", "go", "come"]),
        st.sampled_from([A, B, C, D]),
        st.floats(0, 3),
    ),
    max_size=80,
)


@given(EVENTS)
def test_whatever_happens_at_most_half_are_out_every_call_ends_and_only_ejected_replicas_are_probed(events):
    stage = Stage(A, B, C)
    under_way: list[int] = []
    for what, replica, seconds in events:
        stage.now += seconds
        if what == "begin":
            to = stage.judge.probe(stage.now)
            assert to is None or to in stage.judge.ejected
            under_way.append(stage.begin(replica if to is None else to, to=to))
        elif what in ("answer", "fail", "leave") and under_way:
            number = under_way.pop(0)
            end = {"answer": stage.judge.answered, "fail": stage.judge.failed, "leave": stage.judge.left}[what]
            end(stage.now, number, stage.where.pop(number))
        elif what == "go":
            stage.running.discard(replica)
        elif what == "come":
            stage.running.add(replica)
        hopeless = stage.look()
        assert set(hopeless) <= set(under_way)
        assert len(hopeless) == len(set(hopeless))
        assert stage.judge.ejected <= stage.running
        assert len(stage.judge.ejected) <= len(stage.running) // 2
        assert stage.judge.calls == len(under_way)
