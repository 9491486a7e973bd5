"""What gRPC carries beside messages: metadata in, status codes and trailing metadata out.

Knows names and the tree of errors; nothing of channels, clocks or stages. Metadata means what HTTP headers of the same names
mean. What went wrong inside is never shown.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cascade.errors import (
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    StageFailed,
    TooManyRequests,
    Unauthorized,
    UnknownModel,
)
from cascade.wire.http import HeaderFacts, read_headers
from cascade.wire.problem import shown

_CODES: Final = {
    PayloadTooLarge: "RESOURCE_EXHAUSTED",  # as gRPC itself has it for a message over its own limit
    BadRequest: "INVALID_ARGUMENT",
    Unauthorized: "UNAUTHENTICATED",
    Forbidden: "PERMISSION_DENIED",
    TooManyRequests: "RESOURCE_EXHAUSTED",
    UnknownModel: "NOT_FOUND",
    NotReady: "UNAVAILABLE",
    Overloaded: "UNAVAILABLE",  # like 503: the server's capacity, not this client's quota
    StageFailed: "UNAVAILABLE",  # like 502: the same request may be answered when it is sent again
    DeadlineExceeded: "DEADLINE_EXCEEDED",
}
"""Code of each error; subclasses before their bases. Any other is INTERNAL."""

_MAX_DETAILS_CHARS: Final = 600
"""Longest sentence: it travels in the trailers, of which clients take 8 KB in all, each character as up to twelve."""

_TIMEOUT_LIMIT: Final = 10**8
"""A timeout on the wire has at most eight digits."""


class Status(NamedTuple):
    """A status that is not OK.

    Attributes:
        code: name of the gRPC status code.
        details: one sentence for a person.
        metadata: trailing metadata: the stable code of the error as ``cascade-code``; for a request that was turned away
            also when to come back, as ``retry-after`` in seconds and as gRPC's own push-back for clients that retry by
            themselves.
    """

    code: str
    details: str
    metadata: tuple[tuple[str, str], ...]


def status_of(error: Exception) -> Status:
    """Makes the status that tells a client of an error.

    Args:
        error: what was raised.
    """
    error, detail = shown(error)
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "INTERNAL")
    metadata = [("cascade-code", error.code)]
    if isinstance(error, Overloaded | TooManyRequests):
        metadata.append(("retry-after", str(error.retry_after_s)))
        metadata.append(("grpc-retry-pushback-ms", str(1000 * error.retry_after_s)))
    return Status(code, f"{error.title}: {detail}"[:_MAX_DETAILS_CHARS], tuple(metadata))


def read_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> HeaderFacts:
    """Collects what cascade reads from a call's metadata, as from the headers of an HTTP request.

    Args:
        metadata: names and values; binary ones are not looked at.

    Returns:
        The facts. Never fails, whatever the values are.
    """
    return read_headers(fields_of(metadata))


def fields_of(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """A call's metadata as the fields of an HTTP request's headers; binary ones are left out."""
    return (
        (name.encode("ascii", "replace"), value.encode("utf-8", "replace"))
        for name, value in metadata
        if isinstance(value, str)
    )


def timeout_entry(remaining_s: float) -> tuple[str, str]:
    """The metadata entry that says how long a call may still take, as the protocol itself has it on the wire.

    gRPC takes that entry out of the metadata and makes a deadline of it. On the way it rounds up to whole milliseconds and
    to 1 %, so that much is taken off again: an answer that comes in the last hundredth would find nobody waiting.

    Args:
        remaining_s: what gRPC says is left, seconds.

    Returns:
        Name and value, at least a microsecond.
    """
    micros = max(1, int(1e6 * (remaining_s - max(0.001, remaining_s / 100))))
    for unit, size in (("u", 1), ("m", 1_000), ("S", 1_000_000)):
        if micros // size < _TIMEOUT_LIMIT:
            return "grpc-timeout", f"{micros // size}{unit}"
    return "grpc-timeout", f"{_TIMEOUT_LIMIT - 1}S"
