"""A short round of `python -m benchmarks.fuzz`: real servers on loopback, inputs of every kind, nothing wrong or left."""

import asyncio

import pytest

from benchmarks.fuzz.inputs import KINDS, make
from benchmarks.fuzz.target import running
from benchmarks.fuzz.trying import Found, try_all


@pytest.mark.parametrize("keys", [False, True])
async def test_no_input_brings_a_500_a_hang_or_a_leak(keys):
    found = Found()
    async with running(keys=keys) as target:
        await try_all(target, 7, range(96), found, beside=96)
        while target.left:  # a deadline at most
            await asyncio.sleep(0.01)
    assert found.wrong == []
    assert sum(found.tried.values()) == 96


def test_an_input_follows_from_its_number():
    assert [make(3, number) for number in range(50)] == [make(3, number) for number in range(50)]
    assert {make(3, number).kind for number in range(500)} == {name for name, _, _ in KINDS}
