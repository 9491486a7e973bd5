"""Keys and limits over gRPC: unmodified clients with a key among their metadata, over a real socket."""

import asyncio

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from ladders import SURE, fake_ladder, fake_stages, make_router
from tritonclient.utils import InferenceServerException

from cascade.keys import ApiKey, KeyFile, hash_of, new_key
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.service import Service
from cascade.spec import Ladder

HOST = "127.0.0.1"
KEY = new_key()
BEARER = {"authorization": f"Bearer {KEY}"}


def tensor() -> triton.InferInput:
    made = triton.InferInput("x", [1, 1], "FP32")
    made.set_data_from_numpy(np.array([[SURE]], np.float32))
    return made


class Opened:
    """A listener whose one key may have two requests under way."""

    def __init__(self, folder) -> None:
        key = ApiKey(name="app", sha256=hash_of(KEY), max_under_way=2)
        KeyFile(keys=(key,)).write(folder / "keys.json")
        spec = fake_ladder(1, security={"keys": "keys.json"}, deadline={"default_s": 60.0, "max_s": 60.0}).spec
        self.service = Service(Ladder(spec, folder), lambda: make_router(fake_stages(1, seconds=0.1)))
        self.port = free_port()
        self.listener = GrpcListener(GrpcServicer(self.service), Address(HOST, self.port), 5.0, 1 << 20)

    async def __aenter__(self):
        self.service.start()
        await self.listener.open()
        self.client = triton.InferenceServerClient(f"{HOST}:{self.port}")
        return self

    async def __aexit__(self, *_):
        await self.client.close()
        await self.listener.close()
        await self.service.close()


async def code_of(call) -> str:
    try:
        await call
    except InferenceServerException as error:
        return error.status().removeprefix("StatusCode.")
    return "OK"


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_a_key_among_the_metadata_lets_a_call_in(tmp_path, name):
    async with Opened(tmp_path) as served:
        client, key = served.client, f"Bearer {KEY}" if name == "authorization" else KEY
        assert await code_of(client.infer("fake", [tensor()], headers={name: key})) == "OK"
        assert await code_of(client.infer("fake", [tensor()], headers={name: key[:-1]})) == "UNAUTHENTICATED"
        assert await code_of(client.infer("fake", [tensor()])) == "UNAUTHENTICATED"
        assert served.service.router.requests == {"answered": 1, "refused": 2, "cancelled": 0}


async def test_health_is_open_and_metadata_need_a_key(tmp_path):
    async with Opened(tmp_path) as served:
        client = served.client
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("fake")
        for describe in (client.get_server_metadata, lambda **more: client.get_model_metadata("fake", **more)):
            assert await code_of(describe()) == "UNAUTHENTICATED"
            assert await code_of(describe(headers=BEARER)) == "OK"


async def test_a_key_has_only_so_many_calls_under_way(tmp_path):
    async with Opened(tmp_path) as served:
        codes = await asyncio.gather(*(code_of(served.client.infer("fake", [tensor()], headers=BEARER)) for _ in range(5)))
        assert sorted(codes) == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 3
        assert served.service.gate._under_way == {}


async def test_a_stream_needs_a_key(tmp_path):
    async def requests():
        yield {"model_name": "fake", "inputs": [tensor()]}

    async def answers(**more):
        return [result async for result, _ in served.client.stream_infer(requests(), **more)]

    async with Opened(tmp_path) as served:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await answers()
        assert len(await answers(headers=BEARER)) >= 1
        assert served.service.gate._under_way == served.service.gate._streams == {}
