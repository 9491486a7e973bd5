"""HTTP connections that clients cannot hold for nothing: bounds on headers, on waiting for them, and on waiting to be read.

Knows uvicorn's protocol and sockets; nothing of routes, keys or policies. uvicorn leaves these to a proxy in front, and a
router that listens itself has none. No request that comes whole and is read at once costs a timer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cascade.errors import CascadeError, HeadersTooLarge, TooSlow
from cascade.spec_sections import LimitsSpec
from cascade.wire.problem import problem

FIELD_OVERHEAD = 4
"""Bytes of a header line beside its name and its value."""
MOST_DISCARDED = 8 << 20
"""Bytes of a body that are read and thrown away after its request was refused. To close at once would reset the connection,
and the client might never read why."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        limits: what a client may ask of it.
        given: what uvicorn gives a protocol.
    """

    def __init__(self, limits: LimitsSpec, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._in_head = True
        self._head_bytes = 0
        self._too_large = False
        self._discarded = 0
        self._unsent = 0
        self._patience: asyncio.TimerHandle | None = None  # with what has begun to come and must be whole
        self._stall: asyncio.TimerHandle | None = None  # with a client that takes nothing

    # -- what comes ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has connected: its first head must come in time."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(self._limits.head_s, self._waited_enough)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._end_patience()
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        if self._too_large:
            self._refuse(self._headers_too_large())
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_header_bytes:
                self._refuse(self._headers_too_large())
            elif self._patience is None:
                self._patience = self.loop.call_later(self._limits.head_s, self._waited_enough)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes, self._discarded = True, 0, 0

    def on_headers_complete(self) -> None:
        """A head is there."""
        self._in_head = False
        self._end_patience()
        size = len(self.url) + sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in self.headers])
        if size > self._limits.max_header_bytes:
            self._too_large = True
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body has come, perhaps of a request that has been answered already."""
        if self._too_large:
            return
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MOST_DISCARDED:
                self.transport.abort()
            elif self._patience is None:
                self._patience = self.loop.call_later(self._limits.head_s, self.transport.abort)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body is there."""
        if self._too_large:
            return
        self._end_patience()
        super().on_message_complete()

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"request line and headers may have at most {self._limits.max_header_bytes} bytes together")

    def _waited_enough(self) -> None:
        self._patience = None
        if self._head_bytes:
            self._refuse(TooSlow(f"the headers must come within {self._limits.head_s:g} s"))
        else:
            self.transport.close()  # it has asked nothing

    def _refuse(self, error: CascadeError) -> None:
        """Answer what is no request yet, and hang up."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer in the middle of another one would be read as a part of it
            return
        reply = problem(error)
        head = b"".join([b"%b: %b\r\n" % header for header in reply.headers])
        self.transport.write(STATUS_LINE[reply.status] + head + b"\r\n" + reply.body)
        self.transport.close()

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    # -- what goes -----------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self._limits.write_s, self._stalled)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._end_stall()
        super().resume_writing()

    def _stalled(self) -> None:
        """Time is up for a client to take something of what waits for it."""
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._stall = self.loop.call_later(self._limits.write_s, self._stalled)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has been asked for long; a close would wait for a client that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()
