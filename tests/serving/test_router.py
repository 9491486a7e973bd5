"""The asyncio driver over fake stages, in virtual time: what it sends, what it answers, and that it forgets everything."""

import asyncio
import gc
import logging
from collections import Counter
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace

import numpy as np
import pytest
from ladders import SURE, UNSURE, config, fake_stages, judges, make_router, row, rows, told

from cascade.errors import DeadlineExceeded, Overloaded, StageFailed, UnprocessableRow
from cascade.models.energy import Energy
from cascade.models.stage import StageResult
from cascade.policy.request import ExitReason, SoFar
from cascade.serving.fakes import FakeStage
from cascade.serving.stage_client import InlineStage

pytestmark = pytest.mark.looptime(noop_cycles=0)


def now() -> float:
    return asyncio.get_running_loop().time()


def batch_sizes(stage: FakeStage) -> list[int]:
    return [len(call["x"]) for call in stage.calls]


def assert_forgotten(router) -> None:
    """Nothing is left of any request, in the router or in its policy."""
    policy = router.policy
    assert router._calls == {}
    assert policy.counts.live == 0
    assert [policy.waiting(k) for k in range(len(policy.prices))] == [0] * len(policy.prices)
    assert [capacity.busy for capacity in policy.capacities] == [0] * len(policy.capacities)
    assert policy.next_timer() is None


class Blocking:
    """A network that runs in the router's process, with the one method that a placed stage has."""

    def __init__(self, stage: int, fail_first: int = 0) -> None:
        self._script = told(stage)
        self._fail_first = fail_first
        self.calls = 0

    def run(self, inputs) -> StageResult:
        self.calls += 1
        if self.calls <= self._fail_first:
            raise RuntimeError("told to fail")
        return StageResult(self._script(inputs), 0.0)


# -- where rows go -----------------------------------------------------------------------------------------------------


async def test_with_direct_routing_a_row_skips_the_stage_that_costs_more_than_it_mends():
    stages = fake_stages(3, seconds=0.01)
    configs = [config(), config(cost=10.0, base_price=0.4), config(cost=100.0, base_price=0.1)]
    router = make_router(stages, configs, routing="direct")
    (answer,) = await router.answer(row(UNSURE, UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.cost, answer.escalations) == (2, 101.0, 1)
    assert [batch_sizes(stage) for stage in stages] == [[1], [], [1]]
    assert_forgotten(router)


async def test_a_confident_row_leaves_at_the_first_stage_and_another_goes_on():
    stages = fake_stages(3, seconds=0.01)
    router = make_router(stages)
    sure, unsure, dear = await asyncio.gather(
        router.answer(row(SURE, 0, 0), 1, budget_s=1.0),
        router.answer(row(UNSURE, -SURE, 0), 1, budget_s=1.0),
        router.answer(row(UNSURE, UNSURE, UNSURE), 1, budget_s=1.0),
    )
    assert [(a.stage, a.reason) for (a,) in (sure, unsure, dear)] == [
        (0, ExitReason.CONFIDENT),
        (1, ExitReason.CONFIDENT),
        (2, ExitReason.LAST_STAGE),
    ]
    assert not any(a.degraded for (a,) in (sure, unsure, dear))
    assert [a.cost for (a,) in (sure, unsure, dear)] == [1, 11, 111]
    assert [len(a.spans) for (a,) in (sure, unsure, dear)] == [1, 2, 3]
    assert [batch_sizes(stage) for stage in stages] == [[3], [2], [1]]
    assert_forgotten(router)


async def test_an_answer_is_the_output_of_its_own_row():
    router = make_router(fake_stages(2, seconds=0.01))
    messages = [row(SURE, 0), row(-SURE, 0), row(UNSURE, SURE), row(-UNSURE, -SURE)]
    answers = await asyncio.gather(*(router.answer(message, 1, budget_s=1.0) for message in messages))
    assert [int(a.judgement.probabilities[a.row].argmax()) for (a,) in answers] == [1, 0, 1, 0]
    assert [a.stage for (a,) in answers] == [0, 0, 1, 1]


async def test_messages_of_one_loop_turn_share_a_batch_in_the_order_in_which_they_came():
    (stage,) = stages = fake_stages(1, seconds=0.01)
    router = make_router(stages)
    await asyncio.gather(*(router.answer(row(float(i)), 1, budget_s=1.0) for i in range(1, 6)))
    assert [call["x"].ravel().tolist() for call in stage.calls] == [[1, 2, 3, 4, 5]]


async def test_rows_that_come_while_all_slots_are_taken_form_the_next_batch():
    (stage,) = stages = fake_stages(1, seconds=0.01)
    router = make_router(stages, [config(slots=1)])
    first = asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=1.0))
    await asyncio.sleep(0.001)
    later = [asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=1.0)) for _ in range(3)]
    await asyncio.gather(first, *later)
    assert batch_sizes(stage) == [1, 3]


