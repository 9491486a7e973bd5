"""Old routers keep the replicas that they can use: which are called, how they are asked to stay, and when no longer."""

import asyncio
from itertools import pairwise

import pytest

from cascade.serving import replicas
from cascade.serving.replicas import Usable
from cascade.serving.staying import LOOK_S, STAY_S, Staying


@pytest.fixture
def name(request) -> str:
    """A deployment of which the router's tables are about the weights called old."""
    name = f"stage of {request.node.name}"
    replicas.expect(name, "old")
    return name


def told(usable: Usable[str, str], **running: str | None) -> list[str]:
    return sorted(usable.told({each: (digest, each) for each, digest in running.items()}))


def test_replicas_with_other_weights_are_not_called_and_do_not_count(name):
    assert told(Usable(name), a="old", b="new") == ["a"]
    assert replicas.running(name) == 1
    assert replicas.has_strangers(name)


def test_a_replica_that_says_nothing_of_its_weights_is_called(name):
    assert told(Usable(name), a=None) == ["a"]


def test_a_replica_that_goes_during_an_update_is_called_until_it_is_found_dead(name):
    usable = Usable[str, str](name)
    told(usable, a="old", b="old")
    assert told(usable, b="old", c="new") == ["a", "b"]
    assert told(usable, c="new", d="new") == ["a", "b"]
    usable.died("a")
    assert replicas.running(name) == 1
    assert told(usable, c="new", d="new") == ["b"]


def test_a_replica_that_goes_without_an_update_is_gone(name):
    usable = Usable[str, str](name)
    told(usable, a="old", b="old")
    assert told(usable, b="old") == ["b"]
    assert told(usable) == []
    assert replicas.running(name) == 0
    assert not replicas.has_strangers(name)


def test_once_an_update_was_taken_back_all_is_as_before(name):
    usable = Usable[str, str](name)
    told(usable, a="old")
    told(usable, c="new")
    assert told(usable, d="old") == ["d"]
    assert not replicas.has_strangers(name)


def test_without_a_word_of_what_fits_all_replicas_are_called():
    assert told(Usable("a stage of which nobody said a word"), a="old", b="new") == ["a", "b"]


@pytest.mark.looptime(noop_cycles=0)
async def test_replicas_are_asked_to_stay_while_there_are_others_and_never_let_go_in_between():
    asked: list[float] = []
    strangers = {"s1": False}

    async def ask(seconds):
        asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)

    staying = Staying({"s1": ask}, lambda name: strangers[name])
    await staying.open()
    await asyncio.sleep(60)
    assert asked == []
    began = asyncio.get_running_loop().time()
    strangers["s1"] = True
    await asyncio.sleep(10)
    assert asked[0] - began <= LOOK_S
    assert all(later - earlier < STAY_S for earlier, later in pairwise(asked))
    strangers["s1"] = False
    count = len(asked)
    await asyncio.sleep(10)
    assert len(asked) == count
    await staying.close()


@pytest.mark.looptime(noop_cycles=0)
async def test_a_replica_that_cannot_be_asked_is_asked_again():
    asked = []

    async def ask(seconds):
        asked.append(seconds)
        raise RuntimeError("gone")

    staying = Staying({"s1": ask}, lambda _: True)
    await staying.open()
    await asyncio.sleep(3 * STAY_S)
    assert len(asked) >= 3
    await staying.close()
