"""An open-loop client: Poisson arrivals on kept connections, latency from when each request was due.

A closed loop waits with a slow server and so hides its pauses; here a request that is due is due, and what it waits for a
free connection or for the client itself counts. Knows bytes, sockets and a Linux timer; nothing of what the bytes mean.
"""

import asyncio
import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.load import Answers, Exchange, LoadError, in_loop

OPENED, MOST = 16, 256
"""Connections at the start, and the most that are opened when none is free; beyond them a request waits, which counts."""
DRAIN_S = 10.0
"""A request that has no answer so long after the window is unanswered."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A timer that wakes the event loop within microseconds; the loop's own count whole milliseconds.

    Args:
        ring: called in the loop when the timer has run out.
    """

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)

    def set(self, after_s: float) -> None:
        """Ring once, after so many seconds; at once if that is no time."""
        nanoseconds = max(1, int(after_s * 1e9))
        spec = _Itimerspec(value=_Timespec(*divmod(nanoseconds, 1_000_000_000)))
        if self._libc.timerfd_settime(self._descriptor, 0, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never ring again."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _readable(self) -> None:
        os.read(self._descriptor, 8)
        self._ring()


class _Connection(Exchange):
    def __init__(self, run: "_Run") -> None:
        super().__init__()
        self._run = run
        self._request: int | None = None

    def send(self, request: int) -> None:
        self._request = request
        self._transport.write(self._run.message(request))

    def answered(self, raw: bytes) -> None:
        request, self._request = self._request, None
        if request is None:
            raise LoadError("the server answered what nobody had asked")
        self._run.answered(request, raw)
        self._run.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(self, exc, idle=self._request is None)

    def close(self) -> None:
        self._transport.close()


class _Run:
    """One run: what is due, who is free, what has come.

    Args:
        port: where to, on this machine.
        requests: sent in turn, again and again.
        due_s: when each is due, seconds from the start, ascending.
        first: the first request of the window; those before warm the server up.
    """

    def __init__(self, port: int, requests: Sequence[bytes], due_s: Sequence[float], first: int) -> None:
        self._port = port
        self._requests = requests
        self._due_s = due_s
        self._first = first
        self._next = 0
        self._under_way = 0
        self._waiting: deque[int] = deque()
        self._connections: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._free: list[_Connection] = []
        self._ending = False
        self.answers = Answers()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def play(self) -> None:
        """Send everything when it is due, and wait for the answers."""
        for _ in range(OPENED):
            await self._connect()
        alarm = Alarm(lambda: self._due(alarm))
        self._started_s = time.perf_counter()
        alarm.set(self._due_s[0])
        done, _ = await asyncio.wait((self.done,), timeout=self._due_s[-1] + DRAIN_S)
        self._ending = True
        alarm.close()
        for task in self._opening:
            task.cancel()
        for connection in self._connections:
            connection.close()
        if done:
            self.done.result()
        self.answers.unanswered = len(self._due_s) - self._first - len(self.answers.rows)

    def message(self, request: int) -> bytes:
        return self._requests[request % len(self._requests)]

    def free(self, connection: _Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def answered(self, request: int, raw: bytes) -> None:
        if request >= self._first:
            answers = self.answers
            answers.latencies_s.append(time.perf_counter() - self._started_s - self._due_s[request])
            answers.rows.append(request % len(self._requests))
            answers.raw.append(raw)
        self._under_way -= 1
        if not self._under_way and self._next == len(self._due_s) and not self.done.done():
            self.done.set_result(None)

    def lost(self, connection: _Connection, exc: Exception | None, idle: bool) -> None:
        self._connections.discard(connection)
        if self._ending:
            return
        if idle:  # servers close connections that nobody uses for a few seconds
            self._free.remove(connection)
        elif not self.done.done():
            self.done.set_exception(LoadError(f"the server closed a connection: {exc}"))

    def _due(self, alarm: Alarm) -> None:
        due_s, now_s = self._due_s, time.perf_counter() - self._started_s
        while self._next < len(due_s) and due_s[self._next] <= now_s:
            self._under_way += 1
            if self._free:
                self._send(self._free.pop(), self._next)
            else:
                self._waiting.append(self._next)
                if len(self._connections) + len(self._opening) < MOST:
                    task = asyncio.ensure_future(self._connect())
                    self._opening.add(task)
                    task.add_done_callback(self._opening.discard)
            self._next += 1
        if self._next < len(due_s):
            alarm.set(due_s[self._next] - (time.perf_counter() - self._started_s))

    async def _connect(self) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), "127.0.0.1", self._port
        )
        self._connections.add(connection)
        self.free(connection)

    def _send(self, connection: _Connection, request: int) -> None:
        if request >= self._first:
            self.answers.late_s.append(time.perf_counter() - self._started_s - self._due_s[request])
        connection.send(request)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals: instants in [0, seconds), ascending, at least one."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)
    # Given how many there are, the arrivals of a Poisson process are uniform.
    return sorted(rng.uniform(0, seconds, max(1, count)).tolist())


def send_at_rate(
    port: int,
    requests: Sequence[bytes],
    rate: float,
    *,
    warm_s: float,
    seconds: float,
    seed: int,
    at_edge: Callable[[], None],
) -> Answers:
    """Offer a Poisson load for a time; every answer to a request that was due within the window is kept, whenever it came.

    Args:
        port: where, on this machine.
        requests: sent in turn, again and again.
        rate: requests a second, on average.
        warm_s: seconds before the window.
        seconds: length of the window.
        seed: of the arrivals.
        at_edge: called when the window opens and when it closes; the loop waits for it.

    Raises:
        LoadError: the server closed a connection.
    """
    due_s = arrivals(rate, warm_s + seconds, seed)
    first = int(np.searchsorted(due_s, warm_s))

    async def run() -> Answers:
        state = _Run(port, requests, due_s, first)
        load = asyncio.ensure_future(state.play())
        await asyncio.wait((load,), timeout=warm_s)
        at_edge()
        opened = time.perf_counter()
        await asyncio.wait((load,), timeout=seconds)
        state.answers.seconds = time.perf_counter() - opened
        at_edge()
        await load
        return state.answers

    return in_loop(run)