async def test_no_more_batches_are_out_than_the_stage_has_slots():
    out = Counter()

    class Counting(FakeStage):
        async def run(self, inputs):
            out["now"] += 1
            out["most"] = max(out["most"], out["now"])
            try:
                return await super().run(inputs)
            finally:
                out["now"] -= 1

    stage = Counting(told(0), seconds=0.01)
    router = make_router([stage], [config(slots=2, max_batch_size=4)])
    await asyncio.gather(*(router.answer(row(SURE), 1, budget_s=1.0) for _ in range(40)))
    assert out == {"now": 0, "most": 2}
    assert batch_sizes(stage) == [4] * 10


async def test_rows_of_one_message_travel_without_a_copy():
    (stage,) = stages = fake_stages(1)
    router = make_router(stages)
    inputs = rows(*([SURE] for _ in range(6)))
    await router.answer(inputs, 6, budget_s=1.0)
    assert np.shares_memory(stage.calls[0]["x"], inputs["x"])


async def test_rows_of_messages_that_batches_cut_are_each_answered_by_their_own_input():
    stages = fake_stages(3, seconds=0.01)
    router = make_router(stages, [config(max_batch_size=5), config(cost=10.0, max_batch_size=3), config(cost=100.0)])
    random = np.random.default_rng(1)
    messages = [rows(*random.choice([-SURE, -UNSURE, UNSURE, SURE], (size, 3)).tolist()) for size in (7, 1, 12, 4, 3)]
    answers = await asyncio.gather(*(router.answer(message, len(message["x"]), budget_s=5.0) for message in messages))
    for message, found in zip(messages, answers, strict=True):
        for said, answer in zip(message["x"], found, strict=True):
            stops_at = next((stage for stage in range(2) if abs(said[stage]) == np.float32(SURE)), 2)
            label = int(answer.judgement.probabilities[answer.row].argmax())
            assert (answer.stage, label) == (stops_at, int(said[stops_at] > 0))
    assert max(batch_sizes(stages[0])) == 5
    assert_forgotten(router)


async def test_rows_of_several_messages_are_gathered_into_one_contiguous_array():
    (stage,) = stages = fake_stages(1)
    router = make_router(stages)
    each = [rows([1.0], [2.0]), rows([3.0]), rows([4.0], [5.0])]
    await asyncio.gather(*(router.answer(message, len(message["x"]), budget_s=1.0) for message in each))
    (call,) = stage.calls
    assert call["x"].tolist() == [[1], [2], [3], [4], [5]]
    assert call["x"].flags.c_contiguous
    assert call["x"].dtype == np.float32


async def test_a_dear_batch_holds_the_rows_with_most_to_gain_and_answers_each_with_its_own():
    stages = fake_stages(2, seconds=0.01)
    router = make_router(stages, [config(), config(cost=10.0, slots=1, max_batch_size=2)])
    message = rows([0.4, 1.0], [0.1, -2.0], [0.3, 3.0], [0.2, -4.0])
    answers = await router.answer(message, 4, budget_s=1.0)
    assert [call["x"][:, 0].tolist() for call in stages[1].calls] == [
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.3, 0.4]),
    ]
    assert [int(a.judgement.probabilities[a.row].argmax()) for a in answers] == [1, 0, 1, 0]


