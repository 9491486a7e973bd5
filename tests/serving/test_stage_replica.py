"""A stage replica that runs several calls in one pass: each gets its own rows, its own failure and its part of the time."""

import asyncio
from threading import Event, Semaphore

import numpy as np
import pytest
import torch
from ladders import fake_ladder
from torch import nn

from cascade.assembly import router_rows, router_slots
from cascade.models.energy import Energy
from cascade.models.fake_device import FakeDevice
from cascade.models.stage import Execution, StageResult, TorchStage
from cascade.serving.passes import Passes

SOON_S = 20.0
"""No result takes so long; one that never comes fails the test then."""
POISON = 13.0


class Network:
    """A network whose logits tell which rows they belong to, and which can be held up.

    Attributes:
        passes: the inputs of every pass, in order.
        gate: what every pass waits for.
        begun: set when a pass has begun.
    """

    def __init__(self):
        self.passes = []
        self.gate = Event()
        self.begun = Event()

    def __call__(self, inputs):
        self.passes.append(inputs)
        self.begun.set()
        assert self.gate.wait(SOON_S)
        x = inputs["x"]
        if (x == POISON).any():
            raise ValueError("poison")
        return StageResult(np.stack([x[:, 0], 2 * x[:, 0]], axis=1).astype(np.float32), 1.0)

    @property
    def sizes(self):
        return [len(inputs["x"]) for inputs in self.passes]


def call(*values, width=1, dtype=np.float32):
    return {"x": np.repeat(np.array(values, dtype=dtype)[:, None], width, axis=1)}


def logits(*values):
    return [[value, 2 * value] for value in values]


@pytest.fixture
def network():
    return Network()


def held(network, max_rows=8, gather_share=0.0):
    """Passes whose thread is busy with a call of one row, so that what is submitted next waits together."""
    passes = Passes(network, max_rows, gather_share)
    first = passes.submit(call(0))
    assert network.begun.wait(SOON_S)
    return passes, first


def test_calls_that_wait_run_in_one_pass_and_each_gets_its_own_rows_in_order(network):
    passes, first = held(network)
    results = [passes.submit(call(*values)) for values in ((1, 2, 3), (4,), (5, 6))]
    network.gate.set()
    got = [result.result(SOON_S).logits.tolist() for result in (first, *results)]
    assert got == [logits(0), logits(1, 2, 3), logits(4), logits(5, 6)]
    assert network.sizes == [1, 6]


def test_a_call_on_its_own_is_handed_over_as_it_came(network):
    network.gate.set()
    inputs = call(1, 2)
    Passes(network, 8).submit(inputs).result(SOON_S)
    assert network.passes[0] is inputs


def test_the_parts_of_a_pass_add_up_to_its_time(network):
    passes, _ = held(network)
    results = [passes.submit(call(*range(rows))) for rows in (1, 2, 5)]
    network.gate.set()
    assert [result.result(SOON_S).run_s for result in results] == pytest.approx([1 / 8, 2 / 8, 5 / 8])


@pytest.mark.parametrize("seed", range(5))
def test_a_pass_never_has_more_rows_than_it_may(network, seed):
    random = np.random.default_rng(seed)
    passes, _ = held(network, max_rows=6)
    values = [random.integers(100, 200, size=random.integers(1, 7)).tolist() for _ in range(40)]
    results = [passes.submit(call(*each)) for each in values]
    network.gate.set()
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(*each) for each in values]
    assert max(network.sizes) <= 6
    assert len(network.sizes) < 1 + len(values)
    in_order = np.concatenate([inputs["x"][:, 0] for inputs in network.passes[1:]])
    assert in_order.tolist() == [value for each in values for value in each]


def test_a_call_larger_than_a_pass_runs_alone(network):
    passes, _ = held(network, max_rows=2)
    results = [passes.submit(call(*values)) for values in ((1,), (2, 3, 4), (5,))]
    network.gate.set()
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(1), logits(2, 3, 4), logits(5)]
    assert network.sizes == [1, 1, 3, 1]


@pytest.mark.parametrize("other", [{"width": 2}, {"dtype": np.float64}])
def test_calls_of_other_shapes_or_types_are_not_joined(network, other):
    passes, _ = held(network)
    results = [passes.submit(call(1)), passes.submit(call(2, **other)), passes.submit(call(3, **other))]
    network.gate.set()
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(1), logits(2), logits(3)]
    assert network.sizes == [1, 1, 2]


def test_calls_with_other_inputs_are_not_joined(network):
    passes, _ = held(network)
    results = [passes.submit(call(1)), passes.submit({**call(2), "y": np.zeros((1, 1))})]
    network.gate.set()
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(1), logits(2)]
    assert network.sizes == [1, 1, 1]


