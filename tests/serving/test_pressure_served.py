"""Load shortens thought: pressure goes with a batch to the stage that thinks, and depths come back and are counted."""

import asyncio
from concurrent.futures import Future
from threading import Event

import numpy as np
import pytest
import torch
from ladders import SURE, UNSURE, config, fake_ladder, make_router, row, rows, spec_document, told
from torch import nn

from cascade.errors import SpecError
from cascade.loading import load_network
from cascade.models.halting import PonderNetwork
from cascade.models.stage import StageResult
from cascade.models.thinking import DEPTH, PRESSURE, ThinkingStage
from cascade.policy.classes import ClassConfig
from cascade.policy.gain import Curve, Judge
from cascade.policy.market import Market
from cascade.policy.policy import Policy
from cascade.serving.fakes import FakeStage
from cascade.serving.passes import Passes
from cascade.serving.router import Router
from cascade.serving.slow_loop import Control, SlowLoop, StagePlaces
from cascade.serving.stage import StageReplica
from cascade.spec import Ladder, parse_spec

BASE = 0.01
SOON_S = 20.0


class Plus(nn.Module):
    def forward(self, features):
        return features + torch.tensor([0.0, 1.0])


class Even(nn.Module):
    """Halting probabilities of 1/2."""

    def forward(self, features):
        return torch.zeros(len(features), 1)


def halving() -> PonderNetwork:
    """Rows (number, 0) come back as (number, steps); doubt is 1/2, 1/4, 1/8 behind the steps. Also a factory for specs."""
    return PonderNetwork(nn.Identity(), Plus(), Even(), nn.Identity(), steps=4)


def pairs(*values):
    return {"x": np.array([[value, 0.0] for value in values], np.float32)}


# -- the router --------------------------------------------------------------------------------------------------------


def thought(inputs):
    """Six steps without pressure, fewer with it."""
    return {DEPTH: (6 - 4 * inputs[PRESSURE]).astype(np.int64)}


@pytest.mark.looptime(noop_cycles=0)
class TestRouter:
    """Over fake stages, in virtual time."""

    async def test_the_surcharge_goes_to_the_stage_that_thinks_and_depths_are_counted(self):
        stages = [FakeStage(told(0)), FakeStage(told(1), leaves=thought), FakeStage(told(2))]
        router = make_router(stages, [config(cost=10.0**k, thinks=k == 1, base_price=BASE) for k in range(3)])
        await router.answer(rows([UNSURE, SURE, 0], [UNSURE, UNSURE, SURE]), 2, budget_s=1.0)
        router.policy.set_prices([0.0, BASE + 0.25, BASE])
        await router.answer(row(UNSURE, SURE, 0), 1, budget_s=1.0)
        assert [call[PRESSURE].tolist() for call in stages[1].calls] == [[0.0, 0.0], [0.25]]
        assert stages[1].calls[0][PRESSURE].dtype == np.float32
        assert all(set(call) == {"x"} for stage in (stages[0], stages[2]) for call in stage.calls)
        assert [counts.steps for counts in router.policy.counts.stages] == [0, 6 + 6 + 5, 0]

    async def test_depths_are_not_kept_as_if_a_stage_would_resume_from_them(self):
        stages = [FakeStage(told(0)), FakeStage(told(1), leaves=thought), FakeStage(told(2))]
        router = make_router(stages, [config(cost=10.0**k, thinks=k == 1) for k in range(3)])
        (answer,) = await router.answer(row(UNSURE, UNSURE, SURE), 1, budget_s=1.0)
        assert answer.stage == 2
        assert set(stages[2].calls[0]) == {"x"}


# -- the loop that this closes -----------------------------------------------------------------------------------------


