"""Whose port it is: routers of one ladder share a port of their machine, and those of two ladders must not.

Routers listen with SO_REUSEPORT, so the kernel would let the routers of another ladder join and spread connections over
both: every client would be told now and then that its model is not served here. So a router leaves a note that the others
can read: a socket of Linux's abstract namespace, which belongs to the same network namespace as the port, needs no file, and
goes with the process however that ends. Knows sockets; nothing of what is spoken on the port.
"""

import os
import secrets
import socket
from pathlib import Path

from cascade.errors import ConfigError
from cascade.serving.address import ANY_HOST, Address

PREFIX = "cascade-port"
SOCKETS = Path("/proc/net/unix")
"""All sockets of the network namespace; an abstract one stands there with an @ before its name."""


class PortClaim:
    """One router's claim to an address, from `open` to `close`. Claims nothing where there is no abstract namespace.

    Args:
        address: where its routers listen.
        ladder: name of the ladder.
    """

    def __init__(self, address: Address, ladder: str) -> None:
        self._address = address
        self._ladder = ladder
        self._note: socket.socket | None = None

    async def open(self) -> None:
        """Claim the address, before it is listened on.

        Raises:
            ConfigError: routers of another ladder listen there.
        """
        if not SOCKETS.is_file():
            return
        # The note first and then the look: of two that come at the same time at least one sees the other.
        note = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        host, port = self._address
        note.bind(f"\0{PREFIX}/{port}/{host}/{self._ladder}/{os.getpid()}-{secrets.token_hex(4)}")
        for other_host, ladder in claims(port):
            if ladder != self._ladder and (host == other_host or ANY_HOST & {host, other_host}):
                note.close()
                raise ConfigError(
                    f"cannot listen on {self._address}: the routers of ladder {ladder!r} do; each ladder on a machine "
                    "needs a port of its own"
                )
        self._note = note

    async def close(self) -> None:
        """Give it up."""
        if self._note is not None:
            self._note.close()


def claims(port: int) -> list[tuple[str, str]]:
    """Host and ladder of every claim to a port."""
    found = []
    for line in SOCKETS.read_text(errors="replace").splitlines():
        _, at, name = line.partition(f" @{PREFIX}/{port}/")
        if at and name.count("/") == 2:
            host, ladder, _ = name.split("/")
            found.append((host, ladder))
    return found