def test_a_poisoned_call_fails_alone(network):
    passes, _ = held(network)
    good, bad, late = (passes.submit(call(*values)) for values in ((1, 2), (POISON,), (3,)))
    network.gate.set()
    assert good.result(SOON_S).logits.tolist() == logits(1, 2)
    assert late.result(SOON_S).logits.tolist() == logits(3)
    with pytest.raises(ValueError, match="poison"):
        bad.result(SOON_S)
    assert network.sizes == [1, 4, 2, 1, 1]
    assert passes.submit(call(4)).result(SOON_S).logits.tolist() == logits(4)


def test_a_network_that_mixes_up_rows_is_asked_call_by_call():
    def pooling(inputs):
        return StageResult(inputs["x"].mean(axis=0, keepdims=True), 1.0)

    network = Network()
    passes = Passes(lambda inputs: network(inputs) if len(inputs["x"]) == 1 else pooling(inputs), 8, 0.0)
    passes.submit(call(0))
    assert network.begun.wait(SOON_S)
    results = [passes.submit(call(value)) for value in (1, 2)]
    network.gate.set()
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(1), logits(2)]


def test_a_call_that_was_cancelled_before_its_pass_is_not_run(network):
    passes, _ = held(network)
    given_up, kept = passes.submit(call(1, 2)), passes.submit(call(3))
    assert given_up.cancel()
    network.gate.set()
    assert kept.result(SOON_S).logits.tolist() == logits(3)
    assert network.sizes == [1, 1]


def test_a_call_that_is_cancelled_in_its_pass_does_not_harm_the_others(network):
    async def run():
        passes = Passes(network, 8, 0.0)
        first = asyncio.wrap_future(passes.submit(call(0)))
        await asyncio.to_thread(network.begun.wait, SOON_S)
        first.cancel()
        second = asyncio.wrap_future(passes.submit(call(1)))
        network.gate.set()
        return (await second).logits.tolist()

    assert asyncio.run(run()) == logits(1)


# -- waiting for the callers of the last pass; for so long that to wait in vain would fail the test --------------------

LONG = 1e6


def after_a_pass_of_two(network):
    """Passes of four rows that have just answered two callers together."""
    passes, _ = held(network, max_rows=4, gather_share=LONG)
    both = [passes.submit(call(value, value)) for value in (1, 2)]
    network.gate.set()
    for result in both:
        result.result(SOON_S)
    assert network.sizes == [1, 4]
    return passes


def test_the_callers_of_a_pass_meet_in_the_next_one(network):
    passes = after_a_pass_of_two(network)
    again = [passes.submit(call(value)) for value in (3, 4)]
    assert [result.result(SOON_S).logits.tolist() for result in again] == [logits(3), logits(4)]
    assert network.sizes == [1, 4, 2]


def test_a_full_pass_waits_for_nobody(network):
    passes = after_a_pass_of_two(network)
    assert passes.submit(call(3, 4, 5, 6)).result(SOON_S).logits.tolist() == logits(3, 4, 5, 6)


def test_a_lone_caller_is_not_waited_for(network):
    network.gate.set()
    passes = Passes(network, 8, LONG)
    for value in (1, 2, 3):
        assert passes.submit(call(value)).result(SOON_S).logits.tolist() == logits(value)


# -- several passes under way ------------------------------------------------------------------------------------------


class Pipelined(Network):
    """A network that begins passes at once and lets them end when it is told to.

    Attributes:
        ends: one release for each pass that may end.
        begun_passes: released for each pass that has begun.
    """

    def __init__(self):
        super().__init__()
        self.gate.set()
        self.ends = Semaphore(0)
        self.begun_passes = Semaphore(0)

    def begin(self, inputs):
        copied = {name: array.copy() for name, array in inputs.items()}
        if (copied["x"] == UNFIT).any():
            raise ValueError("unfit")
        self.begun_passes.release()

        def wait():
            assert self.ends.acquire(timeout=SOON_S)
            return self(copied)

        return wait

    def run(self, inputs):
        wait = self.begin(inputs)
        self.ends.release()
        return wait()

    def have_begun(self, passes):
        assert all(self.begun_passes.acquire(timeout=SOON_S) for _ in range(passes))


UNFIT = 17.0


@pytest.fixture
def pipelined():
    return Pipelined()


def passes_of(network, in_flight=2, max_rows=4):
    return Passes(network.run, max_rows, 0.0, begin=network.begin, in_flight=in_flight)


def test_a_full_pass_is_begun_behind_the_one_that_runs(pipelined):
    passes = passes_of(pipelined)
    results = [passes.submit(call(value, value, value, value)) for value in (1, 2)]
    pipelined.have_begun(2)
    assert not pipelined.sizes  # and none has ended
    pipelined.ends.release(2)
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(*[value] * 4) for value in (1, 2)]


