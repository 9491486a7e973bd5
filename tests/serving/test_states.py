"""What a router keeps of rows that may go on, and how a batch that resumes is put together from it."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import SURE, UNSURE, config, make_router, row, rows, told

from cascade.models.stage import StageResult
from cascade.policy.request import ExitReason
from cascade.serving.fakes import FakeStage
from cascade.serving.states import Kept, concatenated, gather_states

# -- gathering ---------------------------------------------------------------------------------------------------------


def batch(*values: float, width: int = 2) -> dict[str, np.ndarray]:
    return {"a": np.repeat(np.array(values)[:, None], width, axis=1), "n": np.full(len(values), width)}


def test_neighbours_of_one_batch_are_not_copied():
    state = batch(1, 2, 3)
    found = gather_states([Kept(0, state, 1), Kept(0, state, 2)])
    assert found["a"].base is state["a"]
    assert found["a"][:, 0].tolist() == [2, 3]


def test_rows_of_different_lengths_are_padded_with_zeros():
    found = gather_states([Kept(0, batch(1, width=1), 0), Kept(0, batch(2, 3, width=3), 1)])
    assert found["a"].tolist() == [[1, 0, 0], [3, 3, 3]]
    assert found["n"].tolist() == [1, 3]


@settings(max_examples=50)
@given(st.data())
def test_every_row_is_its_own_whatever_the_order(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    states, first = [], 0
    for size in sizes:
        states.append(batch(*range(first, first + size)))
        first += size
    kept = [Kept(0, state, place) for state in states for place in range(len(state["a"]))]
    order = data.draw(st.lists(st.integers(0, first - 1), min_size=1))
    found = gather_states([kept[k] for k in order])
    assert found["a"][:, 0].tolist() == order
    assert concatenated(states)["a"][:, 0].tolist() == list(range(first))


# -- the router --------------------------------------------------------------------------------------------------------


def leaves(inputs):
    """What a fake stage leaves: the rows as they are, under another name, and marked."""
    rows_ = inputs["x"] if "x" in inputs else inputs["left"]
    return {"left": rows_ + np.float32(100.0)}


def resumed(stage: int):
    """The logits of a fake stage that gets what ``stage`` others left before it."""

    def script(inputs):
        assert set(inputs) == {"left"}
        return told(stage)({"x": inputs["left"] - np.float32(100.0 * stage)})

    return script


class Keeper(FakeStage):
    """A fake stage whose states are tickets: numbers that stand for rows, of which some are lost.

    Attributes:
        forgotten: tickets that were given back.
        again: rows that were asked for again.
    """

    def __init__(
        self, stage: int, kept: dict[int, np.ndarray], *, last: bool = False, loses: int | None = None, **how
    ) -> None:
        super().__init__(told(stage), **how)
        self.forgotten: list[int] = []
        self.again: list[list[float]] = []
        self._kept = kept
        self._last = last
        self._loses = loses

    def _keep(self, result: StageResult, x: np.ndarray, recomputed: int = 0) -> StageResult:
        if self._last:
            return replace(result, recomputed=recomputed)
        tickets = np.arange(len(self._kept), len(self._kept) + len(x))
        self._kept.update(zip(tickets.tolist(), x, strict=True))
        return replace(result, state={"ticket": tickets}, recomputed=recomputed)

    async def run(self, inputs):
        return self._keep(await super().run(inputs), inputs["x"])

    async def resume(self, state, again):
        tickets = state["ticket"].tolist()
        x = np.stack([self._kept[ticket] for ticket in tickets])
        lost = [place for place, ticket in enumerate(tickets) if ticket == self._loses]
        if lost:
            x[lost] = again(lost)["x"]
            self.again += x[lost].tolist()
        return self._keep(await super().run({"x": x}), x, len(lost))

    def forget(self, state, places):
        self.forgotten += state["ticket"][places].tolist()


def configs(*resumes: bool):
    return [config(cost=10.0**k, resumes=goes_on) for k, goes_on in enumerate(resumes)]


async def ask_all(router, *each, budget_s: float = 1.0):
    return await asyncio.gather(*(router.answer(message, len(message["x"]), budget_s=budget_s) for message in each))


@pytest.mark.looptime(noop_cycles=0)
class TestRouter:
    """Over fake stages, in virtual time."""

    async def test_a_stage_that_resumes_gets_what_the_one_before_left_of_its_rows(self):
        stages = [
            FakeStage(told(0), seconds=0.01, leaves=leaves),
            FakeStage(resumed(1), seconds=0.01, leaves=leaves),
            FakeStage(resumed(2), seconds=0.01),
        ]
        router = make_router(stages, configs(False, True, True))
        answers = await ask_all(
            router,
            rows([SURE, 0, 0], [UNSURE, UNSURE, -SURE]),
            row(UNSURE, SURE, 0),
            rows([UNSURE, UNSURE, SURE], [UNSURE, -SURE, 0]),
        )
        assert [[a.stage for a in message] for message in answers] == [[0, 2], [1], [2, 1]]
        assert [[int(a.judgement.probabilities[a.row].argmax()) for a in m] for m in answers] == [[1, 0], [1], [1, 0]]
        assert [a.cost for message in answers for a in message] == [1, 111, 11, 111, 11]
        assert [len(next(iter(call.values()))) for stage in stages for call in stage.calls] == [5, 4, 2]

    async def test_a_batch_that_fails_is_resumed_once_more_from_the_same_state(self):
        stages = [FakeStage(told(0), leaves=leaves), FakeStage(resumed(1), fail_first=1)]
        router = make_router(stages, configs(False, True))
        ((answer,),) = await ask_all(router, row(UNSURE, SURE))
        assert (answer.stage, answer.reason) == (1, ExitReason.LAST_STAGE)
        first, second = stages[1].calls
        np.testing.assert_array_equal(first["left"], second["left"])

    async def test_nothing_is_kept_of_a_row_that_was_answered(self):
        kept: dict[int, np.ndarray] = {}
        stages = [Keeper(0, kept), Keeper(1, kept), Keeper(2, kept, last=True)]
        router = make_router(stages, configs(False, True, True))
        await ask_all(router, rows([SURE, 0, 0], [UNSURE, SURE, 0], [UNSURE, UNSURE, SURE]))
        # The first row's state after the first stage, the second's after the second; the others were resumed and then told.
        assert set(stages[0].forgotten) >= {0}
        assert set(stages[1].forgotten) >= {3}

    async def test_rows_whose_state_is_lost_are_run_from_their_inputs_and_counted(self):
        kept: dict[int, np.ndarray] = {}
        stages = [Keeper(0, kept, seconds=0.01), Keeper(1, kept, last=True, loses=1)]
        router = make_router(stages, configs(False, True))
        message = rows([UNSURE, -SURE], [UNSURE, SURE], [UNSURE, -SURE])
        (answers,) = await ask_all(router, message)
        assert [int(a.judgement.probabilities[a.row].argmax()) for a in answers] == [0, 1, 0]
        assert stages[1].again == [pytest.approx([UNSURE, SURE])]
        assert [books.recomputed for books in router.policy.counts.stages] == [0, 1]

    async def test_a_row_that_was_answered_meanwhile_gives_back_what_is_left_of_it(self):
        kept: dict[int, np.ndarray] = {}
        stages = [Keeper(0, kept, seconds=0.01), Keeper(1, kept, seconds=0.09), Keeper(2, kept, last=True)]
        router = make_router(stages, configs(False, True, True))
        ((answer,),) = await ask_all(router, row(UNSURE, UNSURE, SURE), budget_s=0.06)
        assert (answer.stage, answer.reason) == (0, ExitReason.DEADLINE)
        await asyncio.sleep(1.0)  # the batch comes back to nobody
        assert stages[0].forgotten == [0]
        assert stages[1].forgotten == [1]

    async def test_a_client_that_goes_away_leaves_nothing(self):
        kept: dict[int, np.ndarray] = {}
        stages = [Keeper(0, kept), Keeper(1, kept, seconds=0.09), Keeper(2, kept, last=True)]
        router = make_router(stages, configs(False, True, True))
        asking = asyncio.create_task(router.answer(row(UNSURE, UNSURE, SURE), 1, budget_s=20.0))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert stages[0].forgotten == [0]
        await asyncio.sleep(1.0)
        assert stages[1].forgotten == [1]
