"""Time limits that are zero, negative, absent, tiny or huge, and clocks that are wrong: only time that is left counts."""

import ast
import asyncio
from pathlib import Path

import pytest
from client_cases import ask, message, served, until
from ladders import SURE, UNSURE, config, fake_stages, make_router, row, told

from cascade.serving.fakes import FakeStage

ROOT = Path(__file__).parents[2] / "cascade"
WALL_CLOCKS = {"time.time", "time.time_ns", "time.gmtime", "time.localtime", "datetime.now", "datetime.utcnow"}
DEADLINE = {"default_s": 20.0, "max_s": 40.0}


@pytest.mark.parametrize(
    ("header", "budget_s"),
    [
        ((), 20.0),
        (("x-request-timeout-seconds: 0",), 20.0),
        (("x-request-timeout-seconds: -5",), 20.0),
        (("x-request-timeout-seconds: nan",), 20.0),
        (("x-request-timeout-seconds: 1e300",), 40.0),
        (("x-request-timeout-seconds: inf",), 20.0),
        (("grpc-timeout: 99999999H",), 40.0),
        (("grpc-timeout: 0S",), 20.0),
        (("x-request-timeout-seconds: 30", "prefer: wait=10"), 10.0),
    ],
)
async def test_a_limit_of_nothing_is_none_and_a_long_one_is_cut(header, budget_s):
    async with served(fake_stages(1), deadline=DEADLINE) as server:
        assert (await ask(server.port, message(SURE, headers=header)))[0] == 200
        (asked_s,) = server.router.budgets_s
        assert budget_s - 5 < asked_s <= budget_s  # reading it came out of it


async def test_a_limit_too_short_for_any_stage_is_refused_at_once_and_nothing_is_queued():
    stage = FakeStage(told(0), seconds=0.05)
    async with served([stage], configs=[config(a_s=0.05, slots=1)], deadline=DEADLINE) as server:
        content = message(SURE, headers=["x-request-timeout-seconds: 0.001"])
        statuses = [(await ask(server.port, content))[0] for _ in range(10)]
        assert set(statuses) == {504}
        await until(lambda: not server.left())
        assert len(stage.calls) <= 1  # once in a while one is let through, see ServiceTime.refused


async def test_a_limit_in_the_body_counts_as_one_in_a_header():
    async with served(fake_stages(1), deadline=DEADLINE) as server:
        assert (await ask(server.port, message(SURE, timeout=5_000_000)))[0] == 200
        assert server.router.budgets_s[0] <= 5.0


# -- clocks -------------------------------------------------------------------------------------------------------------


async def outcomes_at(offset_s: float) -> list[tuple]:
    """What a router answers whose clock is off by so much, in virtual time."""
    stages = [FakeStage(told(0), seconds=0.01), FakeStage(told(1), seconds=0.3)]
    configs = [config(), config(cost=10.0, slots=1, max_batch_size=2, a_s=0.3)]
    router = make_router(stages, configs)
    loop = asyncio.get_running_loop()
    router._clock = lambda: loop.time() + offset_s
    asks = [router.answer(row(UNSURE, SURE), 1, budget_s=budget_s) for budget_s in (0.1, 0.5, 1.0, 1.0, 1.0)]
    return [(answer.stage, answer.reason) for (answer,) in await asyncio.gather(*asks)]


@pytest.mark.looptime(noop_cycles=0)
@pytest.mark.parametrize("offset_s", [-5.0, 5.0, 1e6])
async def test_a_clock_that_is_off_changes_nothing(offset_s):
    assert await outcomes_at(offset_s) == await outcomes_at(0.0)


async def test_the_date_that_a_client_gives_changes_nothing():
    async with served(fake_stages(1), deadline=DEADLINE) as server:
        for date in ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"):
            assert (await ask(server.port, message(SURE, headers=[f"date: {date}"])))[0] == 200


def test_the_wall_clock_is_read_for_no_decision():
    """It says when an inference was, to people and to tracers, and seeds randomness; all else measures time that passed."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCKS:
                found.add(str(path.relative_to(ROOT)))
    assert {name for name in found if name.startswith(("policy/", "wire/"))} == set()
    said = {"serving/app.py", "serving/explaining.py", "serving/service.py", "serving/tracing.py"}
    assert {name for name in found if name.startswith("serving/")} <= said
