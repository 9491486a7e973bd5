"""Every stage is called once before clients are let in, and one that does not answer holds nobody up for long."""

import logging

import numpy as np
import pytest
from ladders import FakeStage, row, told
from test_states import Keeper, leaves, resumed

from cascade.models.thinking import PRESSURE
from cascade.serving.first_calls import FirstCalls

pytestmark = pytest.mark.looptime(noop_cycles=0)

EXAMPLE = row(0, 0, 0)
NAMES = ("first", "second", "third")


def first_calls(stages, *, resumes=(False, False, False), thinks=(False, False, False), **how) -> FirstCalls:
    return FirstCalls(stages, NAMES, EXAMPLE, resumes=resumes, thinks=thinks, **how)


async def test_every_stage_is_called_once_with_one_row():
    stages = [FakeStage(told(k), seconds=0.1) for k in range(3)]
    await first_calls(stages).open()
    assert [[list(call) for call in stage.calls] for stage in stages] == [[["x"]]] * 3
    assert all(len(stage.calls[0]["x"]) == 1 for stage in stages)


async def test_a_stage_that_resumes_is_called_with_what_the_one_before_left():
    stages = [FakeStage(told(0)), FakeStage(told(1), leaves=leaves), FakeStage(resumed(1))]
    await first_calls(stages, resumes=(False, False, True)).open()
    assert list(stages[2].calls[0]) == ["left"]


async def test_what_replicas_keep_is_given_back():
    kept: dict[int, np.ndarray] = {}
    stages = [FakeStage(told(0)), Keeper(1, kept), Keeper(2, kept)]
    await first_calls(stages, resumes=(False, False, True)).open()
    assert len(stages[2].calls) == 1
    assert stages[2].forgotten == [1]


async def test_a_stage_that_thinks_is_called_without_pressure_from_load():
    stages = [FakeStage(told(k)) for k in range(3)]
    await first_calls(stages, thinks=(False, True, False)).open()
    assert stages[1].calls[0][PRESSURE].tolist() == [0.0]
    assert PRESSURE not in stages[2].calls[0]


@pytest.mark.parametrize("how", [{"fail_first": 1}, {"hang": frozenset([0])}])
async def test_a_stage_that_fails_or_hangs_is_named_and_the_others_are_called(how, caplog):
    stages = [FakeStage(told(0)), FakeStage(told(1), **how), FakeStage(told(2))]
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        await first_calls(stages, limit_s=5.0).open()
    assert [len(stage.calls) for stage in stages] == [1, 1, 1]
    assert [record.getMessage().split(" did not")[0] for record in caplog.records] == ["stage second"]
