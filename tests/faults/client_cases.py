"""A router's own HTTP server over fake stages, and clients that behave badly, over real sockets on loopback."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from ladders import SURE, config, fake_ladder, make_router

from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.fakes import FakeStage
from cascade.serving.http_listener import HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.wire.client import encode_request
from cascade.wire.tensors import Datatype, TensorSpec

HOST = "127.0.0.1"
INFER = "/v2/models/fake/infer"


class Recording(Router):
    """A router that remembers how long its requests had."""

    budgets_s: list[float]

    async def answer(self, *args: Any, budget_s: float, **facts: Any):
        self.budgets_s = [*getattr(self, "budgets_s", []), budget_s]
        return await super().answer(*args, budget_s=budget_s, **facts)


class Server:
    """A running server.

    Attributes:
        port: where it listens.
        service: behind it.
    """

    def __init__(self, port: int, service: Service) -> None:
        self.port = port
        self.service = service

    @property
    def router(self) -> Router:
        return self.service.router

    def left(self) -> dict[str, int]:
        """What is left of requests: nothing, once all have ended."""
        policy, gate = self.router.policy, self.service.gate
        left = {
            "rows": policy.counts.live,
            "waiting": sum(policy.waiting(stage) for stage in range(len(policy.capacities))),
            "busy": sum(capacity.busy for capacity in policy.capacities),
            "calls": len(self.router._calls),
            "clients": len(gate._under_way),
        }
        return {what: count for what, count in left.items() if count}


@asynccontextmanager
async def served(stages: Sequence[FakeStage], **more: Any) -> AsyncIterator[Server]:
    """A server for as long as the context lasts; ``configs`` are those of its stages, the rest is its spec's."""
    configs = more.pop("configs", None) or [config(cost=10.0**k) for k in range(len(stages))]
    ladder = fake_ladder(len(stages), **more)
    service = Service(ladder, lambda: make_router(stages, configs, kind=Recording))
    listener = HttpListener(Ingress(service), Address(HOST, port := free_port()), 5.0, ladder.spec.limits)
    service.start()
    await listener.open()
    try:
        yield Server(port, service)
    finally:
        await listener.close()
        await service.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own time limit is the only one."""
    while not holds():
        await asyncio.sleep(0.005)


def message(*logits: float, stages: int = 1, headers: Sequence[str] = (), **parameters: Any) -> bytes:
    """All bytes of a request of one row."""
    array = np.array([logits or (SURE,) * stages], np.float32)
    spec = TensorSpec("x", Datatype.FP32, array.shape[1:])
    body, given = encode_request([(spec, array)], parameters=parameters)
    fields = ["host: a", "connection: close", f"content-length: {len(body)}", *headers]
    fields += [f"{name}: {value}" for name, value in given.items()]
    return f"POST {INFER} HTTP/1.1\r\n".encode() + "\r\n".join(fields).encode() + b"\r\n\r\n" + body


async def ask(port: int, content: bytes) -> tuple[int, bytes]:
    """Send a request; returns the status and the body, 0 if the connection ended without."""
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = b""
    with suppress(ConnectionError):
        writer.write(content)
        await writer.drain()
        answer = await reader.read()
    writer.close()
    found = re.match(rb"HTTP/1\.1 (\d\d\d)", answer)
    return (int(found[1]) if found else 0), answer.partition(b"\r\n\r\n")[2]


async def leave(port: int, content: bytes, after: float | asyncio.Event) -> None:
    """Send a request and hang up after some seconds, or when an event comes."""
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(content)
    await writer.drain()
    await (after.wait() if isinstance(after, asyncio.Event) else asyncio.sleep(after))
    writer.close()
