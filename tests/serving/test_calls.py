"""Calls to replicas, in virtual time: where nobody answers they end, and a replica is left out until a probe is answered."""

import asyncio
from collections import Counter

import pytest

from cascade.policy.stragglers import FIRST_PAUSE_S, STALL_FLOOR_S
from cascade.serving import replicas
from cascade.serving.calls import Calls, ReplicaSilent

pytestmark = pytest.mark.looptime(noop_cycles=0)

STAGE = "a stage of these tests"
A, B = 11, 12
PACE_S = 0.02


class Handle:
    """Stands where a method of a Serve handle stands: the replica with the fewest calls, unless one is named or left out.

    Attributes:
        hung: replicas that answer nothing.
        broken: replicas that only fail.
        got: the replica of every call.
    """

    def __init__(self) -> None:
        self.hung: set[int] = set()
        self.broken: set[int] = set()
        self.got: list[int] = []
        self._under_way = Counter[int]()

    async def remote(self, value, call, to=None):
        candidates = sorted(replicas.tags(STAGE) - replicas.left_out(STAGE))
        tag = min(candidates, key=lambda each: (self._under_way[each], self.got.count(each))) if to is None else to
        self.got.append(tag)
        replicas.note_sent(call, tag)
        self._under_way[tag] += 1
        try:
            if tag in self.hung:
                await asyncio.Event().wait()
            await asyncio.sleep(PACE_S)
            if tag in self.broken:
                raise ValueError("told to fail")
        finally:
            self._under_way[tag] -= 1
        return value


@pytest.fixture(autouse=True)
def two_replicas():
    replicas.note(STAGE, [A, B])
    yield
    replicas.note(STAGE, [])
    replicas.leave_out(STAGE, replicas.NOBODY)


@pytest.fixture
async def calls():
    return Calls(STAGE, asyncio.get_running_loop().time)


async def many(calls: Calls, handle: Handle, seconds: float) -> list[object]:
    """Two at a time for so long; what became of each."""
    loop, found = asyncio.get_running_loop(), []
    until = loop.time() + seconds

    async def one_by_one() -> None:
        while loop.time() < until:
            found.extend(await asyncio.gather(calls.make(handle.remote, "call", 1), return_exceptions=True))

    await asyncio.gather(one_by_one(), one_by_one())
    return found


async def test_answers_come_back_and_nothing_is_kept(calls):
    handle = Handle()
    assert await asyncio.gather(*(calls.make(handle.remote, "call", n) for n in range(5))) == list(range(5))
    assert set(handle.got) == {A, B}
    assert not replicas.sent()


async def test_what_a_call_raises_is_raised(calls):
    async def refuses(call):
        raise ValueError("no")

    async def times_out(call):
        raise TimeoutError("its own")

    with pytest.raises(ValueError, match="no"):
        await calls.make(refuses, "call")
    with pytest.raises(TimeoutError, match="its own"):
        await calls.make(times_out, "call")
    assert not replicas.sent()


async def test_a_replica_that_hangs_is_left_out_its_call_ends_and_the_others_get_the_rest(calls):
    handle = Handle()
    await many(calls, handle, 0.5)
    handle.hung = {A}
    began_s = asyncio.get_running_loop().time()
    found = await many(calls, handle, 1.0)
    assert [type(each) for each in found].count(ReplicaSilent) == 1
    assert replicas.left_out(STAGE) == {A}
    assert replicas.running(STAGE) == 1
    assert asyncio.get_running_loop().time() - began_s < STALL_FLOOR_S + 1.0
    before = len(handle.got)
    assert set(await many(calls, handle, FIRST_PAUSE_S / 4)) == {1}
    assert set(handle.got[before:]) == {B}


async def test_a_call_that_must_reach_a_replica_that_is_left_out_ends_at_once(calls):
    handle = Handle()
    await many(calls, handle, 0.5)
    handle.hung = {A}
    await many(calls, handle, 1.0)
    assert replicas.left_out(STAGE) == {A}
    before = len(handle.got)
    with pytest.raises(ReplicaSilent):
        await calls.make(handle.remote, "call", 1, to=A)
    assert len(handle.got) == before


async def test_a_replica_that_is_well_again_is_let_in_after_a_probe(calls):
    handle = Handle()
    await many(calls, handle, 0.5)
    handle.hung = {A}
    await many(calls, handle, 1.0)
    handle.hung = set()
    found = await many(calls, handle, 2 * FIRST_PAUSE_S)
    assert not any(isinstance(each, Exception) for each in found)
    assert replicas.left_out(STAGE) == set()
    assert handle.got[-20:].count(A) == 10


async def test_a_replica_that_stays_away_gets_few_calls(calls):
    handle = Handle()
    await many(calls, handle, 0.5)
    handle.hung = {A}
    await many(calls, handle, 1.0)
    before = len(handle.got)
    found = await many(calls, handle, 10.0)
    assert set(found) == {1}  # probes are copies: no caller waits for one
    later = handle.got[before:]
    assert 2 <= later.count(A) <= 5
    assert later.count(A) < 0.02 * len(later)


async def test_a_replica_that_only_fails_is_left_out(calls):
    handle = Handle()
    handle.broken = {A}
    await many(calls, handle, 1.0)
    assert replicas.left_out(STAGE) == {A}


async def test_a_call_that_is_cancelled_stays_cancelled(calls):
    handle = Handle()
    handle.hung = {A, B}
    call = asyncio.ensure_future(calls.make(handle.remote, "call", 1))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not replicas.sent()


async def test_what_a_probe_answers_is_handed_to_whoever_gives_it_back(calls):
    handle, given_back = Handle(), []
    await many(calls, handle, 0.5)
    handle.hung = {A}
    await many(calls, handle, 1.0)
    handle.hung = set()
    await asyncio.sleep(FIRST_PAUSE_S)
    assert await calls.make(handle.remote, "call", "wanted", discard=given_back.append) == "wanted"
    await asyncio.sleep(2 * PACE_S)
    assert given_back == ["wanted"]
    assert handle.got[-2:] in ([A, B], [B, A])
