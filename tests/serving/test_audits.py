"""Audits over fake stages, in virtual time: which stages a row still visits, and that an audit is nobody's loss."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from ladders import config, fake_stages, judges, row, rows, told

from cascade.models.stage import StageResult
from cascade.policy.audit import Auditor, served_is_right
from cascade.policy.commands import Reply
from cascade.policy.gain import Earlier, Judgement
from cascade.policy.policy import Policy
from cascade.policy.request import Answer, ExitReason, Request
from cascade.serving.audits import AuditCounts, Audits, has_room
from cascade.serving.fakes import FakeStage
from cascade.serving.stage_client import InlineStage

pytestmark = pytest.mark.looptime(noop_cycles=0)


def now() -> float:
    return asyncio.get_running_loop().time()


def answer(stage: int, p: float = 0.75, label: int = 1) -> Answer:
    """An answer as a stage of `ladders.judges` gives it."""
    probabilities = np.array([[0.5, 0.5], [1 - p, p] if label else [p, 1 - p]])
    judgement = Judgement(probabilities, probabilities.max(axis=1), np.array([0.5, p]), np.zeros((2, 2 - stage)))
    return Answer(stage, ExitReason.CONFIDENT, judgement, 1, 1.0, stage, stage, ())


def audits(stages, reading=None, spare=lambda: True, share=1.0, **changes) -> Audits:
    auditor = Auditor(len(stages), now(), share=share, gap_s=changes.pop("gap_s", 0.0))
    return Audits(auditor, reading or judges(len(stages)), stages, spare, now, **changes)


async def settled(of: Audits) -> AuditCounts:
    """Let the audit that is under way come to its end."""
    while of._audit is not None:
        await asyncio.sleep(0.001)
    return of.counts


def given(stage: FakeStage) -> list[list[list[float]]]:
    return [call["x"].tolist() for call in stage.calls]


@pytest.mark.parametrize("served_at", [0, 1])
async def test_an_audited_row_visits_the_stages_that_it_did_not_one_after_the_other_alone(served_at):
    stages = fake_stages(3, seconds=0.01)
    one = audits(stages)
    message = rows([9, 9, 9], [0.5, 1, 2])
    one.offer(Reply(None, answer(served_at), (1,)), message)
    assert await settled(one) == AuditCounts(finished=1)
    assert [given(stage) for stage in stages] == [[[[0.5, 1, 2]]] if k > served_at else [] for k in range(3)]
    assert now() == pytest.approx(0.01 * (2 - served_at), abs=0.002)
    assert one.auditor.estimate(now()).rows == 1


async def test_what_the_last_stage_says_of_the_row_is_what_is_measured():
    stages = fake_stages(2)
    one = audits(stages)
    one.offer(Reply(None, answer(0, p=0.75), (1,)), rows([0, 0], [0, -np.log(4)]))  # the last stage: 0.8 for the other label
    await settled(one)
    estimate = one.auditor.estimate(now())
    assert estimate.predicted == pytest.approx(0.75)
    assert estimate.accuracy == pytest.approx(0.2)
    assert estimate.disagreement == 1.0


async def test_stages_that_look_back_are_judged_with_the_answers_before_as_they_would_be_when_served():
    reading = judges(3)
    reading[1:] = [replace(judge, history_weight=0.5) for judge in reading[1:]]
    stages, logits = fake_stages(3), row(0.4, -0.3, 0.2)
    walk, earlier = [], None
    for k, judge in enumerate(reading):
        walk.append(judge(told(k)(logits), earlier))
        earlier = Earlier(walk[-1].probabilities, walk[-1].p_correct)
    alone = reading[2](told(2)(logits))
    assert walk[2].p_correct[0] != alone.p_correct[0]

    one = audits(stages, reading)
    one.offer(Reply(None, Answer(0, ExitReason.CONFIDENT, walk[0], 0, 1.0, 0, 0, ())), logits)
    await settled(one)
    label = int(walk[0].probabilities[0].argmax())
    assert one.auditor.estimate(now()).accuracy == pytest.approx(served_is_right(label, walk[2])[0])


async def test_an_audit_is_given_up_at_the_stage_before_which_load_comes():
    stages = fake_stages(3, seconds=0.01)
    one = audits(stages, spare=lambda: not stages[1].calls)
    one.offer(Reply(None, answer(0)), row(0, 0, 0))
    assert await settled(one) == AuditCounts(given_up=1)
    assert [len(stage.calls) for stage in stages] == [0, 1, 0]
    assert one.auditor.estimate(now()).rows == 0


async def test_nothing_begins_under_load():
    stages = fake_stages(2)
    one = audits(stages, spare=lambda: False)
    for _ in range(20):
        one.offer(Reply(None, answer(0)), row(0, 0))
    assert await settled(one) == AuditCounts()
    assert stages[1].calls == []
    assert one.auditor.estimate(now()).served == 20


async def test_one_audit_is_under_way_at_a_time():
    stages = fake_stages(2, seconds=0.01)
    one = audits(stages)
    for _ in range(20):
        one.offer(Reply(None, answer(0)), row(0, 0))
    assert await settled(one) == AuditCounts(finished=1)
    one.offer(Reply(None, answer(0)), row(0, 0))
    assert await settled(one) == AuditCounts(finished=2)


async def test_an_answer_of_the_last_stage_is_not_audited():
    stages = fake_stages(2)
    one = audits(stages)
    one.offer(Reply(None, answer(1)), row(0, 0))
    await asyncio.sleep(0.1)
    assert [stage.calls for stage in stages] == [[], []]
    assert one.auditor.estimate(now()).served == 1


def cancelled(inputs):
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "broken",
    [
        FakeStage(told(1), fail_first=1),
        FakeStage(cancelled, seconds=0.01),
        FakeStage(told(1), hang=frozenset({0})),
        FakeStage(lambda inputs: np.full((1, 2), np.nan)),
        FakeStage(lambda inputs: np.zeros((2, 2))),
        FakeStage(lambda inputs: None),
    ],
    ids=["raises", "is cancelled", "hangs", "not a number", "another shape", "nothing"],
)
async def test_a_stage_that_fails_ends_the_audit_quietly_and_the_next_one_may_begin(broken, caplog):
    one = audits([FakeStage(told(0)), broken], timeout_s=0.5)
    one.offer(Reply(None, answer(0)), row(0, 0))
    assert await settled(one) == AuditCounts(failed=1)
    assert now() < 0.6
    assert caplog.records == []
    assert one.auditor.estimate(now()).rows == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    one.offer(Reply(None, answer(0)), row(0, 0))
    await settled(one)
    assert sum((one.counts.finished, one.counts.failed)) == 2


async def test_an_audit_keeps_its_own_copy_of_the_row_and_not_the_message():
    stages = [FakeStage(told(0)), FakeStage(told(1), seconds=0.01)]
    one = audits(stages)
    message = rows([0, 5], [0, 3])
    one.offer(Reply(None, answer(0), (1,)), message)
    message["x"][:] = 77
    message.clear()
    await settled(one)
    assert given(stages[1]) == [[[0, 3]]]


async def test_of_rows_that_leave_together_one_is_audited_with_its_own_input_and_answer():
    stages = fake_stages(2)
    one = audits(stages)
    said = Judgement(np.array([[0.9, 0.1], [0.25, 0.75]]), np.array([0.9, 0.75]), np.array([0.9, 0.75]), np.zeros((2, 1)))
    reply = Reply(None, Answer(0, ExitReason.CONFIDENT, said, 0, 1.0, 0, 0, ()), (2, 3))
    one.offer(reply, rows([0, 6], [0, 7], [0, 20], [0, -20]))
    await settled(one)
    assert given(stages[1]) == [[[0, 20]]]
    estimate = one.auditor.estimate(now())
    assert (estimate.served, estimate.rows, estimate.disagreement) == (2, 1, 1.0)


async def test_a_stage_in_the_router_s_own_process_is_run_there():
    class Network:
        def run(self, inputs):
            return StageResult(told(1)(inputs), 0.0)

    one = audits([FakeStage(told(0)), InlineStage(Network())])
    one.offer(Reply(None, answer(0)), row(0, 2))
    assert await settled(one) == AuditCounts(finished=1)


async def test_closing_cancels_what_is_under_way():
    one = audits([FakeStage(told(0)), FakeStage(told(1), hang=frozenset({0}))])
    one.offer(Reply(None, answer(0)), row(0, 0))
    await asyncio.sleep(0.01)
    await one.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert one.counts == AuditCounts()
    await one.close()


async def test_there_is_room_while_nobody_waits_and_most_places_are_free():
    stages = [config(), config(cost=10.0, slots=2, max_batch_size=1)]
    policy = Policy(stages, usual_deadline_s=1.0, seed=1)
    assert has_room(policy)
    policy.arrived(0.0, [Request(number, 0.0, 0.9, 1.0) for number in range(3)])
    (first,) = policy.dispatch(0.0)
    assert has_room(policy)  # the first stage is no audit's concern
    policy.completed(0.0, first.batch, Judgement(np.full((3, 2), 0.5), *np.full((2, 3), 0.5), np.full((3, 1), 0.5)))
    assert not has_room(policy)  # three rows wait
    one, two = policy.dispatch(0.0)
    certain = Judgement(np.full((1, 2), 0.5), *np.full((2, 1), 0.5), np.zeros((1, 0)))
    policy.completed(0.1, one.batch, certain)
    (three,) = policy.dispatch(0.1)
    policy.completed(0.2, two.batch, certain)
    assert not has_room(policy)  # one of two places: the one replica is at work
    policy.completed(0.3, three.batch, certain)
    assert has_room(policy)
    policy.set_slots(1, 0)
    assert not has_room(policy)
