"""The open-loop client against a server of its own: what is due is sent, whatever the server does, and waiting counts."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.load import LoadError
from benchmarks.open_loop import MOST, arrivals, send_at_rate

REQUESTS = [b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n%d" % number for number in range(4)]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%s"


class Echo:
    """Answers with the request's last byte, unless told to hold its answers back, or to hang up after some."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.held: asyncio.Event | None = None
        self.hang_up_after: int | None = None
        self.answered = 0
        self.waiting = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(1)
                self.waiting += 1
                if self.held is not None:
                    await self.held.wait()
                if self.hang_up_after is not None and self.answered >= self.hang_up_after:
                    break
                self.answered += 1
                writer.write(ANSWER % body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@contextmanager
def serving(echo: Echo) -> Iterator[int]:
    """The port of an echo server that runs in a thread of its own."""
    loop = echo.loop
    server = loop.run_until_complete(asyncio.start_server(echo.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_cancel_all())
        loop.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_everything_that_is_due_in_the_window_is_answered_with_its_own_answer() -> None:
    due_s = np.array(arrivals(200, 1.5, seed=3))
    edges = []
    with serving(Echo()) as port:
        answers = send_at_rate(port, REQUESTS, 200, warm_s=0.5, seconds=1.0, seed=3, at_edge=lambda: edges.append(1))
    assert len(edges) == 2
    assert len(answers.rows) == (due_s >= 0.5).sum()
    assert answers.unanswered == 0
    assert all(raw.endswith(b"%d" % row) for row, raw in zip(answers.rows, answers.raw, strict=True))
    assert min(answers.latencies_s) > 0
    assert min(answers.late_s) >= 0


def test_a_server_that_holds_its_answers_back_is_still_sent_what_is_due_and_its_pause_counts() -> None:
    echo = Echo()
    with serving(echo) as port:
        held = echo.held = asyncio.Event()
        waiting = []

        def at_edge() -> None:
            # The window opens on a server that has been silent from the start; it speaks when the window closes.
            waiting.append(echo.waiting)
            if len(waiting) == 2:
                echo.loop.call_soon_threadsafe(held.set)

        answers = send_at_rate(port, REQUESTS, 60, warm_s=0.3, seconds=1.0, seed=1, at_edge=at_edge)
    assert waiting[1] > waiting[0]
    assert answers.unanswered == 0
    assert max(answers.latencies_s) > 0.5


def test_a_server_that_hangs_up_is_an_error() -> None:
    echo = Echo()
    echo.hang_up_after = 5
    with serving(echo) as port, pytest.raises(LoadError, match="closed"):
        send_at_rate(port, REQUESTS, 100, warm_s=0.1, seconds=1.0, seed=1, at_edge=lambda: None)


def test_arrivals_are_a_poisson_process() -> None:
    due_s = np.array(arrivals(1000, 100.0, seed=0))
    assert len(due_s) == pytest.approx(100_000, abs=5 * np.sqrt(100_000))
    gaps = np.diff(due_s)
    assert (gaps >= 0).all()
    # An exponential gap is as wide as it is long.
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)


def test_there_is_something_to_send_however_low_the_rate() -> None:
    assert len(arrivals(1e-9, 1.0, seed=0)) == 1
    assert MOST > 1
