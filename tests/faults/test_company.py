"""Bad company of the load tests: each kind is told by a healthy server what it should be, and anything else is noticed."""

import asyncio
from random import Random

import numpy as np
import pytest
from client_cases import INFER, served, until
from ladders import told

from cascade.serving.fakes import FakeStage
from cascade.wire.client import encode_request
from cascade.wire.tensors import Datatype, TensorSpec
from loadtests.faults.company import POISON, RATES, TOLD, Company, unexpected
from loadtests.faults.network import CURSED

ROW = TensorSpec("x", Datatype.FP32, (1,))


def encode(rows):
    return encode_request([(ROW, np.array(rows, np.float32)[:, :1])])


def cursed(inputs):
    """An exception for the row that no network takes, and no finite score for NaN."""
    if (inputs["x"] == CURSED).any():
        raise FloatingPointError("told to fail on this row")
    return told(0)(inputs)


@pytest.mark.parametrize("kind", list(RATES))
async def test_clients_that_behave_badly_are_told_so_and_leave_nothing_behind(kind):
    async with served([FakeStage(cursed, seconds=0.02)]) as server:
        company = Company(server.port, INFER, encode, Random(3))
        await asyncio.gather(*(getattr(company, kind)() for _ in range(40)))
        assert sum(company.seen.values()) == 40
        assert unexpected(kind, company.seen) == {}
        await until(lambda: not server.left())
    if kind == "poison":
        assert {what.partition(" ")[0] for what in company.seen} == set(POISON)


async def test_bodies_that_are_huge_slow_or_endless_are_cut_off():
    limits = {"max_body_bytes": 4096, "body_s": 0.3, "head_s": 0.3}
    async with served([FakeStage(told(0))], limits=limits) as server:
        company = Company(server.port, INFER, encode, Random(3))
        await asyncio.gather(*(client() for client in (company.huge, company.drip, company.endless, company.flood)))
        assert unexpected("bodies", company.seen) == {}
        assert {what.partition(" ")[0] for what in company.seen} == {"huge", "drip", "endless", "flood"}
        await until(lambda: not server.left())


async def test_they_keep_on_behaving_so():
    async with served([FakeStage(told(0))]) as server:
        company = Company(server.port, INFER, encode, Random(3))
        keeping = asyncio.create_task(company.keep_on("bodies"))
        await until(lambda: sum(company.seen.values()) > 1)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("kind", list(TOLD))
def test_what_nobody_should_be_told_is_noticed(kind):
    assert unexpected(kind, {"nan 500": 2, "huge silence": 1}) == {"nan 500": 2, "huge silence": 1}


def test_an_answer_to_a_poisoned_row_is_noticed():
    assert unexpected("poison", {"nan 200": 1, "nan 422": 5}) == {"nan 200": 1}