async def test_a_stage_that_looks_back_combines_its_answer_with_the_one_before_row_by_row():
    """Both stages say the same of a row: as independent views their log-odds add up, whatever shares the batch."""
    first, second = judges(2)
    stages = fake_stages(2, seconds=0.01)
    router = make_router(stages, reading=[first, replace(second, history_weight=1.0)])
    logits = [0.2, -0.3, 0.1]
    answers = await asyncio.gather(*(router.answer(rows([x, x]), 1, budget_s=1.0) for x in logits))
    for x, (answer,) in zip(logits, answers, strict=True):
        assert answer.stage == 1
        probability = answer.judgement.probabilities[answer.row, 1]
        assert np.log(probability / (1 - probability)) == pytest.approx(2 * x, rel=1e-5)


async def test_rows_of_one_message_are_answered_together_and_in_order():
    router = make_router(fake_stages(3, seconds=0.01))
    message = rows([UNSURE, UNSURE, SURE], [SURE, 0, 0], [UNSURE, -SURE, 0], [-SURE, 0, 0])
    answers = await router.answer(message, 4, budget_s=1.0)
    assert [a.stage for a in answers] == [2, 0, 1, 0]
    assert [int(a.judgement.probabilities[a.row].argmax()) for a in answers] == [1, 1, 0, 0]
    assert_forgotten(router)


async def test_every_input_is_gathered():
    seen = []

    def script(inputs):
        seen.append({name: array.tolist() for name, array in inputs.items()})
        return np.zeros((len(inputs["a"]), 2), np.float32)

    router = make_router([FakeStage(script)])
    messages = [{"a": np.array([k]), "b": np.array([[b"%d" % k, b"x"]], dtype=object)} for k in range(2)]
    await asyncio.gather(*(router.answer(message, 1, budget_s=1.0) for message in messages))
    assert seen == [{"a": [0, 1], "b": [[b"0", b"x"], [b"1", b"x"]]}]


async def test_texts_of_several_messages_reach_a_stage_as_bytes():
    """A row of BYTES of shape [] is a plain bytes object; put together, those would become fixed-width strings."""
    seen = []

    def script(inputs):
        seen.append(inputs["text"])
        return np.zeros((len(inputs["text"]), 2), np.float32)

    router = make_router([FakeStage(script)])
    texts = [b"one", b"", b"three\0"]
    messages = [{"text": np.array([text], dtype=object)} for text in texts]
    await asyncio.gather(*(router.answer(message, 1, budget_s=1.0) for message in messages))
    (array,) = seen
    assert array.dtype == object
    assert array.tolist() == texts


async def test_a_budget_that_the_next_stage_would_break_is_kept():
    stages = fake_stages(3)
    router = make_router(stages)
    (answer,) = await router.answer(row(UNSURE, UNSURE, SURE), 1, budget_s=1.0, max_cost=50.0)
    assert (answer.stage, answer.reason, answer.degraded) == (1, ExitReason.BUDGET, True)
    assert answer.cost <= 50
    assert stages[2].calls == []


async def test_rows_that_a_full_queue_evicts_are_answered_at_once_with_what_they_have():
    # The queue before the last stage holds half a second of work: five rows, beside the one that runs.
    stages = [FakeStage(told(0)), FakeStage(told(1), seconds=0.1)]
    router = make_router(stages, [config(), config(cost=10.0, slots=1, max_batch_size=1, a_s=0.1, b_s=0.0)])
    logits = [0.1 * (1 + number) for number in range(8)]
    answers = await router.answer(rows(*([logit, SURE] for logit in logits)), 8, budget_s=1.0)
    assert [a.reason for a in answers] == [ExitReason.LAST_STAGE] * 6 + [ExitReason.EVICTED] * 2
    assert [a.stage for a in answers] == [1] * 6 + [0] * 2
    assert [a.degraded for a in answers] == [False] * 6 + [True] * 2


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_failed_call_is_tried_once_more():
    stages = [FakeStage(told(0), fail_first=1), FakeStage(told(1), fail_first=1)]
    router = make_router(stages)
    (answer,) = await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.reason, answer.degraded) == (1, ExitReason.LAST_STAGE, False)
    assert [len(stage.calls) for stage in stages] == [2, 2]
    assert [counts.failures for counts in router.policy.counts.stages] == [1, 1]


