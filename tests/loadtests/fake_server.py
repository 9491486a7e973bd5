"""A server that speaks the protocol and says what the rows tell it to, for tests of the load generator. Knows no cascade.

The first part of a path chooses how it behaves, so that one server does for all tests: ``/plain``, ``/stalls`` (nothing is
answered for a while, once), ``/sheds`` (every third message), ``/garbles`` (some answers lack their label). The one number x
of a row is its number in the file.
"""

import asyncio
import json
import sys
from collections import defaultdict

import numpy as np
from aiohttp import web

from cascade.wire.http import parse_json_length
from cascade.wire.oip import Limits, Signature, decode_request, encode_response
from cascade.wire.tensors import Datatype, TensorSpec

SIGNATURE = Signature("fake", "1", (TensorSpec("x", Datatype.FP32, (1,)),), (TensorSpec("label", Datatype.INT64, ()),))
STAGES = ("small", "large")
STALL_AFTER, STALL_S = 20, 1.0


def true_label(row: int) -> int:
    return row % 3


def is_right(row: int) -> bool:
    return row % 5 != 0


def stage_of(row: int) -> int:
    return row % 2


def is_garbled(row: int) -> bool:
    return row % 7 == 0


class Fake:
    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, object]]] = defaultdict(list)
        self.gate: asyncio.Task[None] | None = None
        self.waiting = 0

    async def infer(self, request: web.Request) -> web.Response:
        mood = request.match_info["mood"]
        body = await request.read()
        length = parse_json_length(request.headers["inference-header-content-length"].encode())
        decoded = decode_request(body, length, SIGNATURE, Limits(max_rows=1, priorities=4))
        row = int(decoded.inputs["x"][0, 0])
        parameters = json.loads(body[:length])["parameters"]
        seen = self.seen[mood]
        seen.append({"row": row, "waiting": self.waiting, **parameters})
        if mood == "stalls":
            await self.stall(len(seen))
        if mood == "sheds" and len(seen) % 3 == 0:
            return web.Response(status=503, headers={"retry-after": "1"}, text="{}")
        return self.answer(row, garbled=mood == "garbles" and is_garbled(row))

    async def stall(self, count: int) -> None:
        if count == STALL_AFTER:
            self.gate = asyncio.create_task(asyncio.sleep(STALL_S))
        if self.gate is not None:
            self.waiting += 1
            await asyncio.shield(self.gate)
            self.waiting -= 1

    def answer(self, row: int, garbled: bool) -> web.Response:
        label = true_label(row) if is_right(row) else (true_label(row) + 1) % 3
        outputs = [(SIGNATURE.outputs[0], np.array([label], dtype=np.int64), True)]
        stage = stage_of(row)
        body, length = encode_response(
            "fake",
            "1",
            [] if garbled else outputs,
            parameters={
                "cascade_stage": STAGES[stage],
                "cascade_exit_reason": ("price", "last_stage")[stage],
                "cascade_degraded": stage == 0,
                "cascade_cost": (1.0, 10.0)[stage],
                "cascade_price": (0.25, 0.0)[stage],
            },
        )
        headers = {} if length is None else {"inference-header-content-length": str(length)}
        return web.Response(body=body, headers=headers)

    async def tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.seen[request.match_info["mood"]])


async def serve() -> None:
    fake = Fake()
    app = web.Application()
    app.router.add_post("/{mood}/v2/models/fake/infer", fake.infer)
    app.router.add_get("/{mood}/seen", fake.tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    # It lives as long as the process that holds the other end of its input.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
