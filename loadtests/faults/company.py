"""Bad company: clients that behave badly beside those of a run, a process of their own. Knows HTTP; no Ray.

    python -m loadtests.faults.company leave SPEC --port 8000

It goes on until SIGTERM and then prints, as JSON, what was done how often and what status came back. Nothing here is asked
for an answer that counts: what must not change is what the others get.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import typer

from cascade.spec import Ladder
from cascade.wire.client import encode_request
from loadtests.faults.network import CURSED

HOST = "127.0.0.1"
RATES = {"leave": 30.0, "poison": 5.0, "deadlines": 10.0}
"""Requests a second; of ``bodies`` there are always `SLOW` of each kind, and `HUGE_PER_S` of those that are too large."""
LEAVES_AFTER_S = (0.02, 0.2)
SLOW = 10
HUGE_PER_S = 2.0
POISON = {"nan": [np.nan, 0, 0, 0], "infinite": [np.inf, 0, 0, 0], "cursed": [CURSED, 0, 0, 0]}
"""Rows: two that give no finite score, and one at which every network raises."""
SECONDS = ("0", "-1", "0.001", "1e9", "nan", "soon", None)
"""What is said of the time that a request may take."""
TOLD = {
    "leave": frozenset({"left"}),
    "poison": frozenset({"400", "422", "502"}),
    "bodies": frozenset({"408", "413", "431", "closed"}),
    "deadlines": frozenset({"200", "400", "503", "504"}),
}
"""All that each kind may be told, see `main`; an answer to a poisoned row would be one that nothing stands behind."""
ANSWER_S = 10.0


class Company:
    """Clients of one kind.

    Args:
        port: where the routers listen on this machine.
        path: of the model's inference.
        encode: the body and the headers of a request for some rows [n, 4].
        random: what draws them.
    """

    def __init__(
        self, port: int, path: str, encode: Callable[[list[list[float]]], tuple[bytes, dict[str, str]]], random: Random
    ) -> None:
        self.seen: Counter[str] = Counter()
        self._port = port
        self._path = path
        self._encode = encode
        self._random = random

    def _request(self, row: list[float], **headers: str) -> bytes:
        body, own = self._encode([row])
        fields = {"host": HOST, "connection": "close", **own, **headers, "content-length": str(len(body))}
        lines = [f"POST {self._path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + body

    def _row(self) -> list[float]:
        return [self._random.gauss(0, 1) for _ in range(4)]

    async def leave(self) -> None:
        """Asks as everybody does, and hangs up before the answer or just after it."""
        async with self._connected() as (_, writer):
            writer.write(self._request(self._row()))
            await writer.drain()
            await asyncio.sleep(self._random.uniform(*LEAVES_AFTER_S))
        self.seen["leave left"] += 1

    async def poison(self) -> None:
        """Sends a row that no network can answer."""
        name = self._random.choice(list(POISON))
        await self._told(name, self._request([float(value) for value in POISON[name]]))

    async def deadlines(self) -> None:
        """Gives no time, less than none, or a lot."""
        seconds = self._random.choice(SECONDS)
        headers = {} if seconds is None else {"x-request-timeout-seconds": seconds}
        await self._told(f"deadline {seconds}", self._request(self._row(), **headers))

    async def huge(self) -> None:
        """Says that a gigabyte follows."""
        head = f"POST {self._path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {1 << 30}\r\n\r\n"
        await self._told("huge", head.encode())

    async def drip(self) -> None:
        """A body that comes a byte at a time."""
        await self._poured("drip", f"POST {self._path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n".encode(), b"1")

    async def endless(self) -> None:
        """Headers that go on."""
        await self._poured("endless", f"POST {self._path} HTTP/1.1\r\nhost: a\r\n".encode(), b"x-a: a\r\n")

    async def flood(self) -> None:
        """A body that never ends, as fast as it is taken."""
        head = f"POST {self._path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        await self._poured("flood", head, b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16)))

    async def _poured(self, name: str, first: bytes, again: bytes) -> None:
        async with self._connected() as (reader, writer), asyncio.TaskGroup() as group:
            answer = group.create_task(_all_of(reader))
            with suppress(ConnectionError):
                writer.write(first)
                while not answer.done():
                    writer.write(again)
                    await writer.drain()
                    await asyncio.wait([answer], timeout=0.1)
            self._note(name, await answer)

    async def _told(self, name: str, content: bytes) -> None:
        async with self._connected() as (reader, writer):
            writer.write(content)
            try:
                self._note(name, await asyncio.wait_for(_all_of(reader), ANSWER_S))
            except TimeoutError:
                self.seen[f"{name} silence"] += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(HOST, self._port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def _note(self, name: str, answer: bytes) -> None:
        self.seen[f"{name} {answer[9:12].decode() or 'closed'}"] += 1

    async def keep_on(self, kind: str) -> None:
        """Behave so for good."""
        if kind == "bodies":
            slow = [self._again(client, 0.05) for client in (self.drip, self.endless, self.flood) for _ in range(SLOW)]
            await asyncio.gather(self._at(self.huge, HUGE_PER_S), *slow)
        else:
            await self._at(getattr(self, kind), RATES[kind])

    async def _at(self, client: Callable[[], Awaitable[None]], rate: float) -> None:
        """Clients that come at random, whatever became of those before."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._random.expovariate(rate))
                group.create_task(self._once(client))

    async def _again(self, client: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            await self._once(client)
            await asyncio.sleep(pause_s)

    async def _once(self, client: Callable[[], Awaitable[None]]) -> None:
        try:
            await client()
        except OSError as error:
            self.seen[f"{client.__name__} {type(error).__name__}"] += 1


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side has closed; nothing if it did so without a word."""
    with suppress(ConnectionError):
        return await reader.read()
    return b""


def unexpected(kind: str, seen: dict[str, int]) -> dict[str, int]:
    """What this kind of client was told and should not have been."""
    return {what: count for what, count in seen.items() if what.rpartition(" ")[2] not in TOLD[kind]}


async def keep_company(company: Company, kind: str) -> None:
    """Behave so until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    behaving = asyncio.create_task(company.keep_on(kind))
    print("begun", flush=True)
    await asyncio.wait([behaving, asyncio.create_task(over.wait())], return_when=asyncio.FIRST_COMPLETED)
    behaving.cancel()
    await asyncio.gather(behaving, return_exceptions=True)


def main(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(TOLD)}.")],
    spec: Annotated[Path, typer.Argument(help="The ladder.")],
    port: Annotated[int, typer.Option(help="Where the routers listen, on this machine.")],
    seed: Annotated[int, typer.Option(help="Of what is sent when.")] = 0,
) -> None:
    """Behave badly until SIGTERM, then say what was done and what came of it."""
    ladder = Ladder.read(spec)
    tensor = ladder.spec.inputs[0].tensor

    def encode(rows: list[list[float]]) -> tuple[bytes, dict[str, str]]:
        return encode_request([(tensor, np.array(rows, np.float32))])

    company = Company(port, f"/v2/models/{ladder.spec.name}/infer", encode, Random(seed))
    asyncio.run(keep_company(company, kind))
    print(json.dumps(company.seen), flush=True)


if __name__ == "__main__":
    typer.run(main)
