"""The walk's table: what may happen to a row, and that nothing else can."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from builders import judged, request

from cascade.policy import walk as module
from cascade.policy.request import DEGRADING, ExitReason
from cascade.policy.walk import OUTCOMES, TRANSITIONS, Event, IllegalTransition, State, Walk, answers_so_far

FIRE: dict[Event, Callable[[Walk], object]] = {
    Event.ADMIT: lambda walk: walk.admit(),
    Event.SHED: lambda walk: walk.shed(),
    Event.CALL: lambda walk: walk.called(3.0, 10.0),
    Event.RETRY: lambda walk: walk.retried(),
    Event.RESULT: lambda walk: walk.result(4.0, judged([0.5]), 0),
    Event.DEFER: lambda walk: walk.defer(3.0, walk.stage + 1),
    Event.BYPASS: lambda walk: walk.bypass(walk.stage + 1),
    Event.EXIT: lambda walk: walk.exit(ExitReason.DEADLINE, deferred=False),
    Event.EXPIRE: lambda walk: walk.expire(),
    Event.FAIL: lambda walk: walk.fail(),
    Event.CANCEL: lambda walk: walk.cancel(),
}


def walk_in(state: State) -> Walk:
    """A row that came to ``state`` by legal steps."""
    walk = Walk(request("tag"))
    if state is State.ARRIVED:
        return walk
    if state is State.SHED:
        walk.shed()
        return walk
    walk.admit()
    if state is State.WAITING:
        return walk
    if state in (State.EXPIRED, State.FAILED, State.CANCELLED):
        FIRE[{State.EXPIRED: Event.EXPIRE, State.FAILED: Event.FAIL, State.CANCELLED: Event.CANCEL}[state]](walk)
        return walk
    walk.called(1.0, 1.0)
    if state is State.RUNNING:
        return walk
    walk.result(2.0, judged([0.5]), 0)
    if state is State.JUDGED:
        return walk
    if state is State.ANSWERED:
        walk.exit(ExitReason.CONFIDENT, deferred=False)
        return walk
    walk.defer(2.0, 1)
    if state is State.ESCALATED:
        walk.called(3.0, 10.0)
    return walk


def facts(walk: Walk) -> tuple[object, ...]:
    return tuple(str(getattr(walk, name)) for name in Walk.__slots__)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_moves_a_row_as_the_table_says_or_raises_and_changes_nothing(state: State, event: Event):
    walk = walk_in(state)
    assert walk.state is state
    before = facts(walk)
    if event in TRANSITIONS[state]:
        FIRE[event](walk)
        assert walk.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition):
            FIRE[event](walk)
        assert facts(walk) == before


def test_a_result_is_only_for_a_row_that_is_with_a_stage():
    assert {state for state in State if Event.RESULT in TRANSITIONS[state]} == {State.RUNNING, State.ESCALATED}


def test_a_result_is_followed_by_a_decision_and_by_nothing_else():
    assert TRANSITIONS[State.JUDGED] == {Event.DEFER: State.DEFERRED, Event.EXIT: State.ANSWERED}


def test_the_best_answer_is_the_last_and_promises_what_its_evidence_says():
    walk = walk_in(State.ARRIVED)
    walk.admit()
    walk.called(1.0, 1.0)
    with pytest.raises(IllegalTransition, match="no answer in state running"):
        _ = walk.best
    walk.result(2.0, judged([0.1, 0.2], [0.3, 0.4]), 1)
    assert (walk.best[0], walk.best[1].tolist()) == (0, [[0.3, 0.4]])
    walk.defer(2.0, 1)
    walk.called(3.0, 10.0)
    assert walk.best[0] == 0
    walk.result(4.0, judged([0.5]), 0)
    assert (walk.best[0], walk.best[1].tolist()) == (1, [[0.5]])


def test_a_visit_costs_when_it_begins_and_a_retry_costs_nothing_more():
    walk = walk_in(State.DEFERRED)
    assert walk.cost == 1.0
    walk.called(3.0, 10.0)
    walk.retried()
    assert walk.cost == 11.0
    walk.result(4.0, judged([]), 0)
    assert walk.cost == 11.0


def test_outcomes_are_the_states_without_a_way_out():
    assert {State.ANSWERED, State.SHED, State.EXPIRED, State.FAILED, State.CANCELLED} == OUTCOMES
    assert all((walk_in(state).done) == (state in OUTCOMES) for state in State)


def test_a_row_that_holds_an_answer_can_only_end_answered_or_cancelled():
    reached, open_states = set(), [State.JUDGED, State.DEFERRED, State.ESCALATED]
    while open_states:
        state = open_states.pop()
        for following in TRANSITIONS[state].values():
            if following not in reached:
                reached.add(following)
                open_states.append(following)
    assert reached & OUTCOMES == {State.ANSWERED, State.CANCELLED}


def test_every_state_can_be_reached_and_every_open_state_can_end():
    following = {state: set(events.values()) for state, events in TRANSITIONS.items()}
    assert set().union(*following.values()) | {State.ARRIVED} == set(State)
    assert all(following[state] for state in State if state not in OUTCOMES)


def test_the_table_in_the_docstring_is_the_table():
    written: dict[State, dict[Event, State]] = {state: {} for state in State}
    state = None
    for line in (module.__doc__ or "").splitlines():
        if "→" not in line:
            continue
        first = line.split()[0]
        if first in set(State):
            state = State(first)
        assert state is not None
        for event, following in re.findall(r"([A-Z]+) → ([a-z]+)", line):
            written[state][Event[event]] = State(following)
    assert written == TRANSITIONS


def test_an_answer_says_where_it_came_from_and_what_it_cost():
    walk = Walk(request("tag", arrived_s=1.0))
    walk.admit()
    walk.called(1.5, 1.0)
    first, second = judged([0.5, 0.5], p_correct=0.6), judged([0.5], [0.5], p_correct=0.9)
    walk.result(2.0, first, 0)
    walk.defer(2.0, 1)
    walk.bypass(2)
    walk.called(3.0, 100.0)
    walk.result(5.0, second, 1)
    answer = walk.exit(ExitReason.LAST_STAGE, deferred=False)
    assert (answer.stage, answer.judgement, answer.row, answer.cost) == (2, second, 1, 101.0)
    assert [(span.stage, span.queued_s, span.run_s) for span in answer.spans] == [(0, 0.5, 0.5), (2, 1.0, 2.0)]
    assert (answer.deferrals, answer.escalations, answer.degraded, answer.confidence) == (1, 1, False, 0.9)
    assert walk.answer is answer


def test_a_row_whose_stage_does_not_answer_leaves_with_the_answer_before():
    walk = walk_in(State.ESCALATED)
    walk.retried()
    answer = walk.exit(ExitReason.FAILURE, deferred=False)
    assert (answer.stage, answer.cost, answer.deferrals, answer.escalations, answer.degraded) == (0, 11.0, 1, 0, True)
    assert [span.stage for span in answer.spans] == [0]


def test_a_finished_row_lets_go_of_the_evidence():
    for state in (State.ANSWERED, State.CANCELLED):
        assert not walk_in(state).has_answer
    walk = walk_in(State.DEFERRED)
    walk.cancel()
    assert not walk.has_answer


def test_a_result_is_of_use_until_the_deadline_at_first_and_then_until_the_answer_leaves():
    assert walk_in(State.RUNNING).usable_until_s == 1.0
    assert walk_in(State.DEFERRED).usable_until_s == 0.9375


def test_degrading_reasons_are_those_where_the_rule_would_have_gone_on():
    assert set(ExitReason) - DEGRADING == {ExitReason.CONFIDENT, ExitReason.LAST_STAGE, ExitReason.SATISFIED}


def test_the_answers_so_far_of_a_batch_are_those_of_each_row_and_a_guess_for_rows_that_are_done():
    walks = [walk_in(State.ESCALATED) for _ in range(3)]
    walks[1].exit(ExitReason.DEADLINE, deferred=False)
    before = judged([0.5], p_correct=0.5)
    classes = before.probabilities.shape[1]
    earlier = answers_so_far(walks, classes)
    for place in (0, 2):
        assert earlier.probabilities[place].tolist() == before.probabilities[0].tolist()
        assert earlier.p_correct[place] == before.p_correct[0]
    assert earlier.probabilities[1].tolist() == [1 / classes] * classes
    assert earlier.p_correct[1] == 0


def test_an_answer_says_whether_a_stage_before_gave_it():
    assert not walk_in(State.ANSWERED).answer.recalled
    walk = walk_in(State.ESCALATED)
    evidence = judged([0.5], [0.5])
    walk.result(4.0, replace(evidence, recalled=np.array([False, True])), 1)
    assert walk.exit(ExitReason.LAST_STAGE, deferred=False).recalled
