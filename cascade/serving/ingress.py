"""The HTTP surface: ASGI messages in, wire decoding, the service, wire encoding, ASGI messages out. Decides nothing.

A raw ASGI application, because request objects of a framework cost more than the cheapest stage of a ladder. It knows
routes and codecs from `cascade.wire`, and the service as something that answers requests.
"""

import asyncio
import logging
from contextlib import aclosing
from functools import lru_cache, partial
from typing import Protocol

from cascade import __version__
from cascade.errors import BadRequest, CascadeError, Overloaded, PayloadTooLarge
from cascade.serving.http_listener import PEER, Message, Receive, Send
from cascade.serving.service import PLATFORM, Answered, Service, hold_back
from cascade.serving.status import Status, page
from cascade.serving.streaming import Event, stream
from cascade.wire import metadata
from cascade.wire.encoding import compress, inflate
from cascade.wire.event_stream import PING, event, stream_headers
from cascade.wire.http import HeaderFacts, Headers, answer_headers, parse_json_length, read_headers
from cascade.wire.oip import InferRequest, decode_request, encode_response
from cascade.wire.problem import Reply, problem
from cascade.wire.routes import Route, RouteKind, parse_route

logger = logging.getLogger("cascade.ingress")


class Listener(Protocol):
    """A server of the router's own, beside the one that runs the ASGI application."""

    async def open(self) -> None:
        """Begin to take requests."""

    async def close(self) -> None:
        """Take no more, and let those under way end."""


class ClientGone(Exception):
    """The client closed the connection before its body had come."""


