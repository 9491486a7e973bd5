"""The status routes over fake stages: the page and its policy, the figures of one router and of several."""

import asyncio
import base64
import hashlib
import re

import pytest
from asgi import Client, started
from ladders import SURE, fake_ladder, fake_stages, make_router, row

from cascade.serving import status
from cascade.serving.ingress import Ingress
from cascade.serving.service import Service
from cascade.serving.telemetry import Monitor
from cascade.wire.live import LiveStatistics, StageLive
from cascade.wire.status import RouterReading

pytestmark = pytest.mark.looptime(noop_cycles=0)


def app(routers: int = 1) -> Ingress:
    """An application whose router keeps figures."""

    def make():
        router = make_router(fake_stages(2, seconds=0.01))
        clock = asyncio.get_running_loop().time
        router.monitor = Monitor(["s0", "s1"], router.policy, router.slow_loop, lambda: 0.0, clock)
        router.version = "v1"
        return router

    return Ingress(Service(fake_ladder(2, router={"replicas": routers}), make))


def other(name: str, rate: float) -> RouterReading:
    stages = {f"s{place}": StageLive(0.01, 0.5, 10.0, 1, 0) for place in range(2)}
    return RouterReading(
        name, "v1", LiveStatistics(rate=rate, stages=stages, degraded=0.0, shed_per_s=0.0, answered_per_s=rate)
    )


async def test_the_page_may_run_its_own_script_and_nothing_else():
    async with started(app()) as client:
        page = await client.get("/status")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["connect-src"] == "'self'"
        for element in ("script", "style"):
            (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page.body.decode(), re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert rules[f"{element}-src"] == f"'sha256-{digest}'"
        assert not re.search(r'(src|href)="(?!data:)', page.body.decode()), "nothing comes from outside"
        assert not re.search(r' (style|on\w+)="', page.body.decode()), "such attributes would be blocked"
        head = await client.request("HEAD", "/status")
        assert (head.status, head.body) == (200, b"")


async def test_the_figures_of_a_router_that_is_alone():
    application = app()
    async with started(application) as client:
        await application._service.router.answer(row(SURE, 0), 1, budget_s=1.0)
        reply = await client.get("/status/figures")
        assert reply.headers["cache-control"] == "no-store"
        figures = reply.json()
    assert figures["model"] == "fake"
    assert {key: figures["routers"][key] for key in ("expected", "answered")} == {"expected": 1, "answered": 1}
    assert figures["routers"]["each"][0]["version"] == "v1"
    assert figures["live"]["shares"] == {"s0": 1.0, "s1": 0.0}


async def test_the_figures_of_several_routers_are_put_together():
    application = app(routers=2)

    async def ask_all():
        return [application._service.reading(), other("z", 100.0)]

    application.status.ask_all = ask_all
    async with started(application) as client:
        figures = (await client.get("/status/figures")).json()
    assert figures["routers"]["answered"] == 2
    assert figures["live"]["rate"] == 100.0


async def test_many_watchers_ask_the_others_once():
    application, asked = app(routers=2), []

    async def ask_all():
        asked.append(1)
        await asyncio.sleep(0.1)
        return [other("z", 1.0)]

    application.status.ask_all = ask_all
    async with started(application) as client:
        replies = await asyncio.gather(*(client.get("/status/figures") for _ in range(5)))
    assert len(asked) == 1
    assert [reply.json()["routers"]["answered"] for reply in replies] == [2] * 5


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_without_the_others_it_shows_its_own_and_says_how_many_are_missing(trouble):
    application = app(routers=2)

    async def ask_all():
        if trouble == "fails":
            raise RuntimeError("told to fail")
        await asyncio.sleep(10 * status.LIMIT_S)

    application.status.ask_all = ask_all
    async with started(application) as client:
        routers = (await client.get("/status/figures")).json()["routers"]
    assert (routers["expected"], routers["answered"]) == (2, 1)


async def test_figures_are_refused_until_the_router_has_started():
    application = app()
    reply = await Client(application).get("/status/figures")
    assert reply.status == 503
    assert reply.json()["code"] == "not_ready"