class Thinker(FakeStage):
    """A fake whose rows halt by probabilities of their own, and whose batches take as long as their rows think.

    Attributes:
        depths: instant and mean depth of every batch.
    """

    def __init__(self, *, heeds: bool) -> None:
        super().__init__(told(1))
        self.depths: list[tuple[float, float]] = []
        self._heeds = heeds

    async def run(self, inputs):
        halting = 0.15 + 0.5 * inputs["x"][:, 1]
        doubt = np.minimum(1.0, 0.01 + self._heeds * inputs[PRESSURE])
        depth = np.ceil(np.log(doubt) / np.log(1 - halting)).clip(1, 6).astype(np.int64)
        seconds = 0.008 + 0.0024 * float(depth.sum())
        await asyncio.sleep(seconds)
        self.depths.append((asyncio.get_running_loop().time(), float(depth.mean())))
        logits = np.tile(np.array([0.0, SURE], np.float32), (len(depth), 1))
        return StageResult(logits, seconds, state={DEPTH: depth})


async def at_steady_load(*, heeds: bool, rate: float = 150.0, seconds: float = 12.0) -> tuple[list[float], Thinker, float]:
    """Two and a half times what the thinking stage can do unpressed; gains are spread evenly from 0 to 1.

    Returns:
        Its prices in the second half, twice a second; the stage; the share of rows that it answered.
    """
    loop, random = asyncio.get_running_loop(), np.random.default_rng(0)
    first = FakeStage(lambda inputs: np.stack([0 * inputs["x"][:, 0], inputs["x"][:, 0]], axis=1), seconds=0.004)
    stages = [first, Thinker(heeds=heeds)]
    gain = Curve.of([0.5, 1.0], [1.0, 0.0])
    reading = [Judge(1.0, Curve.of([0, 1], [0.5, 0.5]), (gain,)), Judge(1.0, Curve.of([0, 1], [0.9, 0.9]), ())]
    configs = [
        config(slots=4, max_batch_size=64, a_s=0.004, b_s=0.0, base_price=0.0),
        config(slots=1, cost=10.0, a_s=0.008, b_s=6 * 0.0024, base_price=BASE, thinks=True),
    ]
    market = Market([np.linspace(0.0, 1.0, 500)[:, None]], np.full((500, 2), 0.9), (0.0, BASE))
    control = Control((ClassConfig(),), [StagePlaces(1, lambda count: count)] * 2, market)
    router = Router(
        Policy(configs, usual_deadline_s=1.0, seed=1),
        reading,
        stages,
        classes=2,
        margin_s=0.02,
        clock=loop.time,
        control=control,
    )
    router.start()
    asking, prices, ends_s, next_s = [], [], loop.time() + seconds, loop.time() + seconds / 2
    while loop.time() < ends_s:
        await asyncio.sleep(random.exponential(1 / rate))
        confidence = random.uniform(0.5, 1.0)
        logit = np.log(confidence / (1 - confidence))
        asking.append(loop.create_task(router.answer(row(logit, random.random()), 1, budget_s=1.0)))
        if loop.time() >= next_s:
            prices.append(router.policy.prices[1])
            next_s += 0.5
    answers = [answer for answers in await asyncio.gather(*asking) for answer in answers]
    await router.close()
    return prices, stages[1], float(np.mean([answer.stage == 1 for answer in answers]))


@pytest.mark.looptime(noop_cycles=0)
async def test_shorter_thought_makes_room_for_more_rows_and_price_and_depth_settle():
    """In virtual time; the stage's learned capacity, and with it the price, follow the depth that the price makes."""
    plain_prices, plain, plain_share = await at_steady_load(heeds=False)
    prices, thinker, share = await at_steady_load(heeds=True)
    assert np.mean(prices) < np.mean(plain_prices) - 0.1
    assert share > plain_share + 0.1
    assert np.std(prices) < 0.1
    half = [depth for at_s, depth in thinker.depths if at_s > thinker.depths[-1][0] - 6.0]
    thirds = [float(np.mean(part)) for part in np.array_split(half, 3)]
    assert max(thirds) - min(thirds) < 1.0
    assert 1.5 < np.mean(half) < np.mean([depth for _, depth in plain.depths]) - 1.0


