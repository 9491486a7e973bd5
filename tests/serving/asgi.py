"""A tiny client that calls an ASGI application in this process; it checks the form of what comes back, without a socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Response:
    """What came back; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Disconnected(Exception):
    """The application sent nothing, because the client had gone."""


class Client:
    """Sends requests to an application.

    Args:
        app: the ASGI application.
        root_path: the prefix under which it is mounted, as the server says it.
    """

    def __init__(self, app: Any, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] = (),
        *,
        leave: bool = False,
    ) -> Response:
        """Send one request.

        Args:
            method: its method.
            path: its path as sent, with the query.
            body: all of it, or its chunks, which are taken as the application reads them.
            headers: names and values, or raw pairs; a content-length is sent only if it is among them.
            leave: whether the client goes away after the last chunk instead of ending the body.

        Raises:
            Disconnected: nothing came back.
        """
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()] if isinstance(headers, Mapping) else headers
        raw_path, _, query = path.encode().partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": raw_path.decode(),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": self.root_path,
            "headers": list(raw),
        }
        # Servers put a body that came whole into one last message; pieces are followed by an empty one.
        whole = isinstance(body, bytes) and not leave
        chunks = iter([] if whole else [body] if isinstance(body, bytes) else body)
        last = {"type": "http.request", "body": body if whole else b"", "more_body": False}
        ending = iter([{"type": "http.disconnect"} if leave else last])
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            for chunk in chunks:
                return {"type": "http.request", "body": chunk, "more_body": True}
            return next(ending, None) or await asyncio.Event().wait()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        if not sent:
            raise Disconnected
        start, *parts = sent
        assert start["type"] == "http.response.start"
        assert all(part["type"] == "http.response.body" for part in parts)
        assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]
        assert all(name == name.lower() for name, _ in start["headers"])
        received = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        assert len(received) == len(start["headers"]), "a header was sent twice"
        content = b"".join(part.get("body", b"") for part in parts)
        if method != "HEAD":
            assert int(received["content-length"]) == len(content)
        return Response(start["status"], received, content)

    async def get(self, path: str) -> Response:
        return await self.request("GET", path)

    async def post(self, path: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Response:
        """Send a POST; underscores in the header names stand for hyphens."""
        return await self.request("POST", path, body, {name.replace("_", "-"): v for name, v in headers.items()})


@asynccontextmanager
async def started(app: Any, root_path: str = "") -> AsyncIterator[Client]:
    """A client of an application that has started, and that is shut down afterwards."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    running = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, events.get, sent.put))
    events.put_nowait({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    try:
        yield Client(app, root_path)
    finally:
        events.put_nowait({"type": "lifespan.shutdown"})
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"
        await running
