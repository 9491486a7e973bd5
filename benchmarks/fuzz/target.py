"""What is fuzzed: the HTTP and gRPC servers of a router, over a stage that costs nothing, on free ports of this machine."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.inputs import INPUTS, MODEL, Instant
from cascade.keys import ApiKey, KeyFile, hash_of, new_key
from cascade.policy.classes import ClassConfig
from cascade.policy.gain import Curve, Judge
from cascade.policy.policy import Policy, StageConfig
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.http_listener import HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.serving.slow_loop import Control, StagePlaces
from cascade.spec import Ladder, parse_spec

HOST = "127.0.0.1"
LIMITS = {"max_body_bytes": 1 << 20, "max_rows": 64, "max_header_bytes": 8192, "head_s": 1.0, "body_s": 1.0, "write_s": 1.0}


@dataclass(frozen=True)
class Target:
    """Servers that run.

    Attributes:
        http: port.
        grpc: port.
        service: behind both.
    """

    http: int
    grpc: int
    service: Service

    @property
    def left(self) -> str:
        """What is left of requests that have ended; empty if nothing is."""
        policy, gate = self.service.router.policy, self.service.gate
        left = {
            "rows": policy.counts.live,
            "waiting": policy.waiting(0),
            "busy": policy.capacities[0].busy,
            "clients": len(gate._under_way) + len(gate._streams),
        }
        return ", ".join(f"{count} {what}" for what, count in left.items() if count)


@asynccontextmanager
async def running(*, keys: bool = False) -> AsyncIterator[Target]:
    """Servers, with or without keys, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        KeyFile(keys=(ApiKey(name="one", sha256=hash_of(new_key())),)).write(Path(folder) / "keys.json")
        document = {
            "name": MODEL,
            "version": "1",
            "inputs": [
                {"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape, "text": spec.text}
                for spec in INPUTS
            ],
            "labels": ["no", "yes"],
            "stages": [{"name": "only", "cost": 1.0, "model": {"factory": "benchmarks.fuzz.inputs:Instant"}}],
            "deadline": {"default_s": 1.0, "max_s": 2.0},
            "limits": LIMITS,
            **({"security": {"keys": "keys.json"}} if keys else {}),
        }
        service = Service(Ladder(parse_spec(document), Path(folder)), _router)
        http, grpc = free_port(), free_port()
        ingress = Ingress(service)
        limits = service.spec.limits
        listeners = [
            HttpListener(ingress, Address(HOST, http), 2.0, limits),
            GrpcListener(GrpcServicer(service), Address(HOST, grpc), 2.0, limits.max_body_bytes),
        ]
        service.start()
        for listener in listeners:
            await listener.open()
        try:
            yield Target(http, grpc, service)
        finally:
            await asyncio.gather(*(listener.close() for listener in listeners))
            await service.close()


def _router() -> Router:
    truth = Curve.of([0, 1], [0, 1])
    return Router(
        Policy([StageConfig(4, 16, 1.0, 0.0, 0.001, 0.0001)], usual_deadline_s=1.0, wait_share=1.0),
        [Judge(1.0, truth, ())],
        [Instant()],
        classes=2,
        margin_s=0.01,
        clock=time.perf_counter,
        control=Control((ClassConfig(),), [StagePlaces(1, lambda _: 4)]),
    )
