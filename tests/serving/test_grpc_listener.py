"""The router's own gRPC server over a real channel: answers, the call's deadline, a shared port, a close in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from ladders import SURE, fake_ladder, fake_stages, make_router, told
from tritonclient.utils import InferenceServerException

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.fakes import FakeStage
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.router import Router
from cascade.serving.service import Service

HOST = "127.0.0.1"
MAX_BYTES = 4096
FACTS = {"deadline": {"default_s": 60.0, "max_s": 120.0}, "limits": {"max_body_bytes": MAX_BYTES}}


class Recording(Router):
    """A router that remembers how long its requests had."""

    budgets_s: list[float]

    async def answer(self, *args: Any, budget_s: float, **facts: Any):
        self.budgets_s = [*getattr(self, "budgets_s", []), budget_s]
        return await super().answer(*args, budget_s=budget_s, **facts)


@asynccontextmanager
async def opened(stages: list[FakeStage], port: int) -> AsyncIterator[tuple[GrpcListener, Service]]:
    service = Service(fake_ladder(len(stages), **FACTS), lambda: make_router(stages, kind=Recording))
    listener = GrpcListener(GrpcServicer(service), Address(HOST, port), 30.0, MAX_BYTES)
    service.start()
    await listener.open()
    try:
        yield listener, service
    finally:
        await listener.close()
        await service.close()


def tensor(*rows: tuple[float, ...]) -> triton.InferInput:
    array = np.array(rows, np.float32)
    made = triton.InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


async def test_unmodified_clients_are_answered():
    port = free_port()
    async with opened(fake_stages(2), port), triton.InferenceServerClient(f"{HOST}:{port}") as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("fake")
        result = await client.infer("fake", [tensor((SURE, 0.0), (-SURE, 0.0))])
    assert result.as_numpy("label").tolist() == [1, 0]


async def test_the_deadline_of_the_call_is_the_deadline_of_the_request():
    port = free_port()
    async with opened(fake_stages(2), port) as (_, service), triton.InferenceServerClient(f"{HOST}:{port}") as client:
        await client.infer("fake", [tensor((SURE, 0.0))])
        await client.infer("fake", [tensor((SURE, 0.0))], client_timeout=40.0)
        default_s, asked_s = service.router.budgets_s
    assert 40.0 < default_s <= 60.0
    assert asked_s <= 40.0


@pytest.mark.parametrize(("rows", "told"), [(MAX_BYTES // 6, "at most 4096 bytes"), (MAX_BYTES, "larger than max")])
async def test_a_message_that_is_too_long_is_refused_and_a_far_longer_one_not_even_read(rows, told):
    port = free_port()
    async with opened(fake_stages(2), port), triton.InferenceServerClient(f"{HOST}:{port}") as client:
        with pytest.raises(InferenceServerException, match=told):
            await client.infer("fake", [tensor(*[(SURE, 0.0)] * rows)])


async def test_routers_on_one_machine_share_a_port():
    port = free_port()
    async with opened(fake_stages(2), port), opened(fake_stages(2), port):
        for _ in range(4):
            async with triton.InferenceServerClient(f"{HOST}:{port}") as client:
                assert await client.is_server_ready()


async def test_a_port_that_somebody_else_has_is_refused_by_name():
    async with await asyncio.start_server(lambda *_: None, HOST, 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with opened(fake_stages(2), port):
                pass


async def test_closing_lets_calls_that_are_under_way_end():
    port, go, came = free_port(), asyncio.Event(), asyncio.Event()

    class Slow(FakeStage):
        async def run(self, inputs):
            came.set()
            await go.wait()
            return await super().run(inputs)

    stages = [Slow(told(0)), Slow(told(1))]
    async with opened(stages, port) as (listener, _), triton.InferenceServerClient(f"{HOST}:{port}") as client:
        asking = asyncio.create_task(client.infer("fake", [tensor((SURE, 0.0))]))
        await came.wait()
        closing = asyncio.create_task(listener.close())
        await asyncio.sleep(0)
        go.set()
        assert (await asking).as_numpy("label").tolist() == [1]
        await closing
