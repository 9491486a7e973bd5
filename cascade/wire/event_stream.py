"""The form of an event stream (``text/event-stream``, WHATWG HTML, section 9.2), as a server writes it. Knows bytes only.

An event here is one ``data`` line that holds one JSON document, which has no line breaks of its own. Events have neither
names nor ids: a client tells an answer from an error by the member ``error``, and a stream cannot be taken up again.
"""

from typing import Final

MEDIA_TYPE: Final = b"text/event-stream"

PING: Final = b": ping\n\n"
"""A comment, which clients skip: it keeps proxies from taking a quiet stream for a dead one."""


def event(document: bytes) -> bytes:
    """One event.

    Args:
        document: JSON without line breaks, as encoders make it unless they are told to make it pretty.
    """
    return b"data: %b\n\n" % document


def stream_headers(wait_s: int | None = None) -> list[tuple[bytes, bytes]]:
    """Headers of a stream: for clients and caches not to keep it, for proxies to pass each event on at once.

    Args:
        wait_s: the ``Prefer: wait`` that was honoured, None if there was none.
    """
    headers = [
        (b"content-type", MEDIA_TYPE),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    if wait_s is not None:
        headers.append((b"preference-applied", b"wait=%d" % wait_s))
    return headers


def prefers_event_stream(accept: bytes) -> bool:
    """Whether an ``Accept`` header (RFC 9110, section 12.5.1) wants an event stream rather than JSON.

    It must name the event stream, and JSON, where it is named too, with a lower quality: a client that takes both alike gets
    the whole answer. Wildcards speak for JSON's side only.

    Args:
        accept: the header's value; what cannot be read of it counts as not there.
    """
    stream = json = 0.0
    for part in accept.lower().split(b","):
        name, _, rest = part.partition(b";")
        name = name.strip()
        if name == MEDIA_TYPE:
            stream = max(stream, _quality(rest))
        elif name == b"application/json":
            json = max(json, _quality(rest))
    return stream > json


def _quality(parameters: bytes) -> float:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
