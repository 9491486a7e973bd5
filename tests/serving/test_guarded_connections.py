"""What a client cannot do to the router's own HTTP server, over real sockets: endless heads, slow bodies, unread answers."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import pytest

from cascade.serving import http_protocol
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.http_listener import PEER, HttpListener
from cascade.spec_sections import LimitsSpec

HOST = "127.0.0.1"
SOON = LimitsSpec(max_header_bytes=2048, head_s=0.1, body_s=0.1, write_s=0.1)
PATIENT = LimitsSpec(max_header_bytes=2048)


async def echo_length(scope, receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await reply(send, b"%d" % size)


async def reply(send, body, status=200):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def opened(app, limits=PATIENT):
    door = HttpListener(app, Address(HOST, port := free_port()), patience_s=1, limits=limits)
    await door.open()
    try:
        yield port
    finally:
        await door.close()


async def talk(port: int, *parts: bytes) -> bytes:
    """Send these and read until the server hangs up."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


def problem_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["code"]


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD + b"x-a: " + b"a" * 4096 + b"\r\n\r\n"],
        [HEAD + b"".join(b"x-%d: a\r\n" % n for n in range(400)) + b"\r\n"],
        [b"GET /" + b"a" * 4096 + b" HTTP/1.1\r\n\r\n"],
        [HEAD + b"x-a: ", *[b"a" * 600] * 8],
    ],
    ids=["one long field", "many fields", "a long path", "a field without end"],
)
async def test_a_head_over_the_limit_is_refused(parts):
    async with opened(echo_length) as port:
        assert problem_of(await talk(port, *parts)) == (431, "headers_too_large")


async def test_a_head_within_the_limit_that_comes_in_pieces_is_taken():
    async with opened(echo_length) as port:
        head = HEAD + b"connection: close\r\ncontent-length: 3\r\nx-a: " + b"a" * 1000 + b"\r\n\r\n"
        answer = await talk(port, *[head[at : at + 100] for at in range(0, len(head), 100)], b"abc")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"3")


async def test_each_request_of_a_connection_has_the_limit_for_itself():
    async with opened(echo_length) as port:
        one = HEAD + b"content-length: 0\r\nx-a: " + b"a" * 1500 + b"\r\n\r\n"
        answer = await talk(port, one, one, one.replace(b"host: a", b"connection: close"))
    assert answer.count(b"HTTP/1.1 200") == 3


async def test_a_head_that_does_not_come_to_its_end_is_not_waited_for():
    async with opened(echo_length, SOON) as port:
        assert problem_of(await talk(port, HEAD + b"x-a: a")) == (408, "request_timeout")


async def test_a_connection_that_asks_nothing_is_closed():
    async with opened(echo_length, SOON) as port:
        assert await talk(port) == b""


async def test_a_body_that_does_not_come_to_its_end_is_not_waited_for():
    async with opened(echo_length, SOON) as port:
        assert problem_of(await talk(port, HEAD + b"content-length: 9\r\n\r\n", b"abc")) == (408, "request_timeout")


async def test_a_body_that_has_come_may_be_worked_on_for_longer():
    async def slowly(scope, receive, send):
        await receive()
        await asyncio.sleep(0.4)
        await reply(send, b"late")

    async with opened(slowly, SOON) as port:
        answer = await talk(port, HEAD + b"connection: close\r\ncontent-length: 1\r\n\r\na")
    assert answer.endswith(b"late")


async def test_the_body_of_a_refused_request_is_thrown_away_up_to_a_limit():
    ended = asyncio.Event()

    async def refuses(scope, receive, send):
        await reply(send, b"no", 413)
        ended.set()

    async with opened(refuses) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(HEAD + b"content-length: 1000000000\r\n\r\n")
        await ended.wait()
        assert b"413" in await reader.readuntil(b"no")
        sent = 0
        with suppress(ConnectionError):
            while sent < 1_000_000_000:
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1 << 20
        assert sent < 10 * http_protocol.MOST_DISCARDED
        writer.close()


async def test_a_refused_body_that_drips_is_not_waited_for():
    async def refuses(scope, receive, send):
        await reply(send, b"no", 413)

    async with opened(refuses, SOON) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(HEAD + b"content-length: 1000\r\n\r\n")
        await reader.readuntil(b"no")
        writer.write(b"a")
        with suppress(ConnectionError):  # a reset says the same
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_read_its_answer_is_cut_off():
    gone = asyncio.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            if (await asyncio.wait([asyncio.ensure_future(receive())], timeout=0))[0]:
                gone.set()
                return

    async with opened(endless, SOON) as port:
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(HEAD + b"content-length: 0\r\n\r\n")
        await gone.wait()
        writer.close()


async def test_a_client_that_reads_slowly_but_reads_gets_all_of_its_answer():
    whole = bytes(8 << 20)

    async def large(scope, receive, send):
        await reply(send, whole)

    async with opened(large, LimitsSpec(write_s=0.5)) as port:
        reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 16)
        writer.write(HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while part := await reader.read(1 << 18):
            size += len(part)
            await asyncio.sleep(0.04)
        writer.close()
    assert size == len(whole)


async def test_the_application_is_told_the_address_of_the_client():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope[PEER])
        await reply(send, b"")

    async with opened(app) as port:
        await talk(port, HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n")
    assert seen == [HOST]
