"""Clients that watch, and clients that are content: what is shown of a row that goes on, and where it is let stop."""

from math import inf

import numpy as np
import pytest
from builders import MS, admit, at_stage0, batches, judged, ladder, only_reply, replies, request, stage, three

from cascade.policy.commands import Preliminary
from cascade.policy.policy import Policy
from cascade.policy.request import DEGRADING, ExitReason
from cascade.policy.walk import IllegalTransition, Walk


def preliminaries(commands) -> list[Preliminary]:
    return [command for command in commands if isinstance(command, Preliminary)]


def test_a_row_that_is_watched_shows_every_answer_that_is_not_its_last():
    policy = three()
    first = judged([0.3, 0.5], p_correct=0.4)
    (shown,) = policy.completed(MS, at_stage0(policy, request("a", refine=True)), first)
    assert isinstance(shown, Preliminary)
    assert (shown.tag, shown.answer.stage, shown.answer.judgement, shown.answer.row) == ("a", 0, first, 0)
    assert (shown.answer.cost, shown.answer.confidence) == (1.0, 0.4)
    assert [span.stage for span in shown.answer.spans] == [0]
    (batch,) = batches(policy.dispatch(2 * MS))
    (shown,) = policy.completed(8 * MS, batch, judged([0.2], p_correct=0.7))
    assert (shown.answer.stage, shown.answer.cost, shown.answer.confidence) == (1, 11.0, 0.7)
    assert [span.stage for span in shown.answer.spans] == [0, 1]
    (batch,) = batches(policy.dispatch(9 * MS))
    assert only_reply(policy.completed(16 * MS, batch, judged([]))).answer.reason is ExitReason.LAST_STAGE


def test_a_row_that_nobody_watches_shows_nothing():
    policy = three()
    assert policy.completed(MS, at_stage0(policy, request("a")), judged([0.3, 0.5])) == []


@pytest.mark.parametrize(
    ("gains", "facts", "reason"),
    [
        ([0.0, 0.0], {}, ExitReason.CONFIDENT),
        ([0.5, 0.5], {"budget": 1.0}, ExitReason.BUDGET),
        ([0.5, 0.5], {"min_confidence": 0.5}, ExitReason.SATISFIED),
        ([0.5, 0.5], {"answer_by_s": 2 * MS, "deadline_s": 3 * MS}, ExitReason.DEADLINE),
    ],
)
def test_an_answer_that_is_the_last_is_shown_once(gains, facts, reason):
    policy = ladder(stage(a_s=MS, b_s=0.0), stage(cost=10), stage(cost=100))
    (reply,) = policy.completed(MS, at_stage0(policy, request("a", refine=True, **facts)), judged(gains))
    assert reply.answer.reason is reason


def test_a_row_that_waits_in_vain_leaves_with_what_was_shown():
    policy = three()
    (shown,) = policy.completed(MS, at_stage0(policy, request("a", refine=True)), judged([0.3, 0.5]))
    (reply,) = replies(policy.tick(0.9375))
    assert (reply.answer.stage, reply.answer.reason) == (shown.answer.stage, ExitReason.DEADLINE)
    assert reply.answer.judgement is shown.answer.judgement


def test_rows_of_one_batch_are_shown_to_those_who_watch():
    policy = three()
    admit(policy, 0.0, request("a", refine=True), request("b"), request("c", refine=True))
    (batch,) = batches(policy.dispatch(0.0))
    shown = preliminaries(policy.completed(MS, batch, judged([0.3, 0.5], [0.3, 0.5], [0.0, 0.0])))
    assert [each.tag for each in shown] == ["a"]


def test_a_row_whose_stage_goes_out_has_nothing_new_to_show():
    policy = three()
    policy.completed(MS, at_stage0(policy, request("a", refine=True)), judged([0.3, 0.5]))
    assert policy.set_slots(1, 0) == []
    (batch,) = batches(policy.dispatch(2 * MS))
    assert batch.stage == 2


def test_a_row_without_an_answer_has_nothing_to_show():
    with pytest.raises(IllegalTransition, match="no answer in state arrived"):
        _ = Walk(request("a")).so_far


# -- clients that are content ------------------------------------------------------------------------------------------


def stops_with(policy: Policy, p_correct: float, **facts) -> ExitReason | None:
    """Why a row with much to gain stops at stage 0, None if it goes on."""
    commands = policy.completed(MS, at_stage0(policy, request("a", **facts)), judged([0.3, 0.5], p_correct=p_correct))
    return only_reply(commands).answer.reason if commands else None


@pytest.mark.parametrize(
    ("p_correct", "wanted", "reason"),
    [
        (0.5, 0.5, ExitReason.SATISFIED),
        (0.75, 0.5, ExitReason.SATISFIED),
        (0.5, 0.75, None),
        (1.0, 1.0, ExitReason.SATISFIED),
    ],
)
def test_a_client_is_content_with_an_answer_as_probably_right_as_it_asked(p_correct, wanted, reason):
    assert stops_with(three(), p_correct, min_confidence=wanted) is reason


def test_a_client_that_does_not_say_so_is_never_content():
    assert request("a").min_confidence == inf
    assert stops_with(three(), 1.0) is None


def test_what_a_client_is_content_with_is_not_degraded_and_no_escalation_is_missed():
    policy = three()
    (reply,) = policy.completed(MS, at_stage0(policy, request("a", min_confidence=0.5)), judged([0.3, 0.5]))
    answer = reply.answer
    assert (answer.degraded, answer.deferrals, answer.escalations, answer.cost) == (False, 0, 0, 1.0)
    assert ExitReason.SATISFIED not in DEGRADING
    assert policy.counts.degraded == 0
    assert policy.counts.stages[0].answers[ExitReason.SATISFIED] == 1
    assert policy.counts.stages[0].deferrals == 0


def test_the_rule_speaks_before_the_client_and_the_client_before_the_price():
    assert stops_with(three(), 0.5, min_confidence=0.5) is ExitReason.SATISFIED
    policy = three()
    policy.set_prices([0.0, 0.9, 0.9])
    assert stops_with(policy, 0.5, min_confidence=0.5) is ExitReason.SATISFIED
    policy = three()
    (reply,) = policy.completed(MS, at_stage0(policy, request("a", min_confidence=0.5)), judged([0.0, 0.0]))
    assert reply.answer.reason is ExitReason.CONFIDENT


def test_a_client_that_is_content_is_so_with_the_stage_that_makes_it_so():
    policy = three()
    policy.completed(MS, at_stage0(policy, request("a", min_confidence=0.6)), judged([0.3, 0.5], p_correct=0.5))
    (batch,) = batches(policy.dispatch(2 * MS))
    answer = only_reply(policy.completed(9 * MS, batch, judged([0.4], p_correct=0.625))).answer
    assert (answer.stage, answer.reason, answer.deferrals, answer.escalations) == (1, ExitReason.SATISFIED, 1, 1)
    assert np.isclose(answer.confidence, 0.625)
