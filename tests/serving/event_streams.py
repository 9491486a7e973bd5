"""A client of event streams that calls an ASGI application in this process, and takes one piece at a time."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, Self

PING = b": ping\n\n"


def read_event(piece: bytes) -> dict[str, Any]:
    """The document of an event; the form is checked to the letter."""
    assert piece.startswith(b"data: ")
    assert piece.endswith(b"\n\n")
    line = piece[len(b"data: ") : -2]
    assert b"\n" not in line
    assert b"\r" not in line
    return json.loads(line)


class EventStream:
    """One request and the stream that answers it. What is not taken holds the application up, as a full socket does.

    Args:
        app: the ASGI application.
        path: of the request.
        body: of the request.
        headers: names and values.
    """

    def __init__(self, app: Any, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._gone = asyncio.Event()
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        self._body: list[bytes] = [body]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False

    async def __aenter__(self) -> Self:
        self.running = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))
        start = await self._next()
        assert start["type"] == "http.response.start"
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self._sent.put(message)
        await self._sent.join()

    async def _next(self) -> dict[str, Any]:
        taking = asyncio.ensure_future(self._sent.get())
        await asyncio.wait([taking, self.running], return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            self.running.result()
            raise AssertionError("the application ended in the middle of its answer")
        self._sent.task_done()
        return taking.result()

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    async def piece(self) -> bytes:
        """The next piece of the body."""
        assert not self.ended, "the stream has ended"
        part = await self._next()
        assert part["type"] == "http.response.body"
        self.ended = not part.get("more_body", False)
        return part["body"]

    async def event(self) -> dict[str, Any]:
        """The next event."""
        return read_event(await self.piece())

    async def rest(self) -> list[dict[str, Any]]:
        """All events that are left."""
        events = []
        while not self.ended:
            events.append(await self.event())
        return events