# -- the replica -------------------------------------------------------------------------------------------------------


def test_rows_of_several_routers_think_in_one_pass_each_under_its_own_pressure():
    stage, gate, begun, sizes = ThinkingStage(halving(), ["x"]), Event(), Event(), []

    def run(inputs):
        sizes.append(len(inputs["x"]))
        begun.set()
        assert gate.wait(SOON_S)
        return stage.run(inputs)

    passes = Passes(run, 8)
    first = passes.submit(pairs(0) | {PRESSURE: np.zeros(1, np.float32)})
    assert begun.wait(SOON_S)
    calls: list[Future] = [
        passes.submit(pairs(*values) | {PRESSURE: np.full(len(values), pressure, np.float32)})
        for values, pressure in (((1, 2), 0.0), ((3,), 0.3), ((4, 5), 1.0))
    ]
    gate.set()
    found = [call.result(SOON_S) for call in (first, *calls)]
    assert sizes == [1, 5]
    assert [result.logits.tolist() for result in found] == [[[0, 4]], [[1, 4], [2, 4]], [[3, 2]], [[4, 1], [5, 1]]]
    assert [result.state[DEPTH].tolist() for result in found] == [[4], [4, 4], [2], [1, 1]]


def thinking_ladder(factory="test_pressure_served:halving") -> Ladder:
    document = spec_document(2)
    document["stages"][1] |= {"model": {"factory": factory}, "execution": {"thinks": True}}
    return Ladder(parse_spec(document), fake_ladder(2).root)


def test_a_replica_takes_pressure_and_gives_depths():
    replica = StageReplica(thinking_ladder(), 1)

    async def call(inputs):
        return await replica.run(inputs)

    pressure = np.array([0.0, 0.3], np.float32)
    logits, run_s, energy, state = asyncio.run(call(pairs(7, 8) | {PRESSURE: pressure}))
    assert logits.tolist() == [[7, 4], [8, 2]]
    assert state[DEPTH].tolist() == [4, 2]
    assert (run_s > 0, energy) == (True, None)
    plain = asyncio.run(call(pairs(7)))  # an audit, which nothing presses
    assert plain[3][DEPTH].tolist() == [4]


def test_a_network_that_cannot_think_is_refused_with_the_field_named():
    ladder = thinking_ladder("torch.nn:Identity")
    with pytest.raises(SpecError, match=r"stages\.s1\.execution\.thinks needs .* returns Identity"):
        load_network(ladder, ladder.spec.stages[1])


def test_a_network_that_could_think_is_run_as_any_other_unless_the_spec_says_so():
    document = spec_document(2)
    document["stages"][1]["model"] = {"factory": "test_pressure_served:halving"}
    ladder = Ladder(parse_spec(document), fake_ladder(2).root)
    result = load_network(ladder, ladder.spec.stages[1]).run(pairs(7))
    assert result.logits.tolist() == [[7, 4]]
    assert result.state is None


# -- what is promised --------------------------------------------------------------------------------------------------


def test_nothing_is_certified_while_rows_think_less_than_they_did_then():
    class Says:
        path = (type("Point", (), {"bound_below": 0.5})(),)

        def bound_at(self, prices):
            return 0.1

    policy = Policy([config(base_price=0.0), config(base_price=BASE, thinks=True)], usual_deadline_s=1.0)
    control = Control((), [StagePlaces(1, lambda count: 2 * count)] * 2, certificate=Says())
    slow = SlowLoop(policy, control, lambda commands: None, 0.0)
    assert slow.certified_loss(0.0) == 0.1
    policy.set_prices([0.0, 0.5])
    assert slow.certified_loss(0.0) is None
    policy.set_prices([0.0, BASE])
    assert slow.certified_loss(0.0) == 0.1
