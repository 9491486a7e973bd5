"""What Serve's gRPC servers, in each router and in the proxies, must know of the protocol: the names of its methods.

    grpc_options: {port: 8001, grpc_servicer_functions: [cascade.serving.grpc_methods.add_to_server]}

Serve calls the function in every process that listens and puts handlers of its own in the place of those registered here;
they lead to the methods of the same names of `cascade.serving.app.RouterReplica`. Processes that only pass calls on import
this module too, so it imports neither models nor messages: requests stay bytes until they are past the router's door.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from cascade.wire.grpc_status import timeout_entry
from cascade.wire.oip_messages import METHODS, SERVICE, STREAM_METHOD

SERVICER_FUNCTION = "cascade.serving.grpc_methods.add_to_server"
"""Import path of `add_to_server`, for Serve's options."""

Answer = TypeVar("Answer")


def add_to_server(servicer: object, server: grpc.aio.Server) -> None:  # noqa: ARG001 - Serve's servicer is a mock
    """Register the protocol's methods with one of Serve's gRPC servers."""
    server.add_generic_rpc_handlers((ProtocolHandlers(),))


class ProtocolHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """The handlers of the protocol's methods; Serve replaces what is in ``_method_handlers`` by its own."""

    def __init__(self) -> None:
        self._method_handlers = {
            f"/{SERVICE}/{method}": grpc.unary_unary_rpc_method_handler(_not_replaced) for method in METHODS
        }
        self._method_handlers[f"/{SERVICE}/{STREAM_METHOD}"] = grpc.stream_stream_rpc_method_handler(_not_replaced)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call, None if it is none of the protocol's."""
        handler = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        if handler.response_streaming:
            return handler._replace(stream_stream=stream_with_deadline(handler.stream_stream))
        return handler._replace(unary_unary=with_deadline(handler.unary_unary))


class DeadlineContext:
    """A call's context whose metadata still has the call's deadline.

    gRPC keeps that to itself, and what Serve hands on of a context is its metadata.

    Args:
        context: the context as gRPC made it.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The call's metadata."""
        metadata = self._context.invocation_metadata() or ()
        remaining_s = self._context.time_remaining()
        return metadata if remaining_s is None else (*metadata, timeout_entry(remaining_s))


def with_deadline(
    handler: Callable[[bytes, Any], Awaitable[Answer]], wrap: Callable[[Any], Any] = DeadlineContext
) -> Callable[[bytes, Any], Awaitable[Answer]]:
    """The handler of a method, given a context whose metadata still has the call's deadline."""

    async def handle(payload: bytes, context: Any) -> Answer:
        return await handler(payload, wrap(context))

    return handle


def stream_with_deadline(
    handler: Callable[[AsyncIterator[bytes], Any], AsyncGenerator[Answer, None]],
    wrap: Callable[[Any], Any] = DeadlineContext,
) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
    """The same for a method that takes and gives streams. Its answers end when the call does, even if the client leaves."""

    async def handle(payloads: AsyncIterator[bytes], context: Any) -> None:
        async with aclosing(handler(payloads, wrap(context))) as answers:
            async for each in answers:
                await context.write(each)

    return handle


async def _not_replaced(payload: bytes, context: Any) -> bytes:
    raise NotImplementedError("Serve puts its own handler here")