async def test_a_dear_stage_that_fails_twice_leaves_the_best_answer_so_far():
    stages = [FakeStage(told(0)), FakeStage(told(1), fail_first=2)]
    router = make_router(stages)
    (answer,) = await router.answer(row(-UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.reason, answer.degraded) == (0, ExitReason.FAILURE, True)
    assert int(answer.judgement.probabilities[answer.row].argmax()) == 0
    assert len(stages[1].calls) == 2
    assert_forgotten(router)


async def test_a_first_stage_that_fails_twice_leaves_nothing_to_answer_with():
    stages = [FakeStage(told(0), fail_first=2), FakeStage(told(1))]
    router = make_router(stages)
    with pytest.raises(StageFailed):
        await router.answer(row(SURE, 0), 1, budget_s=1.0)
    assert batch_sizes(stages[0]) == [1, 1]
    assert_forgotten(router)
    assert len(await router.answer(row(SURE, 0), 1, budget_s=1.0)) == 1


async def test_a_failed_batch_leaves_other_batches_alone():
    stage = FakeStage(told(0), seconds=0.01, fail_first=1)
    router = make_router([stage], [config(slots=2, max_batch_size=1)])
    answers = await asyncio.gather(*(router.answer(row(SURE), 1, budget_s=1.0) for _ in range(6)))
    assert [a.reason for (a,) in answers] == [ExitReason.LAST_STAGE] * 6
    assert len(stage.calls) == 7


@pytest.mark.parametrize(
    "logits",
    [
        lambda n: np.full((n, 2), np.nan),
        lambda n: np.full((n, 2), np.inf),
        lambda n: np.zeros((n, 3)),
        lambda n: np.zeros((n + 1, 2)),
        lambda n: np.zeros(n),
        lambda n: None,
    ],
)
async def test_logits_that_cannot_be_judged_count_as_a_failure(logits):
    stages = [FakeStage(told(0)), FakeStage(lambda inputs: logits(len(inputs["x"])))]
    router = make_router(stages)
    (answer,) = await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.reason) == (0, ExitReason.FAILURE)
    assert len(stages[1].calls) == 2
    assert router.policy.counts.stages[1].failures == 2


async def test_a_call_that_is_cancelled_from_behind_counts_as_a_failure():
    def cancelled(inputs):
        raise asyncio.CancelledError

    stages = [FakeStage(told(0)), FakeStage(cancelled)]
    router = make_router(stages)
    (answer,) = await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.reason) == (0, ExitReason.FAILURE)
    assert len(stages[1].calls) == 2
    assert now() < 0.1
    assert_forgotten(router)


async def test_a_call_that_hangs_is_given_up_and_tried_once_more():
    stages = [FakeStage(told(0)), FakeStage(told(1), hang=frozenset({0}))]
    router = make_router(stages)
    (answer,) = await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert (answer.stage, answer.reason) == (1, ExitReason.LAST_STAGE)
    assert len(stages[1].calls) == 2
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert_forgotten(router)


async def test_a_stage_that_only_hangs_costs_no_row_its_answer():
    stages = [FakeStage(told(0)), FakeStage(told(1), hang=frozenset(range(100)))]
    router = make_router(stages)
    answers = await asyncio.gather(*(router.answer(row(UNSURE, SURE), 1, budget_s=0.5) for _ in range(5)))
    assert {(a.stage, a.reason) for (a,) in answers} == {(0, ExitReason.FAILURE)}
    assert now() < 0.5
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert_forgotten(router)


# -- time --------------------------------------------------------------------------------------------------------------


async def test_the_best_answer_so_far_leaves_a_margin_before_the_deadline():
    stages = [FakeStage(told(0)), FakeStage(told(1), seconds=9.0)]
    router = make_router(stages, [config(), config(cost=10.0, timeout_floor_s=10.0)])
    (answer,) = await router.answer(row(UNSURE, SURE), 1, budget_s=0.5)
    assert (answer.stage, answer.reason, answer.degraded) == (0, ExitReason.DEADLINE, True)
    assert now() == pytest.approx(0.48, abs=0.002)


