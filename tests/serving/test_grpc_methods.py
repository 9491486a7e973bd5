"""The registration with Serve's own gRPC server, in this process: real sockets, tritonclient, no cluster.

Serve's server puts handlers of its own in the place of ours; here a handler that does what Serve's does with a context.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from ladders import SURE, UNSURE, fake_ladder, fake_stages, make_router
from ray.serve._private.grpc_util import start_grpc_server
from ray.serve._private.proxy_request_response import gRPCStreamingType
from ray.serve.config import gRPCOptions
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from tritonclient.utils import InferenceServerException

from cascade.serving.environment import free_port
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.local import grpc_options
from cascade.serving.service import Service
from cascade.wire.grpc_status import read_metadata
from cascade.wire.oip_messages import SERVICE

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Serving:
    """What stands where a router replica stands: its servicer, and the metadata of the calls that came."""

    def __init__(self, servicer: GrpcServicer) -> None:
        self._servicer = servicer
        self.metadata: list[list[tuple[str, str | bytes]]] = []

    def handler(self, service_method: str, streaming_type: object) -> Any:
        """Makes the handler of a method, as Serve's replica does."""

        if streaming_type == gRPCStreamingType.STREAM_STREAM:

            async def handle_stream(payloads: Any, context: Any) -> AsyncIterator[bytes]:
                serves = RayServegRPCContext(context)
                self.metadata.append(serves.invocation_metadata())
                method = getattr(self._servicer, service_method.rpartition("/")[2])
                async for answer in method(gRPCInputStream(payloads), grpc_context=serves):
                    yield answer.SerializeToString()

            return handle_stream

        async def handle(payload: bytes, context: Any) -> bytes:
            serves = RayServegRPCContext(context)
            self.metadata.append(serves.invocation_metadata())
            method = getattr(self._servicer, service_method.rpartition("/")[2])
            answer: bytes = (await method(payload, grpc_context=serves)).SerializeToString()
            serves._set_on_grpc_context(context)
            return answer

        return handle


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, Serving]]:
    """The address of a server, and what stands behind it."""
    stages = fake_stages(2)
    service = Service(fake_ladder(2), lambda: make_router(stages))
    service.start()
    serving = Serving(GrpcServicer(service))
    port = free_port()
    running, server = await start_grpc_server(
        serving.handler, gRPCOptions(**grpc_options(port)), event_loop=asyncio.get_running_loop()
    )
    try:
        yield f"127.0.0.1:{port}", serving
    finally:
        await server.stop(0)
        await running
        await service.close()


async def test_an_unmodified_client_reaches_every_method():
    async with listening() as (address, serving), triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("fake", "7")
        assert not await client.is_model_ready("other")
        assert (await client.get_server_metadata()).name == "cascade"
        assert (await client.get_model_metadata("fake")).inputs[0].name == "x"
        with pytest.raises(InferenceServerException) as refused:
            await client.get_model_metadata("other")
        assert refused.value.status() == "StatusCode.NOT_FOUND"
        assert len(serving.metadata) == 7


async def test_what_the_protocol_does_not_have_is_unimplemented():
    async with listening() as (address, _), triton_aio.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException) as refused:
            await client.get_inference_statistics()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("timeout_s", [30.0, 7.0, None])
async def test_the_deadline_of_a_call_is_seen_and_no_later_than_it_is(timeout_s):
    async with listening() as (address, serving), grpc.aio.insecure_channel(address) as channel:
        await channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=timeout_s, metadata=[("cascade-tenant", "acme")])
        facts = read_metadata(serving.metadata[0])
        assert facts.tenant == "acme"
        if timeout_s is None:
            assert facts.timeout_s is None
        else:
            assert facts.timeout_s is not None
            assert 0 < facts.timeout_s < timeout_s


async def test_errors_come_with_their_trailing_metadata():
    async with listening() as (address, _), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.trailing_metadata()["cascade-code"] == "bad_request"
        assert refused.value.details().startswith("Bad request: the 1 bytes are no ModelInferRequest")


async def test_a_stream_of_requests_is_answered_and_has_the_deadline_of_its_call():
    async def requests():
        array = np.array([[UNSURE, -SURE]], np.float32)
        tensor = triton.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(array)
        yield {"model_name": "fake", "inputs": [tensor]}

    async with listening() as (address, serving), triton_aio.InferenceServerClient(address) as client:
        labels = [
            result.as_numpy("label").tolist() async for result, _ in client.stream_infer(requests(), stream_timeout=30.0)
        ]
        facts = read_metadata(serving.metadata[0])
    assert labels[-1] == [0]
    assert facts.timeout_s is not None
    assert 0 < facts.timeout_s < 30.0
