"""Rows on which a stage raises, or answers no numbers, over fake stages in virtual time: whom they harm, and who is told."""

import asyncio

import numpy as np
import pytest
from ladders import SURE, UNSURE, fake_stages, make_router, row, rows, told

from cascade.errors import StageFailed, UnprocessableRow
from cascade.policy.quarantine import QUARANTINE_S
from cascade.policy.request import ExitReason
from cascade.serving.fakes import FakeStage
from cascade.serving.poison import digest, readable, samples

pytestmark = pytest.mark.looptime(noop_cycles=0)

BAD = 13.0


def raising(stage: int):
    """Logits as told; one row of `BAD` makes it raise."""

    def script(inputs):
        if (inputs["x"] == BAD).any():
            raise FloatingPointError("told to fail on this row")
        return told(stage)(inputs)

    return script


def unreadable(stage: int):
    """Logits as told, of a row of `BAD` NaN."""

    def script(inputs):
        logits = told(stage)(inputs)
        logits[(inputs["x"] == BAD).any(axis=1)] = np.nan
        return logits

    return script


async def outcomes(router, messages):
    each = (router.answer(message, len(message["x"]), budget_s=10.0) for message in messages)
    return await asyncio.gather(*each, return_exceptions=True)


@pytest.mark.parametrize("poisoning", [raising, unreadable])
async def test_a_row_that_the_first_stage_fails_on_takes_no_other_message_along(poisoning):
    router = make_router([FakeStage(poisoning(0), seconds=0.01)])
    found = await outcomes(router, [row(BAD) if at == 5 else row(SURE) for at in range(8)])
    assert [type(each) for each in found] == [UnprocessableRow if at == 5 else list for at in range(8)]
    assert router.policy.counts.live == 0
    assert router.policy.counts.stages[0].poisoned == 1


@pytest.mark.parametrize("poisoning", [raising, unreadable])
async def test_a_row_that_a_dear_stage_fails_on_leaves_with_its_answer_and_the_others_go_on(poisoning):
    def dear(inputs):
        return poisoning(1)({"x": np.where(inputs["x"] == -BAD, BAD, inputs["x"])})

    stages = [FakeStage(told(0), seconds=0.01), FakeStage(dear, seconds=0.01)]
    router = make_router(stages)
    found = await outcomes(router, [row(UNSURE, -BAD if at == 3 else SURE) for at in range(8)])
    assert [(answer.stage, answer.reason) for (answer,) in found] == [
        (0, ExitReason.FAILURE) if at == 3 else (1, ExitReason.LAST_STAGE) for at in range(8)
    ]


async def test_the_error_names_the_row_of_its_message():
    router = make_router([FakeStage(unreadable(0), seconds=0.01)])
    (error,) = await outcomes(router, [rows([SURE], [SURE], [BAD], [SURE])])
    assert isinstance(error, UnprocessableRow)
    assert "row 2" in error.detail


async def test_a_stage_that_answers_nothing_but_nan_has_failed_and_no_row_is_blamed():
    router = make_router([FakeStage(lambda inputs: np.full((len(inputs["x"]), 2), np.nan, np.float32), seconds=0.01)])
    found = await outcomes(router, [row(SURE)] * 8)
    assert {type(each) for each in found} == {StageFailed}


async def test_an_input_that_failed_twice_is_not_tried_a_third_time_until_some_time_has_passed():
    (stage,) = stages = [FakeStage(raising(0), seconds=0.01)]
    router = make_router(stages)
    for _ in range(2):
        await outcomes(router, [row(BAD), *[row(SURE)] * 3])
    calls = len(stage.calls)
    refused, *others = await outcomes(router, [row(BAD), *[row(SURE)] * 3])
    assert isinstance(refused, UnprocessableRow)
    assert all(isinstance(each, list) for each in others)
    assert len(stage.calls) == calls + 1
    await asyncio.sleep(QUARANTINE_S)
    await outcomes(router, [row(BAD), row(SURE)])
    assert len(stage.calls) > calls + 2


async def test_the_log_tells_of_a_poisoned_batch_with_one_traceback(caplog):
    router = make_router([FakeStage(raising(0), seconds=0.01)])
    with caplog.at_level("WARNING", logger="cascade.router"):
        await outcomes(router, [row(BAD), *[row(SURE)] * 7])
    assert [bool(record.exc_info) for record in caplog.records].count(True) == 1


async def test_rows_that_all_fail_leave_nothing_behind():
    router = make_router([*[FakeStage(raising(k), seconds=0.01) for k in range(2)]])
    await outcomes(router, [row(BAD, BAD)] * 50)
    await outcomes(router, [row(UNSURE, BAD)] * 50)
    policy = router.policy
    assert (router._calls, policy.counts.live, policy.next_timer()) == ({}, 0, None)
    assert [(capacity.busy, policy.waiting(at)) for at, capacity in enumerate(policy.capacities)] == [(0, 0)] * 2


async def test_a_healthy_ladder_makes_no_digests():
    router = make_router(fake_stages(1))
    await outcomes(router, [row(SURE)] * 3)
    assert not router.wards._quarantine.active(0.0)


# -- logits and digests -------------------------------------------------------------------------------------------------


def test_finite_logits_are_taken_as_they_are():
    logits = np.ones((3, 2), np.float32)
    taken, poisoned = readable(logits)
    assert taken is logits
    assert poisoned == []


def test_rows_with_a_logit_that_is_no_number_are_named_and_made_readable():
    logits = np.array([[1, 2], [np.nan, 0], [np.inf, 0], [3, 4]], np.float32)
    taken, poisoned = readable(logits)
    assert poisoned == [1, 2]
    assert taken.tolist() == [[1, 2], [0, 0], [0, 0], [3, 4]]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(2 * 300, dtype=np.uint8).reshape(2, 3, 100),
        np.array([1.5, 2.5], np.float16),
        np.array([[b"a", b"bc"], [b"ab", b"c"]], object),
    ],
)
def test_rows_are_told_apart_by_their_bytes_and_alike_rows_are_not(array):
    twice = {"x": np.concatenate([array, array])}
    sampled = samples(twice, 4)
    made = [digest(twice, place) for place in range(4)]
    assert sampled[:2] == sampled[2:]
    assert made[:2] == made[2:]
    assert made[0] != made[1]
    assert sampled[0] != sampled[1]


def test_a_digest_holds_what_a_sample_leaves_out():
    x = np.zeros((2, 1000), np.uint8)
    x[1, 1] = 1
    first, second = samples({"x": x}, 2)
    assert first == second
    assert digest({"x": x}, 0) != digest({"x": x}, 1)
