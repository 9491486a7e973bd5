"""The router's own HTTP server over real sockets: ids, clients that leave, a shared port, and a close that loses nothing."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.http_listener import App, HttpListener, Message, Receive, Send, Watched

HOST = "127.0.0.1"
PATIENCE_S = 20


async def read_all(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def reply(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with the body, and with the id that it was told."""
    told = dict(scope["headers"])[b"x-request-id"]
    await reply(send, told + b" " + await read_all(receive))


class Waiting:
    """An application that answers when it is let, and knows what became of its requests."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await read_all(receive)
        self.came.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await reply(send, b"late")


@asynccontextmanager
async def opened(app: App, port: int | None = None) -> AsyncIterator[tuple[HttpListener, int]]:
    port = port or free_port()
    door = HttpListener(app, Address(HOST, port), patience_s=PATIENCE_S)
    await door.open()
    try:
        yield door, port
    finally:
        await door.close()


async def ask(port: int, body: bytes = b"", *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, port)
    lines = ["POST / HTTP/1.1", "host: test", f"content-length: {len(body)}", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return reader, writer


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return head, await reader.readexactly(int(length[1]))


async def test_an_answer_carries_the_id_that_the_client_gave():
    async with opened(echo) as (_, port):
        reader, writer = await ask(port, b"hello", "x-request-id: mine")
        head, body = await answer(reader)
        writer.close()
    assert b"x-request-id: mine\r\n" in head
    assert body == b"mine hello"


async def test_a_request_without_an_id_gets_one_of_its_own():
    async with opened(echo) as (_, port):
        bodies = []
        for _ in range(3):
            reader, writer = await ask(port)
            head, body = await answer(reader)
            assert b"x-request-id: " + body.strip() + b"\r\n" in head
            bodies.append(body)
            writer.close()
    assert len(set(bodies)) == 3


async def test_an_id_too_long_to_be_logged_is_replaced():
    async with opened(echo) as (_, port):
        reader, writer = await ask(port, b"", "x-request-id: " + 300 * "a")
        _, body = await answer(reader)
        writer.close()
    assert b"aaa" not in body


async def test_a_request_ends_when_its_client_leaves_while_it_waits():
    app = Waiting()
    async with opened(app) as (_, port):
        _, writer = await ask(port, b"x")
        await app.came.wait()
        writer.close()
        await app.cancelled.wait()


async def test_a_client_that_stays_gets_its_late_answer():
    app = Waiting()
    async with opened(app) as (_, port):
        reader, writer = await ask(port, b"x")
        await app.came.wait()
        await asyncio.sleep(0.05)  # past the instant at which it begins to be watched
        app.go.set()
        _, body = await answer(reader)
        writer.close()
    assert body == b"late"
    assert not app.cancelled.is_set()


async def test_a_kept_connection_serves_many_requests():
    async with opened(echo) as (_, port):
        reader, writer = await ask(port, b"0", "x-request-id: a")
        bodies = [(await answer(reader))[1]]
        for number in (1, 2):
            writer.write(b"POST / HTTP/1.1\r\nhost: test\r\nx-request-id: a\r\ncontent-length: 1\r\n\r\n%d" % number)
            bodies.append((await answer(reader))[1])
        writer.close()
    assert bodies == [b"a 0", b"a 1", b"a 2"]


async def test_closing_lets_requests_that_are_under_way_end():
    app = Waiting()
    door = HttpListener(app, Address(HOST, port := free_port()), patience_s=PATIENCE_S)
    await door.open()
    reader, writer = await ask(port, b"x")
    await app.came.wait()
    closing = asyncio.create_task(door.close())
    while True:  # until nobody new is let in
        try:
            _, other = await asyncio.open_connection(HOST, port)
        except OSError:
            break
        other.close()
        await asyncio.sleep(0.01)
    app.go.set()
    _, body = await answer(reader)
    writer.close()
    await closing
    assert body == b"late"


async def test_routers_on_one_machine_share_a_port():
    async with opened(echo) as (_, port), opened(echo, port):
        for _ in range(8):
            reader, writer = await ask(port)
            await answer(reader)
            writer.close()


def test_clients_that_come_at_once_are_let_in_several_a_turn_of_the_loop():
    clients = 160

    async def turns_until_all_are_in() -> int:
        async with opened(echo) as (door, port):
            knocking = [socket.socket() for _ in range(clients)]
            for client in knocking:
                client.setblocking(False)
                client.connect_ex((HOST, port))
            turns = 0
            while len(door._server.server_state.connections) < clients and turns < 10 * clients:
                await asyncio.sleep(0)
                turns += 1
            for client in knocking:
                client.close()
            return turns

    # uvloop, as in a replica of Serve, lets one in for each socket and turn.
    assert uvloop.run(turns_until_all_are_in()) < clients / 2


async def test_a_port_that_somebody_else_has_is_refused_by_name():
    async with await asyncio.start_server(lambda *_: None, HOST, 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await HttpListener(echo, Address(HOST, port), patience_s=1).open()


async def test_other_scopes_pass_through_untouched():
    seen = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: object) -> Message:
        return {}

    await Watched(app)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0:8080", ("0.0.0.0", 8080)), ("[::1]:80", ("::1", 80)), ("localhost:65535", ("localhost", 65535))],
)
def test_an_address_is_a_host_and_a_port(text, address):
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:0", "host:65536", "host:x", "host:-1", "host:²"])
def test_anything_else_is_no_address(text):
    with pytest.raises(ConfigError, match="host:port"):
        Address.parse(text)


async def test_during_a_close_each_answer_is_the_last_on_its_connection():
    waiting = Waiting()
    async with opened(waiting) as (door, port):
        reader, writer = await ask(port)
        await waiting.came.wait()
        closing = asyncio.ensure_future(door.close())
        await asyncio.sleep(0)
        waiting.go.set()
        head, body = await answer(reader)
        assert body == b"late"
        assert b"connection: close" in head.lower()
        assert await reader.read() == b"", "and then it is closed"
        await closing
        writer.close()


async def test_a_client_may_send_once_more_on_its_connection_while_the_door_closes():
    async with opened(echo) as (door, port):
        reader, writer = await ask(port, b"before")
        head, _ = await answer(reader)
        assert b"connection: close" not in head.lower()
        closing = asyncio.ensure_future(door.close())
        await asyncio.sleep(0)
        writer.write(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nafter")
        head, body = await answer(reader)
        assert body.endswith(b"after")
        assert b"connection: close" in head.lower()
        await closing
        writer.close()
