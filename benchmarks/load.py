"""A closed-loop HTTP/1.1 load client that costs little: pre-encoded requests, kept connections, one process, one thread.

It knows bytes and sockets; what the bytes mean is the caller's business. Answers are kept as they came and decoded after
the run, so that the client takes as little as it can of the machine that it shares with the server.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import uvloop

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""Ends an answer without content-length; JSON text cannot end in it, and a server of binary answers announces a length."""
PATIENCE_S = 60.0
"""A server that gives no answer at all for so long has stopped giving any."""


class LoadError(Exception):
    """The server closed a connection or answered in a way that this client does not read."""


@dataclass
class Answers:
    """What came back, in the order in which it came.

    Attributes:
        rows: which request each answer belongs to.
        raw: the answers, status line to body.
        latencies_s: seconds to the last byte received: from the first byte sent, in an open loop from when it was due.
        seconds: how long the window was open.
        late_s: open loop only, seconds from when each request was due to when the client sent it.
        unanswered: open loop only, requests of the window that had no answer when the client gave up.
    """

    rows: array = field(default_factory=lambda: array("q"))
    raw: list[bytes] = field(default_factory=list)
    latencies_s: array = field(default_factory=lambda: array("d"))
    seconds: float = 0.0
    late_s: array = field(default_factory=lambda: array("d"))
    unanswered: int = 0


class Exchange(asyncio.Protocol):
    """One connection with at most one request under way; what an answer means is for the subclass."""

    def __init__(self) -> None:
        self._buffer = b""
        self._length = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if not self._length:
            end = data.find(HEAD_END)
            if end < 0:
                self._buffer = data
                return
            announced = header(data[:end], b"content-length")
            self._length = inf if announced is None else end + len(HEAD_END) + int(announced)
        if len(data) < self._length and not (self._length == inf and data.endswith(LAST_CHUNK)):
            self._buffer = data
            return
        self._buffer, self._length = b"", 0.0
        self.answered(data)

    def answered(self, raw: bytes) -> None:
        """An answer has come, whole."""
        raise NotImplementedError


@dataclass
class _Run:
    """The state that all connections of one run share."""

    requests: Sequence[bytes]
    limit: float
    answers: Answers = field(default_factory=Answers)
    sent: int = 0
    came: int = 0
    recording: bool = True
    stopping: bool = False


class _Connection(Exchange):
    """A connection of a closed loop: the next request leaves when the answer has come."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run
        self._row = 0
        self._sent_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self) -> None:
        run = self._run
        if run.stopping or run.sent >= run.limit:
            self.done.set_result(None)
            self._transport.close()
            return
        self._row = run.sent % len(run.requests)
        run.sent += 1
        self._sent_s = time.perf_counter()
        self._transport.write(run.requests[self._row])

    def answered(self, raw: bytes) -> None:
        run = self._run
        run.came += 1
        if run.recording:
            run.answers.latencies_s.append(time.perf_counter() - self._sent_s)
            run.answers.rows.append(self._row)
            run.answers.raw.append(raw)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(LoadError(f"the server closed a connection: {exc}"))


def header(head: bytes, name: bytes) -> bytes | None:
    """A field of an answer's head; ``name`` in lower case."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None


def status_and_body(raw: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of a raw answer."""
    head, _, body = raw.partition(HEAD_END)
    if header(head, b"transfer-encoding") == b"chunked":
        body = _joined(body)
    return int(head.split(b" ", 2)[1]), head, body


def _joined(chunked: bytes) -> bytes:
    parts = []
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        length = int(size, 16)
        parts.append(chunked[:length])
        chunked = chunked[length + 2 :]
    return b"".join(parts)


def send_all(port: int, requests: Sequence[bytes], connections: int, count: int | None = None) -> Answers:
    """Send ``count`` requests, all of them once by default, and wait for every answer."""

    async def run() -> Answers:
        state = _Run(requests, len(requests) if count is None else count)
        started = time.perf_counter()
        await _finished(asyncio.ensure_future(_connected(port, state, connections)), state)
        state.answers.seconds = time.perf_counter() - started
        return state.answers

    return in_loop(run)


def send_for(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    *,
    warm_s: float,
    seconds: float,
    at_edge: Callable[[], None],
) -> Answers:
    """Keep ``connections`` requests under way for a time; only answers that come within the window are kept.

    The load is the same before, in and at the end of the window, so that neither its start nor its end is counted.

    Args:
        port: where, on this machine.
        requests: sent in turn, again and again.
        connections: how many.
        warm_s: seconds before the window.
        seconds: length of the window.
        at_edge: called when the window opens and when it closes; the loop waits for it.
    """

    async def run() -> Answers:
        state = _Run(requests, inf, recording=False)
        load = asyncio.ensure_future(_connected(port, state, connections))
        await asyncio.wait((load,), timeout=warm_s)
        at_edge()
        opened = time.perf_counter()
        state.recording = True
        await asyncio.wait((load,), timeout=seconds)
        state.recording = False
        state.answers.seconds = time.perf_counter() - opened
        at_edge()
        state.stopping = True
        await _finished(load, state)
        return state.answers

    return in_loop(run)


async def _finished(load: asyncio.Future[None], state: _Run) -> None:
    """Wait for the last answers, for as long as some still come."""
    while True:
        before = state.came
        done, _ = await asyncio.wait((load,), timeout=PATIENCE_S)
        if done:
            return load.result()
        if state.came == before:
            load.cancel()
            raise LoadError(f"{state.sent - state.came} requests have had no answer for {PATIENCE_S:g} s")


async def _connected(port: int, state: _Run, connections: int) -> None:
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: _Connection(state), "127.0.0.1", port) for _ in range(connections)]
    for _, connection in opened:
        connection.send()
    await asyncio.gather(*(connection.done for _, connection in opened))


def in_loop(run: Callable[[], Coroutine[Any, Any, Answers]]) -> Answers:
    """Run a load in an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