async def test_the_margin_of_a_short_deadline_is_a_tenth_of_it():
    stages = [FakeStage(told(0)), FakeStage(told(1), seconds=9.0)]
    router = make_router(stages, [config(), config(cost=10.0, timeout_floor_s=10.0)])
    await router.answer(row(UNSURE, SURE), 1, budget_s=0.05)
    assert now() == pytest.approx(0.045, abs=0.002)


async def test_a_deadline_that_the_first_stage_misses_is_an_error():
    router = make_router([FakeStage(told(0), seconds=9.0)], [config(timeout_floor_s=10.0)])
    with pytest.raises(DeadlineExceeded):
        await router.answer(row(SURE), 1, budget_s=0.5)
    assert now() == pytest.approx(0.5, abs=0.002)


async def test_a_deadline_that_no_batch_can_make_is_refused_without_a_call():
    (stage,) = stages = fake_stages(1)
    router = make_router(stages)
    with pytest.raises(DeadlineExceeded):
        await router.answer(row(SURE), 1, budget_s=0.001)
    assert stage.calls == []
    assert_forgotten(router)


async def test_a_late_result_of_an_answered_row_is_ignored():
    stages = [FakeStage(told(0)), FakeStage(told(1), seconds=0.6)]
    router = make_router(stages, [config(), config(cost=10.0, timeout_floor_s=10.0)])
    early = asyncio.ensure_future(router.answer(row(UNSURE, SURE), 1, budget_s=0.5))
    patient = asyncio.ensure_future(router.answer(row(UNSURE, SURE), 1, budget_s=1.0))
    (answer,) = await early
    assert (answer.stage, answer.reason) == (0, ExitReason.DEADLINE)
    (answer,) = await patient
    assert (answer.stage, answer.reason) == (1, ExitReason.LAST_STAGE)
    assert batch_sizes(stages[1]) == [2]
    assert_forgotten(router)


async def test_an_earlier_deadline_that_comes_later_is_still_kept():
    stages = [FakeStage(told(0)), FakeStage(told(1), hang=frozenset(range(9)))]
    router = make_router(stages, [config(), config(cost=10.0, timeout_floor_s=10.0)])
    patient = asyncio.ensure_future(router.answer(row(UNSURE, SURE), 1, budget_s=2.0))
    await asyncio.sleep(0.1)
    await router.answer(row(UNSURE, SURE), 1, budget_s=0.2)
    assert now() == pytest.approx(0.28, abs=0.002)
    await patient
    assert now() == pytest.approx(1.98, abs=0.002)


# -- clients that go, and too many of them ---------------------------------------------------------------------------------


async def test_a_client_that_goes_takes_its_queued_rows_along():
    (stage,) = stages = fake_stages(1, seconds=0.01)
    router = make_router(stages, [config(slots=1, max_batch_size=1)])
    first = asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=1.0))
    gone = asyncio.ensure_future(router.answer(rows([SURE], [SURE]), 2, budget_s=1.0))
    await asyncio.sleep(0.001)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await first
    assert batch_sizes(stage) == [1]
    assert router.policy.counts.cancelled == 2
    assert_forgotten(router)


async def test_a_client_that_goes_while_its_row_runs_does_not_escalate():
    stages = fake_stages(2, seconds=0.01)
    router = make_router(stages)
    gone = asyncio.ensure_future(router.answer(row(UNSURE, SURE), 1, budget_s=1.0))
    stays = asyncio.ensure_future(router.answer(row(UNSURE, SURE), 1, budget_s=1.0))
    await asyncio.sleep(0.001)
    gone.cancel()
    (answer,) = await stays
    assert answer.stage == 1
    assert [batch_sizes(stage) for stage in stages] == [[2], [1]]
    assert router.policy.counts.cancelled == 1
    assert_forgotten(router)


async def test_a_message_with_one_expired_row_ends_as_a_whole():
    stage = FakeStage(told(0), seconds=0.06)
    router = make_router([stage], [config(slots=1, max_batch_size=1, a_s=0.01)], wait_share=1.0)
    with pytest.raises(DeadlineExceeded):
        await router.answer(rows([SURE], [SURE], [SURE]), 3, budget_s=0.1)
    counts = router.policy.counts
    assert (counts.answered, counts.arrived) == (1, 3)
    await asyncio.sleep(0.1)
    assert_forgotten(router)


