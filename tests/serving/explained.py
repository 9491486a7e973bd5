"""What tests of explanations and traces share: an ingress over fake stages, and a client of it."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from asgi import Client, started
from ladders import fake_ladder, fake_stages, make_router

from cascade.policy.policy import StageConfig
from cascade.serving.fakes import FakeStage
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.serving.watching import Watcher

INFER = "/v2/models/fake/infer"


@asynccontextmanager
async def serving(
    stages: Sequence[FakeStage] | None = None,
    configs: Sequence[StageConfig] | None = None,
    watcher: Watcher | None = None,
    **spec: Any,
) -> AsyncIterator[tuple[Client, Router, Service]]:
    """A running ingress: its client, its router and its service."""
    stages = fake_stages(2) if stages is None else stages
    routers: list[Router] = []

    def make() -> Router:
        routers.append(make_router(stages, configs))
        return routers[0]

    service = Service(fake_ladder(len(stages), **spec), make, watcher)
    async with started(Ingress(service)) as client:
        yield client, routers[0], service


def body(data: list[Any], **members: Any) -> bytes:
    """A JSON request with one input `x`."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(np.shape(data)), "data": data}
    return json.dumps({"inputs": [tensor], **members}).encode()
