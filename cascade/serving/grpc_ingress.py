"""The gRPC surface: protobuf bytes in, wire decoding, the service, wire encoding, messages out. Decides nothing.

Serve finds the methods by their names in the protocol and sends what they return with ``SerializeToString``. An error
becomes a status on the call's context rather than an exception: Serve writes a traceback to its log for each of those, and
leaves out the trailing metadata.
"""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol

import grpc

from cascade import __version__
from cascade.errors import BadRequest, CascadeError, PayloadTooLarge, UnknownModel
from cascade.serving.grpc_stream import answer_each
from cascade.serving.service import PLATFORM, Answered, Service, hold_back
from cascade.serving.streaming import Event, stream
from cascade.wire import metadata
from cascade.wire.grant import Grant
from cascade.wire.grpc_status import fields_of, read_metadata, status_of
from cascade.wire.http import HeaderFacts
from cascade.wire.oip import InferRequest
from cascade.wire.oip_grpc import decode_request, encode_response, failed_event, read_message, shown_event
from cascade.wire.oip_messages import (
    ModelInferRequest,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from cascade.wire.routes import RouteKind

logger = logging.getLogger("cascade.ingress")

MOST_UNDER_WAY = 256
"""Requests of one stream that are under way at a time; the next is read when one of them has ended."""


class Context(Protocol):
    """What is used of a call's context; Serve's ``RayServegRPCContext`` has it."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What the client sent beside the message."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status of the call."""

    def set_details(self, details: str) -> None:
        """Set the sentence of the status."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """Set what is sent beside the answer."""


class GrpcServicer:
    """The methods of ``inference.GRPCInferenceService``.

    Args:
        service: what answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, payload: bytes, grpc_context: Context) -> Any:
        """Liveness: that it is answered at all is the answer."""
        return self._document(payload, grpc_context, ServerLiveRequest, lambda _: ServerLiveResponse(live=True))

    async def ServerReady(self, payload: bytes, grpc_context: Context) -> Any:
        """Whether the ladder can answer."""
        ready = self._service.ready
        return self._document(payload, grpc_context, ServerReadyRequest, lambda _: ServerReadyResponse(ready=ready))

    async def ModelReady(self, payload: bytes, grpc_context: Context) -> Any:
        """Whether a model can answer; one that is not served here is not ready, as Triton has it."""

        def answer(message: Any) -> Any:
            try:
                self._service.check_model(message.name, message.version)
            except UnknownModel:
                return ModelReadyResponse(ready=False)
            return ModelReadyResponse(ready=self._service.ready)

        return self._document(payload, grpc_context, ModelReadyRequest, answer)

    async def ServerMetadata(self, payload: bytes, grpc_context: Context) -> Any:
        """Name, version and extensions of the server."""
        document = metadata.server_metadata("cascade", __version__, metadata.GRPC_EXTENSIONS)

        def answer(_message: Any) -> Any:
            self._grant(RouteKind.SERVER_METADATA, grpc_context)
            return ServerMetadataResponse(**document)

        return self._document(payload, grpc_context, ServerMetadataRequest, answer)

    async def ModelMetadata(self, payload: bytes, grpc_context: Context) -> Any:
        """What the model takes and gives."""

        def answer(message: Any) -> Any:
            self._grant(RouteKind.MODEL_METADATA, grpc_context)
            self._service.check_model(message.name, message.version)
            return ModelMetadataResponse(**metadata.model_metadata(self._service.signature, PLATFORM))

        return self._document(payload, grpc_context, ModelMetadataRequest, answer)

    async def ModelInfer(self, payload: bytes, grpc_context: Context) -> Any:
        """Answer the rows of one message."""

        async def read() -> InferRequest:
            return self._read(payload)

        client = ""
        try:
            facts, client = self._let_in(grpc_context, streams=False)
            return await self._service.infer(facts, read, self._write)
        except Exception as error:
            await hold_back(error)
            return refused(error, grpc_context)
        finally:
            self._service.gate.leave(client, stream=False)

    async def ModelStreamInfer(self, payloads: AsyncIterator[bytes], grpc_context: Context) -> AsyncGenerator[Any, None]:
        """Answer the requests of a stream beside each other, each with its answer so far as often as that gets better.

        The metadata are the stream's, and so is the time limit among them: it counts from the stream's beginning.
        """
        started_s = time.monotonic()
        try:
            facts, client = self._let_in(grpc_context, streams=True)
        except CascadeError as error:
            refused(error, grpc_context)
            return

        def answer(payload: bytes) -> AsyncGenerator[Any, None]:
            if facts.timeout_s is None:
                return self._refined(facts, payload)
            left_s = facts.timeout_s - (time.monotonic() - started_s)
            return self._refined(facts._replace(timeout_s=max(left_s, 1e-6)), payload)

        try:
            async with aclosing(answer_each(payloads, answer, MOST_UNDER_WAY)) as answers:
                async for each in answers:
                    yield each
        finally:
            self._service.gate.leave(client, stream=True)

    def _let_in(self, context: Context, *, streams: bool) -> tuple[HeaderFacts, str]:
        """Check the key and how much the client has under way; see `Ingress`."""
        try:
            grant = self._grant(RouteKind.INFER, context)
            peer = getattr(context, "client_address", None)
            client = self._service.gate.enter(grant, "" if peer is None else peer(), stream=streams)
        except CascadeError:
            self._service.count_refused()
            raise
        facts = read_metadata(context.invocation_metadata())
        return (facts if grant is None else facts._replace(grant=grant)), client

    def _grant(self, kind: RouteKind, context: Context) -> Grant | None:
        return self._service.gate.grant(kind, fields_of(context.invocation_metadata()))

    async def _refined(self, facts: HeaderFacts, payload: bytes) -> AsyncGenerator[Any, None]:
        """The answers to one request of a stream; an error is the last of them."""
        read: list[InferRequest] = []

        async def request() -> InferRequest:
            read.append(self._read(payload))
            return read[0]

        try:
            async with aclosing(stream(self._service, facts, request, self._write_event)) as events:
                async for each in events:
                    yield each
        except Exception as error:
            await hold_back(error)
            yield self._failed(error, payload, read[0].id if read else None)

    def _failed(self, error: Exception, payload: bytes, request_id: str | None) -> Any:
        if not isinstance(error, CascadeError):
            logger.exception("unexpected error")
        if request_id is None and len(payload) <= self._service.spec.limits.max_body_bytes:
            try:  # it was turned away unread, and its client must be told which one it was
                request_id = read_message(ModelInferRequest, payload).id
            except BadRequest:
                request_id = None
        return failed_event(error, self._service.spec.name, request_id)

    def _write_event(self, request: InferRequest, shown: Event) -> Any:
        spec = self._service.spec
        return shown_event(spec.name, spec.version, shown.outputs, request, shown.parameters, final=shown.final)

    def _read(self, payload: bytes) -> InferRequest:
        service = self._service
        max_bytes = service.spec.limits.max_body_bytes
        if len(payload) > max_bytes:
            raise PayloadTooLarge(f"the message may have at most {max_bytes} bytes, got {len(payload)}")
        message = read_message(ModelInferRequest, payload)
        service.check_model(message.model_name, message.model_version)
        return decode_request(message, service.signature, service.limits)

    def _write(self, request: InferRequest, answered: Answered) -> Any:
        spec = self._service.spec
        return encode_response(
            spec.name, spec.version, answered.outputs, request_id=request.id, parameters=answered.parameters
        )

    def _document(self, payload: bytes, context: Context, kind: Any, answer: Callable[[Any], Any]) -> Any:
        try:
            return answer(read_message(kind, payload))
        except Exception as error:
            return refused(error, context)


def refused(error: Exception, context: Context) -> Any:
    """Set the status of a call that has no answer; returns the message that Serve wants nevertheless and gRPC drops."""
    if not isinstance(error, CascadeError):
        logger.exception("unexpected error")
    status = status_of(error)
    context.set_code(grpc.StatusCode[status.code])
    context.set_details(status.details)
    context.set_trailing_metadata(list(status.metadata))
    return _NOTHING


_NOTHING = ServerLiveResponse()
