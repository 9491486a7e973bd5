"""What clients that are slow, or send too much, do to the others: latency with and without them, in turns.

`python -m benchmarks.slow_clients`: a router's own HTTP server over a stage that costs nothing, good clients and bad ones,
each in a process of its own. A steady open loop of good requests, a connection each; beside it in turns nobody, bodies that
drip a byte at a time, heads without end, answers that are asked for 400 times a second by each and not read, and bodies
without end as fast as they are taken. What the server ends is begun anew at once. All share the machine's cores, so the last
two kinds take some of them for themselves.
"""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Annotated

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.fuzz.inputs import INFER, INPUTS, MODEL, request
from benchmarks.fuzz.target import HOST, running
from cascade.wire.tensors import Datatype

console = Console()
LARGE = bytes(1 << 20)
WARM_S = 1.0
Client = Callable[[int], Coroutine[None, None, None]]


def good(path: str = INFER) -> bytes:
    """A request of one row."""
    inputs = []
    for spec in INPUTS:
        one = {Datatype.BYTES: "a", Datatype.BOOL: True}.get(spec.datatype, 1)
        shape = [1, *spec.shape]
        data = [one] * int(np.prod(shape))
        inputs.append({"name": spec.name, "shape": shape, "datatype": spec.datatype.value, "data": data})
    return request(path, orjson.dumps({"inputs": inputs}), {})


async def drip(port: int) -> None:
    """A body that comes a byte at a time."""
    await _pour(port, f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n".encode(), b"a", 0.1)


async def endless_head(port: int) -> None:
    """Headers that go on."""
    await _pour(port, f"POST {INFER} HTTP/1.1\r\nhost: a\r\n".encode(), b"x-a: a\r\n", 0.1)


async def flood(port: int) -> None:
    """A body without end, as fast as it goes."""
    head = f"POST {INFER} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    await _pour(port, head, b"%x\r\n%b\r\n" % (len(LARGE), LARGE), 0.05)


async def unread(port: int) -> None:
    """Answers that are asked for and not read."""
    one = good(f"/v2/models/{MODEL}/config").replace(b"POST", b"GET").replace(b"connection: close\r\n", b"")
    await _pour(port, b"", one * 20, 0.05)


async def _pour(port: int, first: bytes, again: bytes, pause_s: float) -> None:
    _, writer = await asyncio.open_connection(HOST, port, limit=1024)
    with suppress(ConnectionError):
        writer.write(first)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_s)
    writer.close()


KINDS: dict[str, Client] = {each.__name__: each for each in (drip, endless_head, unread, flood)}


async def keep_on(port: int, how: Client, ended: Counter[str]) -> None:
    """One bad client, again and again."""
    while True:
        with suppress(OSError):
            await how(port)
        ended[how.__name__] += 1
        await asyncio.sleep(0.05)


async def measure(port: int, rate: float, seconds: float) -> list[float]:
    """Latencies of good requests, counted from when each was due; infinite for one that was not answered by 200."""
    content, loop = good(), asyncio.get_running_loop()
    latencies: list[float] = []

    async def one(due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        status = b""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(content)
            status = (await reader.read())[9:12]
            writer.close()
        latencies.append(loop.time() - due_s if status == b"200" else np.inf)

    began_s = loop.time()
    await asyncio.gather(*(one(began_s + number / rate) for number in range(int(rate * seconds))))
    return latencies


def behave_badly(port: int, kind: str | None, many: int, talk: Connection) -> None:
    """Bad clients of a kind, or none, until a word comes; then how often the server ended one."""

    async def until_told() -> None:
        ended: Counter[str] = Counter()
        clients = [asyncio.create_task(keep_on(port, KINDS[kind or "drip"], ended)) for _ in range(many if kind else 0)]
        await asyncio.sleep(WARM_S)
        talk.send("begun")
        await asyncio.to_thread(talk.recv)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        talk.send(ended)

    asyncio.run(until_told())


def serve(ready: Connection) -> None:
    """The server, until it is killed."""

    async def forever() -> None:
        async with running() as target:
            ready.send(target.http)
            await asyncio.Event().wait()

    asyncio.run(forever())


def main(
    rate: Annotated[float, typer.Option(help="Good requests a second.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="Of each round.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="With each kind of clients beside.")] = 3,
    bad: Annotated[int, typer.Option(help="Bad clients at a time.")] = 25,
) -> None:
    """Measure, and print a table."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    table = Table("round", "beside", "p50, ms", "p99, ms", "not 200", "ended by the server")
    for number in range(1, rounds + 1):
        for kind in (None, *KINDS):
            ours, theirs = spawn.Pipe()
            clients = spawn.Process(target=behave_badly, args=(port, kind, bad, theirs), daemon=True)
            clients.start()
            ours.recv()
            latencies = asyncio.run(measure(port, rate, seconds))
            ours.send("enough")
            ended: Counter[str] = ours.recv()
            clients.join()
            lost = int(np.isinf(latencies).sum())
            p50, p99 = np.percentile([each for each in latencies if each < np.inf], [50, 99]) * 1e3
            beside = "nobody" if kind is None else f"{bad} {kind}"
            table.add_row(str(number), beside, f"{p50:.1f}", f"{p99:.1f}", str(lost), str(ended.total()))
            console.print(f"round {number}, {beside}", style="dim")
    console.print(table)
    server.kill()


if __name__ == "__main__":
    typer.run(main)
