"""The router's own HTTP server: clients reach the process that decides without a proxy and without Serve's request wrapper.

Knows sockets, uvicorn and ASGI; nothing of routes, tensors or policies. Serve's own way in (HAProxy, then a wrapper around
every request) costs more CPU than the request itself, see docs/decisions/0015-routers-listen-themselves.md. What Serve does
for a request there and clients rely on is done here: a request id, and the end of a request whose client has left.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from itertools import count
from typing import Any

import uvicorn

from cascade.errors import ConfigError, TooSlow
from cascade.serving.address import Address
from cascade.serving.http_protocol import GuardedProtocol
from cascade.spec_sections import LimitsSpec
from cascade.wire.http import MAX_REQUEST_ID_CHARS
from cascade.wire.problem import problem

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PEER = "cascade.peer"
"""Where an ASGI scope has the address of the client itself; another server's scope has that of a proxy, and not this."""
WATCH_AFTER_S = 0.02
"""Requests are looked through this often, and one that was there the last time has its client watched from then on. A task,
or just a timer, for each request that is answered at once would cost more than the answers that nobody waits for."""
SOCKETS = 16
"""Sockets that listen on one address. A turn of uvloop lets in one connection of each (so does libuv since 1.45), and a
turn of a busy router takes milliseconds: with one socket a thousand new connections a second fill its queue, and who finds
that full tries again after 1, 3 and 7 s. The kernel spreads connections over sockets as it does over routers."""
DRAIN_S = 1.0
"""For so long after the last new connection the answers on old ones say that theirs is the last, before those that are
idle are closed: a client that sends on a connection while it is being closed would have to guess whether it was heard."""
KEEP_ALIVE_S = 90.0
"""Idle connections are closed after this, as by Serve's proxies."""


class HttpListener:
    """An HTTP server in the running event loop, from `open` to `close`.

    Args:
        app: the ASGI application behind it.
        address: where to listen.
        patience_s: how long `close` waits for requests that are under way.
        limits: what clients may ask of it.
    """

    def __init__(self, app: App, address: Address, patience_s: float, limits: LimitsSpec | None = None) -> None:
        self._address = address
        limits = limits or LimitsSpec()
        self._watched = Watched(app, limits.body_s)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._watched,
                interface="asgi3",
                http=partial(GuardedProtocol, limits),  # type: ignore[arg-type]  # called like the class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(KEEP_ALIVE_S),
                timeout_graceful_shutdown=int(-(-patience_s // 1)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        # uvicorn says through the log of every request that a client broke off or sent no HTTP: nothing to act on.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        listening: list[socket.socket] = []
        try:
            for _ in range(SOCKETS):
                listening.append(self._address.bind())
        except ConfigError:
            for each in listening:
                each.close()
            raise
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=listening))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0)
        if self._serving.done():
            self._serving.result()
        logger.info(f"listening on {self._address}")

    async def close(self) -> None:
        """Stop accepting connections, let clients leave theirs and requests that are under way end, and close."""
        for accepting in self._server.servers if self._server.started else ():
            accepting.close()
        self._watched.ending = True
        loop = asyncio.get_running_loop()
        until = loop.time() + DRAIN_S
        while self._server.server_state.connections and loop.time() < until:
            await asyncio.sleep(0.01)
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class Watched:
    """An ASGI application whose requests have an id, and end when their client leaves while they wait, or sends too slowly.

    The id is the client's ``x-request-id`` or a new one; the application finds it among the request's headers, the client
    among the answer's. The client's own address is `PEER` of the scope.

    Attributes:
        ending: whether each answer shall be the last on its connection.

    Args:
        app: the application.
        body_s: time in which a body must have come.
    """

    def __init__(self, app: App, body_s: float = 30.0) -> None:
        self.ending = False
        self._app = app
        self._body_s = body_s
        self._visits: set[_Visit] = set()
        self._seen: set[_Visit] = set()
        self._look: asyncio.TimerHandle | None = None
        self._prefix = secrets.token_hex(8).encode()
        self._numbers = count(1)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(self, receive, send, self._request_id(scope["headers"]))
        client = scope.get("client")
        scope[PEER] = client[0] if client else ""
        self._visits.add(visit)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._look_through)
        try:
            await self._app(scope, visit.receive, visit.send)
        except asyncio.CancelledError:
            if not (visit.left or visit.late):
                raise  # the server is closing
            visit.task.uncancel()
            if visit.late and not visit.started:
                await self._refuse_late(visit)
        finally:
            self._visits.remove(visit)
            visit.end()

    def _look_through(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for visit in self._visits & self._seen:
            visit.watch(now, self._body_s)
        self._seen = set(self._visits)
        again = bool(self._visits)
        self._look = loop.call_later(WATCH_AFTER_S, self._look_through) if again else None

    async def _refuse_late(self, visit: "_Visit") -> None:
        reply = problem(TooSlow(f"the body must come within {self._body_s:g} s"))
        await visit.send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await visit.send({"type": "http.response.body", "body": reply.body})

    def _request_id(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        for name, value in headers:
            if name == b"x-request-id" and 0 < len(value) <= MAX_REQUEST_ID_CHARS:
                return value
        # Unique as far as 8 random bytes a process are, for a hundredth of the price of a UUID.
        made = b"%b-%x" % (self._prefix, next(self._numbers))
        headers.append((b"x-request-id", made))
        return made


class _Visit:
    """One request, and whether its client is still there."""

    __slots__ = ("_all", "_id", "_read", "_receive", "_send", "_until_s", "_watch", "late", "left", "started", "task")

    def __init__(self, all_visits: Watched, receive: Receive, send: Send, request_id: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None, "an ASGI server runs every request in a task"
        self.task = task
        self.left = False
        self.late = False
        self.started = False
        self._until_s: float | None = None
        self._all = all_visits
        self._receive = receive
        self._send = send
        self._id = request_id
        self._read = False
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """The next part of the body."""
        message = await self._receive()
        self._read = not message.get("more_body")
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, the request's id in front."""
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message["headers"], (b"x-request-id", self._id)]
            if self._all.ending:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    def watch(self, now: float, body_s: float) -> None:
        """From now on notice when the client leaves; while its body is being read, that is noticed anyway.

        Args:
            now: the event loop's time.
            body_s: time in which the body must have come; counted from the first look, which is soon.
        """
        if not self._read:
            if self._until_s is None:
                self._until_s = now + body_s
            elif now >= self._until_s and not self.late:
                self.late = True
                self.task.cancel()
        elif self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._wait_for_end())

    def end(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _wait_for_end(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            self.task.cancel()
