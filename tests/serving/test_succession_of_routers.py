"""A service renews its router while messages are under way: they end where they began, new ones go to the new one."""

import asyncio

import pytest
from asgi import started
from ladders import SURE, UNSURE, config, fake_ladder, fake_stages, make_router, row

from cascade.serving.ingress import Ingress
from cascade.serving.service import Service

pytestmark = pytest.mark.looptime(noop_cycles=0)


class Renewed:
    """A service whose routers are versions 1, 2, 3 and so on, over the same stages."""

    def __init__(self, stages, slots=2):
        self.stages, self.routers = stages, []
        # Batches take seconds here, and none of them hangs.
        self.configs = [config(cost=10.0**place, slots=slots, timeout_floor_s=100.0) for place in range(len(stages))]
        self.service = Service(fake_ladder(len(stages), deadline={"default_s": 60.0, "max_s": 60.0}), self._make)
        self.app = Ingress(self.service)

    def _make(self):
        router = make_router(self.stages, self.configs)
        self.routers.append(router)
        router.version = f"v{len(self.routers)}"
        return router


def body(*logits):
    data = row(*logits)["x"]
    return (
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, %d], "data": %s}]}'
        % (data.shape[1], str(data.ravel().tolist()).encode())
    )  # fmt: skip


async def ask(client, *logits):
    response = await client.post("/v2/models/fake/infer", body(*logits))
    assert response.status == 200, response.body
    return response.json()["parameters"]


async def test_a_message_keeps_the_version_that_it_came_to():
    served = Renewed(fake_stages(2, seconds=1.0))
    async with started(served.app) as client:
        old = asyncio.ensure_future(ask(client, UNSURE, SURE))
        await asyncio.sleep(0.5)
        served.service.renew()
        new = asyncio.ensure_future(ask(client, UNSURE, SURE))
        assert (await old)["cascade_version"] == "v1"
        assert (await new)["cascade_version"] == "v2"
        assert (await old)["cascade_stage"] == (await new)["cascade_stage"] == "s1"


async def test_a_message_that_is_being_read_keeps_the_version_of_the_door():
    served = Renewed(fake_stages(1, seconds=0.01))
    whole = body(SURE)

    def chunks():
        yield whole[:10]
        served.service.renew()
        yield whole[10:]

    async with started(served.app) as client:
        response = await client.post("/v2/models/fake/infer", chunks())
        assert response.json()["parameters"]["cascade_version"] == "v1"
        assert (await ask(client, SURE))["cascade_version"] == "v2"


async def test_the_old_router_is_closed_once_its_last_message_has_left():
    served = Renewed(fake_stages(2, seconds=1.0))
    async with started(served.app) as client:
        old = asyncio.ensure_future(ask(client, UNSURE, SURE))
        await asyncio.sleep(0.5)
        served.service.renew()
        first, second = served.routers
        assert first.sharing == second.sharing == [first, second]
        await old
        await asyncio.sleep(0.1)
        assert (first.sharing, second.sharing) == ([first], [second])
        assert served.service._retiring == set()


async def test_both_share_the_places_of_a_stage_and_neither_waits_for_news_of_its_own():
    (stage,) = stages = fake_stages(1, seconds=1.0)
    served = Renewed(stages, slots=1)
    async with started(served.app) as client:
        old = asyncio.ensure_future(ask(client, SURE))
        await asyncio.sleep(0.5)
        served.service.renew()
        new = asyncio.ensure_future(ask(client, SURE))
        await asyncio.sleep(0.25)
        assert len(stage.calls) == 1
        await asyncio.gather(old, new)
        assert len(stage.calls) == 2
        assert asyncio.get_running_loop().time() < 3


async def test_counters_go_on_over_a_renewal():
    served = Renewed(fake_stages(1, seconds=0.01))
    async with started(served.app) as client:
        await ask(client, SURE)
        served.service.renew()
        await ask(client, SURE)
        stats = (await client.get("/v2/models/fake/stats")).json()["model_stats"][0]
        assert stats["inference_count"] == 2
        assert stats["execution_count"] == 2


async def test_renewing_again_before_the_first_has_ended_loses_nothing():
    served = Renewed(fake_stages(2, seconds=1.0))
    async with started(served.app) as client:
        asked = []
        for _ in range(4):
            asked.append(asyncio.ensure_future(ask(client, UNSURE, SURE)))
            await asyncio.sleep(0.1)
            served.service.renew()
        assert [(await each)["cascade_version"] for each in asked] == ["v1", "v2", "v3", "v4"]


async def test_a_place_that_the_oldest_frees_is_taken_by_the_newest():
    (stage,) = stages = fake_stages(1, seconds=1.0)
    served = Renewed(stages, slots=1)
    async with started(served.app) as client:
        old = asyncio.ensure_future(ask(client, SURE))
        await asyncio.sleep(0.5)
        served.service.renew()
        served.service.renew()
        new = asyncio.ensure_future(ask(client, SURE))
        await asyncio.gather(old, new)
        assert asyncio.get_running_loop().time() < 3
        assert len(stage.calls) == 2


async def test_a_server_that_stops_does_not_wait_for_a_router_that_is_retiring():
    served = Renewed(fake_stages(1, seconds=30.0))
    async with started(served.app) as client:
        old = asyncio.ensure_future(ask(client, SURE))
        await asyncio.sleep(0.1)
        served.service.renew()
        await asyncio.sleep(0.1)
    assert asyncio.get_running_loop().time() < 5
    old.cancel()
    await asyncio.gather(old, return_exceptions=True)
