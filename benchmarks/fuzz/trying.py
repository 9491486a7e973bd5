"""Sending inputs and looking at what comes back: every input must get an answer or a closed connection, soon, and no 500."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from benchmarks.fuzz.inputs import Sent, make
from benchmarks.fuzz.target import HOST, Target
from cascade.wire.oip_messages import SERVICE, STREAM_METHOD

HANG_S = 15.0
"""Far beyond every limit of the target: what has not ended by then hangs."""
IDLE_S = 2.0
"""Where a request asks for the connection to be kept, nothing more for so long, which is beyond the target's limits, is the
end of it."""
KEPT = 20
"""Findings that are kept in full."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d)")
CORE = "Internal error from Core"
"""What grpcio says at the client's end when it could not write a request of a stream that the server has ended already."""
FINE = frozenset({502, 503, 504})
"""What of 500 and above may be: an overload or a deadline, said in time, and a stage that failed, here on nothing but rows
that it answers with NaN."""


@dataclass
class Found:
    """What came of all inputs.

    Attributes:
        tried: inputs by kind.
        outcomes: inputs by what came back; of several answers on one connection, each.
        wrong: number of an input and what is wrong with what came of it.
    """

    tried: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)

    def note(self, number: int, what: str) -> None:
        """Something is wrong."""
        self.outcomes["wrong"] += 1
        if len(self.wrong) < KEPT:
            self.wrong.append((number, what))


class Errors(logging.Handler):
    """What servers log as unexpected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take it down."""
        trace = "" if record.exc_info is None or record.exc_info[1] is None else f": {record.exc_info[1]!r}"
        self.messages.append(f"{record.name}: {record.getMessage()}{trace}")


async def try_all(
    target: Target, seed: int, numbers: range, found: Found, *, beside: int = 32, tick: Callable[[], None] = lambda: None
) -> None:
    """Send inputs, some beside each other.

    Args:
        target: where to.
        seed: of the inputs.
        numbers: which of them.
        found: where to note what comes of them.
        beside: how many at a time.
        tick: called after each.
    """
    left = iter(numbers)
    errors = Errors()
    watched = [logging.getLogger(name) for name in ("cascade.ingress", "uvicorn.error", "asyncio", "grpc")]
    levels = [logger.level for logger in watched]
    for logger in watched:
        logger.addHandler(errors)
        logger.setLevel(logging.ERROR)

    async def one() -> None:
        for number in left:
            sent = make(seed, number)
            found.tried[sent.kind] += 1
            try:
                async with asyncio.timeout(HANG_S):
                    await (_call(channel, sent, number, found) if sent.rpc else _ask(target.http, sent, number, found))
            except TimeoutError:
                found.note(number, f"{sent.kind}: nothing came back for {HANG_S:g} s")
            for message in errors.messages:
                found.note(number, f"about here, {sent.kind}: {message}")
            errors.messages.clear()
            tick()

    try:
        async with grpc.aio.insecure_channel(f"{HOST}:{target.grpc}") as channel:
            await asyncio.gather(*(one() for _ in range(beside)))
    finally:
        for logger, level in zip(watched, levels, strict=True):
            logger.removeHandler(errors)
            logger.setLevel(level)


async def _ask(port: int, sent: Sent, number: int, found: Found) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = b""
    try:
        with suppress(ConnectionError):
            writer.write(sent.content)
            await writer.drain()
            while part := await _more(reader, IDLE_S if _STATUS.search(answer) else HANG_S):
                answer += part
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    if not statuses:
        found.outcomes["closed without an answer"] += 1
    for status in statuses:
        found.outcomes[str(status)] += 1
        if status >= 500 and status not in FINE:
            found.note(number, f"{sent.kind}: {answer[:300]!r}")


async def _more(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """What comes next; nothing if the connection ends, or if nothing more comes to what has been answered."""
    if seconds >= HANG_S:
        return await reader.read(1 << 16)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await reader.read(1 << 16)
    return b""


async def _call(channel: grpc.aio.Channel, sent: Sent, number: int, found: Found) -> None:
    path = f"/{SERVICE}/{sent.rpc}"
    try:
        if sent.rpc == STREAM_METHOD:
            call = channel.stream_stream(path)(iter([sent.content, sent.content]), metadata=sent.metadata)
            async for _ in call:
                pass
        else:
            await channel.unary_unary(path)(sent.content, metadata=sent.metadata)
        found.outcomes["gRPC OK"] += 1
    except grpc.aio.AioRpcError as error:
        found.outcomes[f"gRPC {error.code().name}"] += 1
        if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and error.details() != CORE:
            found.note(number, f"{sent.kind} {sent.rpc}: {error.code().name} {error.details()}")