def test_no_more_passes_are_under_way_than_the_network_takes(pipelined):
    passes = passes_of(pipelined, in_flight=2)
    results = [passes.submit(call(value, value, value, value)) for value in (1, 2, 3)]
    pipelined.have_begun(2)
    pipelined.ends.release()
    pipelined.have_begun(1)  # only now
    pipelined.ends.release(2)
    for value, result in zip((1, 2, 3), results, strict=True):
        assert result.result(SOON_S).logits.tolist() == logits(*[value] * 4)


def test_a_pass_that_is_not_full_grows_until_its_turn_comes(pipelined):
    passes = passes_of(pipelined)
    first = passes.submit(call(1))
    pipelined.have_begun(1)
    results = [passes.submit(call(value)) for value in (2, 3, 4)]
    pipelined.ends.release(2)
    assert [result.result(SOON_S).logits.tolist() for result in (first, *results)] == [logits(v) for v in (1, 2, 3, 4)]
    assert pipelined.sizes == [1, 3]


def test_a_pass_that_has_filled_up_meanwhile_need_not_wait_any_longer(pipelined):
    passes = passes_of(pipelined)
    first, second = passes.submit(call(1)), passes.submit(call(2, 3))
    pipelined.have_begun(1)
    third = passes.submit(call(4, 5))
    pipelined.have_begun(1)
    pipelined.ends.release(2)
    got = [result.result(SOON_S).logits.tolist() for result in (first, second, third)]
    assert got == [logits(1), logits(2, 3), logits(4, 5)]
    assert pipelined.sizes == [1, 4]


@pytest.mark.parametrize(("bad", "message"), [(POISON, "poison"), (UNFIT, "unfit")], ids=["at its end", "at its start"])
def test_a_call_that_spoils_a_pass_under_way_fails_alone(pipelined, bad, message):
    passes = passes_of(pipelined)
    first = passes.submit(call(1, 1, 1, 1))
    pipelined.have_begun(1)
    good, spoilt, late = (passes.submit(call(*values)) for values in ((2, 3), (bad,), (4,)))
    behind = passes.submit(call(5, 6, 7, 8))
    pipelined.ends.release(3)
    assert [each.result(SOON_S).logits.tolist() for each in (first, good, late, behind)] == [
        logits(1, 1, 1, 1),
        logits(2, 3),
        logits(4),
        logits(5, 6, 7, 8),
    ]
    with pytest.raises(ValueError, match=message):
        spoilt.result(SOON_S)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_calls_get_their_own_rows_from_a_gpu_with_several_passes_under_way(seed, in_flight):
    torch.manual_seed(0)
    stage = TorchStage(Twice(), ["x"], device=FakeDevice(seed), execution=Execution(max_rows=6, in_flight=in_flight))
    stage.warm_up({"x": np.zeros((1, 1), np.float32)}, [])
    passes = Passes(stage.run, 6, begin=stage.begin, in_flight=stage.in_flight)
    random = np.random.default_rng(seed)
    values = [random.integers(100, 200, size=random.integers(1, 7)).tolist() for _ in range(60)]
    results = [passes.submit(call(*each)) for each in values]
    assert [result.result(SOON_S).logits.tolist() for result in results] == [logits(*each) for each in values]


class Twice(nn.Module):
    """Logits (x, 2 x)."""

    def forward(self, x):
        return torch.cat([x, 2 * x], dim=1)


def test_the_parts_of_a_pass_add_up_to_its_energy():
    stage = Network()
    stage.gate.set()

    def run(inputs):
        return StageResult(stage(inputs).logits, 1.0, Energy(8.0, 2.0))

    passes, _ = held(Network())
    passes = Passes(run, 8, 0.0)
    assert passes.submit(call(1, 2)).result(SOON_S).energy == Energy(8.0, 2.0)
    assert run(call(1, 2, 3, 4)).part(slice(1, 2)).energy == Energy(2.0, 0.5)


# -- what each router may send -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routers", "rows", "slots"), [(1, 32, 6), (2, 16, 3), (3, 11, 3), (4, 8, 3), (32, 1, 3), (64, 1, 2), (500, 1, 1)]
)
def test_the_parts_of_all_routers_make_a_full_pass_with_every_replica(routers, rows, slots):
    stage = fake_ladder().spec.stages[1].model_copy(update={"max_batch_size": 32, "calls_per_replica": 2})
    assert (router_rows(stage, routers), router_slots(stage, routers, replicas=3)) == (rows, slots)
    assert routers * rows >= 32
    assert routers * rows * slots >= 3 * 32


def test_a_stage_inside_the_router_is_not_shared():
    stage = fake_ladder().spec.stages[0].model_copy(update={"placement": "router", "max_batch_size": 32})
    assert (router_rows(stage, 4), router_slots(stage, 4, replicas=1)) == (32, 1)
