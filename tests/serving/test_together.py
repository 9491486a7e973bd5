"""Stages that run together: tickets, batches that are split by replica, what is lost, and what is given back."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.loading import load_network
from cascade.models.fake_device import FakeDevice
from cascade.serving.counting import AddressedRouter
from cascade.serving.passes import Turns
from cascade.serving.replicas import tag_of
from cascade.serving.states import KeepsState, Kept, gather_states
from cascade.serving.together import FREE_EVERY_S, TICKET, TogetherHandle, TogetherReplica, TogetherStage
from cascade.spec import Ladder
from tests.exit_ladders import FEATURES, rotated_scores, write_exit_ladder

ROWS = 7


class Replicas:
    """Stands where a Serve handle stands: replicas of this process, by tag; one that is not there is replaced by another.

    Attributes:
        replicas: by tag; take one out and it has ended.
        calls: method and tag of every call.
    """

    def __init__(self, replicas: dict[int, TogetherReplica]) -> None:
        self.replicas = replicas
        self.calls: list[tuple[str, int]] = []
        self.failing: set[tuple[str, int]] = set()
        self._turn = 0

    def options(self, *, method_name: str, **_: str):
        async def remote(*args, to=None, call=0):
            tags = list(self.replicas)
            self._turn += 1
            tag = to if to in self.replicas else tags[self._turn % len(tags)]
            self.calls.append((method_name, tag))
            if (method_name, tag) in self.failing:
                raise RuntimeError("the replica has ended")
            named = {} if to is None else {"to": to}
            return await getattr(self.replicas[tag], method_name)(*args, **named)

        return SimpleNamespace(remote=remote)

    def rows_kept(self) -> list[int]:
        return [replica._kept.rows for replica in self.replicas.values()]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> Ladder:
    return Ladder.read(write_exit_ladder(tmp_path_factory.mktemp("together")))


def served(ladder: Ladder, count: int = 1, device=None) -> tuple[Replicas, list[TogetherStage]]:
    replicas = Replicas({tag: TogetherReplica(ladder, range(3), device, tag=tag) for tag in range(11, 11 + count)})
    handle = TogetherHandle(replicas, "first")
    return replicas, [TogetherStage(handle, index) for index in range(3)]


def inputs(rows: int = ROWS) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(rows, FEATURES)).astype(np.float32)}


def expected(rows: int = ROWS) -> np.ndarray:
    """Logits [rows, exits, classes] of one pass."""
    import torch

    network, _ = rotated_scores()
    with torch.inference_mode():
        return network(torch.from_numpy(inputs(rows)["x"])).numpy()


def never(places):
    raise AssertionError(f"rows {places} were not lost")


def again(places):
    return {"x": inputs()["x"][places]}


@pytest.mark.parametrize("device", [None, FakeDevice()], ids=["cpu", "gpu"])
async def test_rows_that_stay_are_answered_as_in_one_pass(ladder, device):
    replicas, stages = served(ladder, device=device)
    assert all(isinstance(stage, KeepsState) for stage in stages)
    result = await stages[0].run(inputs())
    np.testing.assert_allclose(result.logits, expected()[:, 0], atol=1e-5)
    assert result.state[TICKET].shape == (ROWS, 2)
    order = np.array([4, 0, 6, 2])
    result = await stages[1].resume({TICKET: result.state[TICKET][order]}, never)
    np.testing.assert_allclose(result.logits, expected()[order, 1], atol=1e-5)
    result = await stages[2].resume({TICKET: result.state[TICKET][::-1]}, never)
    np.testing.assert_allclose(result.logits, expected()[order[::-1], 2], atol=1e-5)
    assert result.state is None
    assert result.recomputed == 0
    assert replicas.rows_kept() == [3]  # the rows that nobody has asked for or given back


async def test_a_call_that_reaches_another_replica_finds_none_of_its_rows_and_frees_none(ladder):
    replicas, stages = served(ladder, count=2)
    tickets = [(await stages[0].run(inputs())).state[TICKET] for _ in range(2)]
    (first, slots), (second, _) = ((each[0, 0], each[:, 1]) for each in tickets)
    assert first != second
    reply = await replicas.replicas[second].resume(1, slots, slots, to=first)
    await replicas.replicas[second].free(slots, to=first)
    assert (len(reply.logits), len(reply.places)) == (0, 0)
    assert replicas.rows_kept() == [ROWS, ROWS]


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(ROWS)), cut=st.integers(1, ROWS - 1))
def test_a_batch_whose_rows_lie_with_several_replicas_is_split(ladder, order, cut):
    async def go():
        replicas, stages = served(ladder, count=3)
        x = inputs()["x"]
        parts = [await stages[0].run({"x": x[:cut]}), await stages[0].run({"x": x[cut:]})]
        kept = [Kept(0, part.state, place) for part in parts for place in range(len(part.logits))]
        result = await stages[1].resume(gather_states([kept[row] for row in order]), never)
        np.testing.assert_allclose(result.logits, expected()[list(order), 1], atol=1e-5)
        assert sorted(tag for method, tag in replicas.calls if method == "resume") == sorted(
            {tag for method, tag in replicas.calls if method == "run"}
        )
        result = await stages[2].resume(result.state, never)
        np.testing.assert_allclose(result.logits, expected()[list(order), 2], atol=1e-5)
        assert sum(replicas.rows_kept()) == 0

    asyncio.run(go())


@pytest.mark.parametrize("how", ["ended", "failing", "dropped"])
async def test_rows_whose_state_is_lost_are_run_from_their_inputs_wherever_there_is_a_replica(ladder, how):
    replicas, stages = served(ladder, count=2)
    x = inputs()["x"]
    parts = [await stages[0].run({"x": x[:3]}), await stages[0].run({"x": x[3:]})]
    tickets = np.concatenate([part.state[TICKET] for part in parts])
    lost = int(tickets[0, 0])
    if how == "ended":
        del replicas.replicas[lost]
    elif how == "failing":
        replicas.failing.add(("resume", lost))
    else:
        replicas.replicas[lost]._kept.free(tickets[:3, 1])
    result = await stages[1].resume({TICKET: tickets}, again)
    np.testing.assert_allclose(result.logits, expected()[:, 1], atol=1e-5)
    assert result.recomputed == 3
    result = await stages[2].resume(result.state, again if how == "failing" else never)
    np.testing.assert_allclose(result.logits, expected()[:, 2], atol=1e-5)


async def test_rows_that_go_no_further_are_told_of_at_once_with_the_next_call_and_soon_without_one(ladder):
    replicas, stages = served(ladder)
    state = (await stages[0].run(inputs())).state
    stages[0].forget(state, [0, 1])
    result = await stages[1].resume({TICKET: state[TICKET][2:4]}, never)
    assert replicas.rows_kept() == [3 + 2]  # three that wait, and two that have gone on
    stages[0].forget(state, [4, 5, 6])
    stages[1].forget(result.state, [0, 1])
    async with asyncio.timeout(20 * FREE_EVERY_S):
        while replicas.rows_kept() != [0]:
            await asyncio.sleep(FREE_EVERY_S / 10)
    assert [method for method, _ in replicas.calls] == ["run", "resume", "free"]


async def test_a_failing_batch_is_an_error_where_its_rows_fail_from_their_inputs_too(ladder):
    replicas, stages = served(ladder)
    state = (await stages[0].run(inputs())).state
    replicas.failing.update((method, tag) for method in ("run", "resume") for tag in replicas.replicas)
    with pytest.raises(RuntimeError, match="has ended"):
        await stages[1].resume(state, again)


async def test_the_seconds_of_a_split_batch_add_up(ladder):
    _, stages = served(ladder, count=2)
    x = inputs()["x"]
    parts = [await stages[0].run({"x": x[:3]}), await stages[0].run({"x": x[3:]})]
    result = await stages[1].resume({TICKET: np.concatenate([part.state[TICKET] for part in parts])}, never)
    assert result.run_s > 0
    assert result.energy is None


def test_a_stage_that_runs_together_answers_as_one_that_runs_apart(ladder):
    async def go():
        _, stages = served(ladder)
        result = await stages[0].run(inputs())
        together = await stages[1].resume(result.state, never)
        apart = load_network(ladder, ladder.spec.stages[0]).run(inputs())
        apart = load_network(ladder, ladder.spec.stages[1]).run(apart.state)
        np.testing.assert_array_equal(together.logits, apart.logits)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("full", "order"),
    [
        (set(), [2, 0, 1]),  # as they asked
        ({0, 1}, [0, 1, 2]),  # the cheapest with a full pass first
        ({1}, [1, 2, 0]),
    ],
)
def test_a_full_pass_goes_first_the_cheapest_before_the_others_and_else_whoever_asked_first(full, order):
    turns, had, full = Turns(), [], set(full)

    def take(stage):
        with turns.turn(stage, lambda: stage in full):
            had.append(stage)
            full.discard(stage)

    threads = []
    with turns.turn(3, lambda: False):
        for place, stage in enumerate((2, 0, 1), start=1):
            threads.append(threading.Thread(target=take, args=(stage,)))
            threads[-1].start()
            while len(turns._waiting) < place:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert had == order


def test_a_pass_that_fills_up_while_others_wake_leaves_nobody_waiting_for_the_other():
    turns, had = Turns(), []

    def take(stage, is_full):
        with turns.turn(stage, is_full):
            had.append(stage)

    # To the first thread the second one's pass is full, to the second one itself it is not yet.
    first = threading.Thread(target=take, args=(0, lambda: False), daemon=True)
    second = threading.Thread(target=take, args=(1, lambda: threading.current_thread() is not second), daemon=True)
    with turns.turn(2, lambda: False):
        for place, thread in enumerate((first, second), start=1):
            thread.start()
            while len(turns._waiting) < place:
                time.sleep(0.001)
    for thread in (first, second):
        thread.join(timeout=30)
    assert had == [1, 0]


def test_the_cheapest_stage_goes_again_while_it_has_full_passes():
    turns, had, waiting = Turns(), [], [True]

    def go_on(stage, passes):
        # As the one thread of a stage does: whether another full pass waits is known as this one ends.
        for left in reversed(range(passes)):
            with turns.turn(stage, lambda left=left: stage == 0 and (waiting[0] or left > 0)):
                had.append(stage)
                waiting[0] = False

    threads = [threading.Thread(target=go_on, args=(stage, passes), daemon=True) for stage, passes in ((1, 1), (0, 3))]
    with turns.turn(2, lambda: False):
        for place, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < place:
                time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=30)
    assert had == [0, 0, 0, 1]


# -- addresses ---------------------------------------------------------------------------------------------------------


class Id(NamedTuple):
    unique_id: str


def candidates(*names: str):
    return [SimpleNamespace(replica_id=Id(name)) for name in names]


def pending(**kwargs):
    return SimpleNamespace(kwargs=kwargs, routing_context=SimpleNamespace(should_backoff=False))


async def test_a_call_with_an_address_goes_to_that_replica_alone_while_it_is_there():
    router = AddressedRouter.__new__(AddressedRouter)
    router._deployment_id = SimpleNamespace(name="first")
    router._unavailable_s = {}
    router._get_curr_time_s = time.monotonic
    few = candidates("a", "b", "c")
    asked = pending(to=tag_of("b"))
    assert await router.choose_replicas(few, asked) == [[few[1]]]
    assert asked.routing_context.should_backoff
    (any_,) = await router.choose_replicas(few, pending(to=tag_of("gone")))
    assert len(any_) == 3
    (any_,) = await router.choose_replicas(few, pending())
    assert len(any_) == 3


def test_tags_are_whole_numbers_that_a_ticket_can_hold():
    tags = {tag_of(f"replica{k}") for k in range(1000)}
    assert len(tags) == 1000
    assert max(tags) < 1 << 63
