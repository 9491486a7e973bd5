"""An open-loop run against the real server: instants are drawn before, answers are scored after.

Knows one ladder's spec and its test rows; nothing of policies. Latency counts from the scheduled instant: a client or
a server that falls behind cannot hide it.
"""

import asyncio
import gc
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import NamedTuple

import numpy as np
import uvloop

from benchmarks.load import HEAD_END, header, status_and_body
from benchmarks.systems import System, SystemFailed
from cascade.simulation.workload import draw, parse_workload
from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request

PORT = 8137
SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of all routers."""
GRACE_S = 5.0
"""How long after the last instant answers are waited for."""


class Measured(NamedTuple):
    """What came of a run; shares are of the requests offered, that of right answers of their rows."""

    offered_per_s: float
    answered: float
    on_time: float
    right: float
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float

    def cells(self) -> list[str]:
        """For a table."""
        shares = (self.answered, self.on_time, self.right)
        times = (self.p50_ms, self.p99_ms, self.lag_p99_ms)
        return [f"{self.offered_per_s:,.0f}", *(f"{share:.2%}" for share in shares), *(f"{ms:.1f}" for ms in times)]


@dataclass
class _Asked:
    """One request: when it was due and went out, and what came back when."""

    due_s: float
    sent_s: float = 0.0
    back_s: float = float("nan")
    raw: bytes = b""


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, idle: list["_Connection"]) -> None:
        self._idle = idle
        self._asked: _Asked | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def ask(self, asked: _Asked, request: bytes, now: float) -> None:
        asked.sent_s = now
        self._asked = asked
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return
        length = header(self._buffer[:end], b"content-length")
        if length is None or len(self._buffer) < end + len(HEAD_END) + int(length):
            return
        if self._asked is not None:
            self._asked.raw, self._asked.back_s = self._buffer, asyncio.get_running_loop().time()
        self._asked, self._buffer = None, b""
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self in self._idle:
            self._idle.remove(self)


def measure(spec: Path, rate: float, seconds: float) -> Measured:
    """Serve a ladder and offer Poisson arrivals to it; the same instants and rows for the same rate and seconds.

    Args:
        spec: the ladder.
        rate: requests/s, of one row each.
        seconds: how long.
    """
    ladder = Ladder.read(spec)
    requests, labels = messages(ladder, PORT)
    with tempfile.TemporaryDirectory(prefix="cascade-routers-") as folder:
        command = [str(Path(sys.executable).parent / "cascade"), "serve", str(spec), "--port", str(PORT)]
        system = System(command, PORT, Path(folder) / "server.log")
        try:
            system.wait_for_answer(requests[0])
            sleep(SETTLE_S)
            return offered(PORT, requests, labels, rate, seconds, ladder.spec.deadline.default_s)
        finally:
            if not system.stop():
                raise SystemFailed("some processes of the server did not stop by themselves")


def messages(ladder: Ladder, port: int, rows: int = 1) -> tuple[list[bytes], np.ndarray]:
    """The ladder's test rows as requests of ``rows`` rows each, and their labels [requests, rows]."""
    with np.load(ladder.path(ladder.spec.data.test)) as data:
        arrays, labels = {field.name: data[field.name] for field in ladder.spec.inputs}, data["labels"]
    count = len(labels) // rows
    parts = [slice(place * rows, (place + 1) * rows) for place in range(count)]
    requests = [_request(ladder, port, {name: array[part] for name, array in arrays.items()}) for part in parts]
    return requests, labels[: count * rows].reshape(count, rows)


def offered(
    port: int, requests: list[bytes], labels: np.ndarray, rate: float, seconds: float, deadline_s: float
) -> Measured:
    """Offer Poisson arrivals to a server that runs; the same instants and rows for the same rate and seconds.

    Args:
        port: where it listens, on this machine.
        requests: see `messages`.
        labels: see `messages`.
        rate: requests/s.
        seconds: how long.
        deadline_s: when an answer is late.
    """
    instants = draw(parse_workload(f"poisson:{rate:.9g}"), seconds, 0).instants
    picks = np.random.default_rng(1).integers(len(requests), size=len(instants))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        warm = np.arange(min(60, len(requests)))
        runner.run(_offer(port, requests, np.linspace(0, 1.5, len(warm)), warm))
        asked = runner.run(_offer(port, requests, instants, picks))
    return _score(asked, labels[picks], deadline_s, seconds)


def _request(ladder: Ladder, port: int, rows: dict[str, np.ndarray]) -> bytes:
    tensors = [(field.tensor, rows[field.name]) for field in ladder.spec.inputs]
    body, headers = encode_request(tensors, outputs=["label"])
    lines = {"host": f"127.0.0.1:{port}", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v2/models/{ladder.spec.name}/infer HTTP/1.1\r\n{head}\r\n".encode() + body


async def _offer(port: int, requests: list[bytes], instants: np.ndarray, rows: np.ndarray) -> list[_Asked]:
    """Send each request at its instant, whether the ones before were answered or not."""
    loop = asyncio.get_running_loop()
    idle: list[_Connection] = []
    await asyncio.gather(*(_connect(port, idle) for _ in range(32)))
    gc.collect()
    gc.freeze()
    gc.disable()
    began_s = loop.time()
    asked = [_Asked(began_s + instant) for instant in instants.tolist()]
    opening: set[asyncio.Task[None]] = set()
    for each, row in zip(asked, rows.tolist(), strict=True):
        if (wait_s := each.due_s - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        if idle:
            idle.pop().ask(each, requests[row], loop.time())
        else:
            opening.add(task := asyncio.create_task(_ask_on_new(port, idle, each, requests[row])))
            task.add_done_callback(opening.discard)
    until_s = loop.time() + GRACE_S
    while loop.time() < until_s and any(np.isnan(each.back_s) for each in asked[-2000:]):
        await asyncio.sleep(0.05)
    gc.enable()
    for connection in idle:
        connection.transport.close()
    return asked


async def _connect(port: int, idle: list[_Connection]) -> None:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(idle), "127.0.0.1", port)
    idle.append(connection)


async def _ask_on_new(port: int, idle: list[_Connection], asked: _Asked, request: bytes) -> None:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: _Connection(idle), "127.0.0.1", port)
    connection.ask(asked, request, loop.time())


def _score(asked: list[_Asked], labels: np.ndarray, deadline_s: float, seconds: float) -> Measured:
    """Everything but the first and last deadline's worth of requests."""
    due_s = np.array([each.due_s for each in asked])
    latency_s = np.array([each.back_s for each in asked]) - due_s
    lag_s = np.array([each.sent_s for each in asked]) - due_s
    answered, right = np.zeros(len(asked), bool), np.zeros(len(asked))
    for place, (each, expected) in enumerate(zip(asked, labels, strict=True)):
        if each.raw:
            status, head, body = status_and_body(each.raw)
            answered[place] = status == 200
            if status == 200:
                json_length = header(head, b"inference-header-content-length")
                answer = decode_answer(body, None if json_length is None else json_length.decode())
                right[place] = float(np.mean(answer.outputs["label"] == expected))
    counted = (due_s >= due_s[0] + 2 * deadline_s) & (due_s <= due_s[-1] - deadline_s)
    on_time = answered & (latency_s <= deadline_s)
    taken_ms = 1e3 * latency_s[counted & answered]
    return Measured(
        len(asked) / seconds,
        *(float(which[counted].mean()) for which in (answered, on_time, on_time * right)),
        *(float(np.quantile(taken_ms, q)) if len(taken_ms) else np.nan for q in (0.5, 0.99)),
        float(1e3 * np.quantile(lag_s[counted], 0.99)),
    )
