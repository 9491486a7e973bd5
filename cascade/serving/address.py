"""Where a router process listens itself, beside Serve's own way in. Knows sockets; not what is spoken there."""

import socket
from typing import NamedTuple

from cascade.errors import ConfigError

ANY_HOST = frozenset({"0.0.0.0", "::"})
"""Hosts that stand for every address of a machine."""


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``host:port``; an IPv6 host stands in brackets.

        Raises:
            ConfigError: it is something else.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise ConfigError(f"an address to listen on must be host:port, such as 0.0.0.0:8080, got {text!r}")
        return cls(host, int(port))

    def seen_from_outside(self, host: str) -> "Address":
        """Where it can be reached: at ``host``, the machine's, if it is on every address of it."""
        return self._replace(host=host) if self.host in ANY_HOST else self

    def bind(self) -> socket.socket:
        """A socket that is bound there, beside those of other routers on this machine: the kernel spreads connections.

        Raises:
            ConfigError: somebody else listens there, or the host is not this machine's.
        """
        listening = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listening.bind(self)
        except OSError as error:
            listening.close()
            raise ConfigError(f"cannot listen on {self}: {error.strerror}") from error
        return listening


class Listen(NamedTuple):
    """Where a router takes requests itself; None for a protocol that comes through Serve alone.

    Attributes:
        http: for the HTTP routes.
        grpc: for the gRPC methods.
    """

    http: Address | None = None
    grpc: Address | None = None


NOWHERE = Listen()