async def test_overload_turns_new_messages_away_and_leaves_those_inside_alone():
    (stage,) = stages = fake_stages(1, seconds=0.3)
    router = make_router(stages, [config(slots=1, max_batch_size=1, a_s=0.3)])
    inside = asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=1.0))
    await asyncio.sleep(0.001)
    with pytest.raises(Overloaded) as refused:
        await router.answer(row(SURE), 1, budget_s=1.0)
    assert refused.value.retry_after_s >= 1
    (answer,) = await inside
    assert answer.reason is ExitReason.LAST_STAGE
    assert len(stage.calls) == 1
    assert router.policy.counts.shed == 1
    assert_forgotten(router)


async def test_a_message_of_the_lowest_class_is_turned_away_first():
    router = make_router(fake_stages(1, seconds=0.3), [config(slots=1, a_s=0.3)])
    inside = asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=2.0))
    await asyncio.sleep(0.15)
    with pytest.raises(Overloaded):
        await router.answer(row(SURE), 1, budget_s=2.0, priority=4)
    await asyncio.gather(inside, router.answer(row(SURE), 1, budget_s=2.0, priority=1))


async def test_energy_that_a_stage_reports_is_counted_and_none_is_made_up_for_the_others():
    class Reporting(FakeStage):
        async def run(self, inputs):
            result = await super().run(inputs)
            return StageResult(result.logits, result.run_s, Energy(3.0, 1.0))

    router = make_router([FakeStage(told(0)), Reporting(told(1))], [config(), config(cost=10.0)])
    for _ in range(2):
        await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    first, second = router.policy.counts.stages
    assert (first.joules, second.joules, second.idle_joules) == (None, 6.0, 2.0)


# -- stages in the router's own process --------------------------------------------------------------------------------


async def test_an_inline_stage_answers_and_escalates():
    first, dear = Blocking(0), FakeStage(told(1), seconds=0.01)
    router = make_router([InlineStage(first), dear], [config(slots=1), config(cost=10.0)])
    answers = await router.answer(rows([SURE, 0], [UNSURE, -SURE]), 2, budget_s=1.0)
    assert [a.stage for a in answers] == [0, 1]
    assert first.calls == 1
    assert_forgotten(router)


async def test_an_inline_stage_that_fails_is_tried_once_more():
    stage = Blocking(0, fail_first=1)
    router = make_router([InlineStage(stage)], [config(slots=1)])
    (answer,) = await router.answer(row(SURE), 1, budget_s=1.0)
    assert answer.reason is ExitReason.LAST_STAGE
    assert stage.calls == 2


async def test_an_inline_stage_that_fails_twice_is_an_error():
    stage = Blocking(0, fail_first=2)
    router = make_router([InlineStage(stage)], [config(slots=1)])
    with pytest.raises(StageFailed):
        await router.answer(row(SURE), 1, budget_s=1.0)
    assert stage.calls == 2
    assert_forgotten(router)


async def test_an_inline_stage_takes_messages_in_batches():
    stage = Blocking(0)
    router = make_router([InlineStage(stage)], [config(slots=1, max_batch_size=4)])
    await asyncio.gather(*(router.answer(row(SURE), 1, budget_s=1.0) for _ in range(10)))
    assert stage.calls == 3


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_cancels_the_calls_that_are_under_way():
    stages = [FakeStage(told(0), hang=frozenset({0, 1}))]
    router = make_router(stages)
    waiting = asyncio.ensure_future(router.answer(row(SURE), 1, budget_s=1.0))
    await asyncio.sleep(0.001)
    await router.close()
    assert router._calls == {}
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_an_idle_router_is_quiet():
    router = make_router(fake_stages(1))
    await router.answer(row(SURE), 1, budget_s=1.0)
    await router.close()