class Ingress:
    """The ASGI application of one router process; the service runs between its start-up and its shutdown.

    Attributes:
        listeners: opened when the service has started, closed before it stops.
        beside: opened before the listeners and closed after them: what requests need that are under way then.
        status: what people are shown.

    Args:
        service: what answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.listeners: list[Listener] = []
        self.beside: list[Listener] = []
        self.status = Status(service)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        facts, client, streams = read_headers(scope["headers"]), "", False
        try:
            raw_path = scope.get("raw_path")
            path = raw_path.decode("latin-1") if raw_path else scope["path"]
            # A mount prefix is part of the path here; the routes start behind it.
            path = path.removeprefix(scope.get("root_path", "").rstrip("/"))
            route = parse_route(scope["method"], path)
            streams = route.kind is RouteKind.INFER_STREAM or (route.kind is RouteKind.INFER and facts.event_stream)
            facts, client = self._let_in(route, facts, scope, streams=streams)
            if streams:
                await self._stream(facts, receive, send)
                return
            if route.kind is RouteKind.INFER:
                read, write = partial(self._read, facts, receive), partial(self._write, facts)
                status, headers, body = 200, *await self._service.infer(facts, read, write)
            elif route.kind is RouteKind.STATUS_PAGE:
                status, headers, body = 200, *page()
            elif route.kind is RouteKind.STATUS_FIGURES:
                body = metadata.to_body(await self.status.figures())
                status, headers = 200, [*answer_headers(len(body), None), (b"cache-control", b"no-store")]
            else:
                status, body = self._document(route)
                headers = answer_headers(len(body), None)
        except ClientGone:
            return
        except Exception as error:
            await hold_back(error)
            status, headers, body = self._refusal(error, facts)
        finally:
            self._service.gate.leave(client, stream=streams)
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _let_in(self, route: Route, facts: HeaderFacts, scope: Message, *, streams: bool) -> tuple[HeaderFacts, str]:
        """Check the key, then the model, then how much the client has under way.

        Returns:
            The facts, with what the key gives, and the client that the gate has counted.
        """
        service = self._service
        asks = route.kind in (RouteKind.INFER, RouteKind.INFER_STREAM)
        try:
            grant = service.gate.grant(route.kind, scope["headers"])
            if route.model is not None:
                service.check_model(route.model, route.version)
            client = service.gate.enter(grant, scope.get(PEER, ""), stream=streams) if asks else ""
        except CascadeError:
            if asks:
                service.count_refused()
            raise
        return (facts if grant is None else facts._replace(grant=grant)), client

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._service.start()
                for listener in (*self.beside, *self.listeners):
                    await listener.open()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.gather(*(listener.close() for listener in self.listeners))
                await asyncio.gather(*(listener.close() for listener in self.beside))
                await self._service.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _refusal(self, error: Exception, facts: HeaderFacts) -> tuple[int, Headers, bytes]:
        if not isinstance(error, CascadeError):
            logger.exception("unexpected error, request %s", facts.request_id, extra={"request_id": facts.request_id or "?"})
        # Turning requests away must cost next to nothing, or those who come back keep the server busy with it.
        reply = (
            turned_away(error.detail, error.retry_after_s)
            if isinstance(error, Overloaded)
            else problem(error, facts.request_id)
        )
        return reply.status, reply.headers, reply.body

    # -- inference -----------------------------------------------------------------------------------------------------

    async def _read(self, facts: HeaderFacts, receive: Receive) -> InferRequest:
        max_bytes = self._service.spec.limits.max_body_bytes
        json_length = parse_json_length(facts.inference_header_length)
        body = inflate(await read_body(receive, facts.content_length, max_bytes), facts.content_encoding, max_bytes)
        return decode_request(body, json_length, self._service.signature, self._service.limits)

    async def _stream(self, facts: HeaderFacts, receive: Receive, send: Send) -> None:
        """Send the events of one message; raises what went wrong before the first, when the status is still open.

        One event is made at a time, and only once the one before has been taken off our hands, so a client that reads slowly
        costs no memory and is shown the newest state when it is ready for it.
        """
        read = partial(self._read_for_stream, facts, receive)
        events = stream(self._service, facts, read, self._write_event, self._service.spec.anytime.ping_s)
        async with aclosing(events):
            written = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": stream_headers(facts.wait_s)})
            more = True
            while more:
                body, more = (PING, True) if written is None else written
                await send({"type": "http.response.body", "body": body, "more_body": more})
                if more:
                    try:
                        written = await anext(events)
                    except Exception as error:
                        _, _, document = self._refusal(error, facts)
                        written = event(document), False

    async def _read_for_stream(self, facts: HeaderFacts, receive: Receive) -> InferRequest:
        request = await self._read(facts, receive)
        if parse_json_length(facts.inference_header_length) == 0:  # a raw body cannot say what it wants
            return request._replace(outputs=self._service.signature.all_json)
        if any(output.binary for output in request.outputs):
            raise BadRequest(
                "an event stream holds JSON only; leave out binary_data_output and binary_data, or make them false"
            )
        return request

    def _write_event(self, request: InferRequest, shown: Event) -> tuple[bytes, bool]:
        spec = self._service.spec
        body, _ = encode_response(spec.name, spec.version, shown.outputs, request_id=request.id, parameters=shown.parameters)
        return event(body), not shown.final

    def _write(self, facts: HeaderFacts, request: InferRequest, answered: Answered) -> tuple[Headers, bytes]:
        spec = self._service.spec
        body, json_length = encode_response(
            spec.name, spec.version, answered.outputs, request_id=request.id, parameters=answered.parameters
        )
        body, encoding = compress(body, facts.accept_encoding)
        return answer_headers(len(body), json_length, answered.provenance, encoding, facts.wait_s), body

    # -- documents -----------------------------------------------------------------------------------------------------

    def _document(self, route: Route) -> tuple[int, bytes]:
        service = self._service
        ready, spec = service.ready, service.spec
        document: object
        match route.kind:
            case RouteKind.LIVENESS:
                document = {"status": "alive"}
            case RouteKind.SERVER_METADATA:
                document = metadata.server_metadata("cascade", __version__)
            case RouteKind.SERVER_LIVE:
                document = metadata.live_document()
            case RouteKind.SERVER_READY:
                document = metadata.ready_document(ready)
            case RouteKind.MODEL_READY:
                document = metadata.model_ready_document(spec.name, ready)
            case RouteKind.MODEL_LIST:
                document = metadata.model_list([spec.name])
            case RouteKind.REPOSITORY_INDEX:
                document = metadata.repository_index([metadata.RepositoryEntry(spec.name, spec.version, ready)])
            case RouteKind.MODEL_METADATA:
                properties = {"stages": ",".join(service.stage_names), "labels": ",".join(spec.labels)}
                document = metadata.model_metadata(service.signature, PLATFORM, properties)
            case RouteKind.MODEL_CONFIG:
                document = metadata.model_config(service.signature, PLATFORM, spec.limits.max_rows)
            case RouteKind.MODEL_STATISTICS | RouteKind.SERVER_STATISTICS:
                document = metadata.statistics(service.statistics()) | service.live()
            case RouteKind.MODEL_EXPLAIN:
                explanations = service.watcher.explanations
                document = explanations.latest() if route.request_id is None else explanations.of(route.request_id)
            case _:
                raise AssertionError(route.kind)
        is_readiness = route.kind in (RouteKind.SERVER_READY, RouteKind.MODEL_READY)
        return (503 if is_readiness and not ready else 200), metadata.to_body(document)


@lru_cache(maxsize=64)
def turned_away(detail: str, retry_after_s: int) -> Reply:
    """The answer to a request that is shed, encoded once for each sentence and number of seconds."""
    return problem(Overloaded(detail, retry_after_s))


async def read_body(receive: Receive, content_length: int | None, max_bytes: int) -> bytes:
    """Read a request's body.

    Args:
        receive: the ASGI channel.
        content_length: what the client announced; a body announced as too long is refused before it is read.
        max_bytes: the limit.

    Raises:
        PayloadTooLarge: over the limit.
        ClientGone: the client closed the connection.
    """
    if content_length is not None and content_length > max_bytes:
        raise PayloadTooLarge(f"the body may have at most {max_bytes} bytes, got content-length {content_length}")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise PayloadTooLarge(f"the body may have at most {max_bytes} bytes, got more than that")
        if not message.get("more_body", False):
            return chunk if not chunks else b"".join([*chunks, chunk])
        chunks.append(chunk)
