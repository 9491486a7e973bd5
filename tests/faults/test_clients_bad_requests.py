"""Bad requests beside good ones: those that poison a batch, do not fit, are too large or too slow harm nobody else."""

import asyncio

import numpy as np
from client_cases import INFER, ask, message, served, until
from ladders import SURE, told

from cascade.serving.fakes import FakeStage

HEAD = f"POST {INFER} HTTP/1.1\r\nhost: a\r\n".encode()


def poisonable(inputs):
    """An exception for a row of 13, NaN for one of 14."""
    if (inputs["x"] == 13.0).any():
        raise FloatingPointError("told to fail on this row")
    logits = told(0)(inputs)
    logits[(inputs["x"] == 14.0).any(axis=1)] = np.nan
    return logits


async def test_poison_and_misfits_beside_good_requests_are_refused_alone():
    async with served([FakeStage(poisonable, seconds=0.01)], deadline={"default_s": 30.0, "max_s": 30.0}) as server:
        good, nan, raising = message(SURE), message(14.0), message(13.0)
        misfit, infinite = message(SURE, SURE), message(float("inf"))  # two numbers a row where one is declared
        contents = [good, good, nan, good, raising, good, misfit, good, infinite] * 12
        statuses = [status for status, _ in await asyncio.gather(*(ask(server.port, content) for content in contents))]
        by_kind = {content: {s for c, s in zip(contents, statuses, strict=True) if c == content} for content in contents}
        assert by_kind[good] == {200}
        assert by_kind[misfit] == by_kind[infinite] == {400}
        assert by_kind[nan] <= {422, 502}
        assert by_kind[raising] <= {422, 502}
        await until(lambda: not server.left())
        assert sum(server.router.requests.values()) == len(contents)


async def test_bodies_that_are_too_large_or_too_slow_end_and_others_are_answered():
    limits = {"max_body_bytes": 4096, "body_s": 0.2, "head_s": 0.2}
    async with served([FakeStage(told(0), seconds=0.01)], limits=limits) as server:
        announced = HEAD + b"content-length: 1000000000\r\nconnection: close\r\n\r\n"
        chunked = (
            HEAD
            + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            + b"1000\r\n"
            + bytes(4096)
            + b"\r\n"
            + b"9\r\n123456789\r\n"
        )
        dripping = HEAD + b"content-length: 100\r\n\r\nabc"
        headless = HEAD + b"x-a: "
        bad = [announced, chunked, dripping, headless] * 5
        found = await asyncio.gather(*(ask(server.port, each) for each in [*bad, *[message(SURE)] * 20]))
        statuses = [status for status, _ in found]
        assert statuses[:20] == [413, 413, 408, 408] * 5
        assert statuses[20:] == [200] * 20
        await until(lambda: not server.left())
