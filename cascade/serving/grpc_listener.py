"""The router's own gRPC server: the same methods as Serve's, one hop shorter, with the call's own deadline in plain sight.

Knows grpcio's server and the table of methods; nothing of messages, tensors or policies. Requests stay bytes until they are
past the router's door.
"""

import logging
from typing import Any

import grpc

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_methods import DeadlineContext, stream_with_deadline, with_deadline
from cascade.wire.oip_messages import METHODS, SERVICE, STREAM_METHOD

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

LARGEST_MESSAGE = (1 << 31) - 1
"""gRPC counts a message's bytes in 32 bits."""


class GrpcListener:
    """A gRPC server in the running event loop, from `open` to `close`.

    Args:
        servicer: what answers.
        address: where to listen.
        patience_s: how long `close` waits for calls that are under way.
        max_bytes: longest message that the servicer takes. gRPC reads, and inflates, a message to its end before anybody can
            refuse it, so one of twice that is cut off by gRPC itself.
    """

    def __init__(self, servicer: GrpcServicer, address: Address, patience_s: float, max_bytes: int) -> None:
        self._servicer = servicer
        self._address = address
        self._patience_s = patience_s
        self._max_bytes = max_bytes
        self._server: Any = None

    async def open(self) -> None:
        """Listen, beside other routers on this machine: the kernel spreads connections.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._address.bind().close()  # gRPC's own refusal does not say why
        limit = min(2 * self._max_bytes, LARGEST_MESSAGE)
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", LARGEST_MESSAGE),
            ]
        )
        self._server.add_generic_rpc_handlers((handlers(self._servicer),))
        try:
            self._server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {self._address}: {error}") from error
        await self._server.start()
        logger.info(f"listening on {self._address} for gRPC")

    async def close(self) -> None:
        """Take no new calls, let those that are under way end, and close."""
        if self._server is not None:
            await self._server.stop(self._patience_s)


class PeerContext(DeadlineContext):
    """A call's context that knows the client's own address; through Serve that would be a proxy's."""

    def client_address(self) -> str:
        """The client's address without its port, as gRPC writes it."""
        peer: str = self._context.peer()
        return peer.rpartition(":")[0] or peer


def handlers(servicer: GrpcServicer) -> grpc.GenericRpcHandler:
    """The protocol's methods, as a server of grpcio takes them."""
    by_name = {
        method: grpc.unary_unary_rpc_method_handler(
            with_deadline(getattr(servicer, method), PeerContext), response_serializer=_serialized
        )
        for method in METHODS
    }
    by_name[STREAM_METHOD] = grpc.stream_stream_rpc_method_handler(
        stream_with_deadline(getattr(servicer, STREAM_METHOD), PeerContext), response_serializer=_serialized
    )
    return grpc.method_handlers_generic_handler(SERVICE, by_name)


def _serialized(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content