async def test_nothing_is_left_after_thousands_of_requests_that_end_in_every_way(caplog):
    caplog.set_level(logging.CRITICAL, "cascade.router")
    random = np.random.default_rng(1)

    def troubled(stage: int) -> FakeStage:
        honest = told(stage)

        def script(inputs):
            logits = honest(inputs)
            match random.integers(40):
                case 0:
                    raise RuntimeError("told to fail")
                case 1:
                    return logits * np.nan
                case 2:
                    return logits[:, :1]
                case 3:
                    raise asyncio.CancelledError
            return logits

        return FakeStage(
            script,
            seconds=lambda n: (0.01 + 0.002 * n) * 2**stage * random.uniform(0.5, 3.0),
            hang=frozenset(np.flatnonzero(random.random(4000) < 0.02).tolist()),
        )

    configs = [config(cost=10.0**k, a_s=0.01 * 2**k, b_s=0.002 * 2**k, max_batch_size=16 >> 2 * k) for k in range(3)]
    configs[0] = replace(configs[0], slots=4)
    router = make_router([troubled(k) for k in range(3)], configs)
    outcomes: Counter[str] = Counter()

    async def watched(inputs, rows, **facts):
        """The answers of a client that watches, some of the time slowly."""
        before = None
        async with aclosing(router.refine(inputs, rows, **facts)) as showings:
            async for refined in showings:
                assert len(refined.rows) == rows
                for old, new in zip(before.rows if before else [], refined.rows, strict=bool(before)):
                    agrees = new.shown.probabilities.argmax() == old.shown.probabilities.argmax()
                    assert not agrees or new.shown.confidence >= old.shown.confidence
                    assert new == old or isinstance(old.answer, SoFar)
                before = refined
                await asyncio.sleep(random.choice([0.0, 0.0, 0.2]))
        assert before.waiting == 0
        return [state.answer for state in before.rows]

    async def client(number: int) -> None:
        await asyncio.sleep(number / 250 + random.uniform(0, 0.1))
        count = int(random.choice([1, 1, 1, 2, 5]))
        logits = random.choice([SURE, -SURE, UNSURE, -UNSURE], size=(count, 3)).astype(np.float32)
        request = asyncio.ensure_future(
            (watched if random.random() < 0.3 else router.answer)(
                {"x": logits},
                count,
                budget_s=float(random.choice([0.02, 0.1, 1.0, 2.0])),
                priority=int(random.integers(1, 5)),
                max_cost=float(random.choice([np.inf, 50.0])),
                min_confidence=float(random.choice([np.inf, np.inf, np.inf, 0.5])),
            )
        )
        if random.random() < 0.1:
            await asyncio.sleep(random.uniform(0, 0.3))
            request.cancel()
        try:
            answers = await request
        except (Overloaded, DeadlineExceeded, StageFailed, UnprocessableRow, asyncio.CancelledError) as error:
            outcomes[type(error).__name__] += 1
            return
        assert len(answers) == count
        for logit, answer in zip(logits, answers, strict=True):
            assert int(answer.judgement.probabilities[answer.row].argmax()) == int(logit[answer.stage] > 0)
            outcomes[answer.reason] += 1

    await asyncio.gather(*(client(number) for number in range(2000)))
    await asyncio.sleep(5)
    assert_forgotten(router)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    missing = {"Overloaded", "DeadlineExceeded", "StageFailed", "CancelledError", *ExitReason} - set(outcomes)
    assert missing <= {ExitReason.PRICE}, outcomes
    await router.close()
    gc.collect()


async def test_stages_are_called_in_the_context_of_no_client():
    # Serve would take the id of the request in whose context a call is made for the call's own, and cancel it with that.
    client = ContextVar("client", default="nobody")
    seen = []

    class Curious(FakeStage):
        async def run(self, inputs):
            seen.append(client.get())
            return await super().run(inputs)

    router = make_router([Curious(told(0), seconds=0.01), Curious(told(1), seconds=0.01, fail_first=1)])

    async def ask(name: str) -> None:
        client.set(name)
        await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)

    await asyncio.gather(*(asyncio.create_task(ask(name)) for name in ("one", "two")))
    assert len(seen) >= 3
    assert set(seen) == {"nobody"}
    await router.close()
