"""Content encodings: inflates what a client sent, within a bound, and deflates what it is willing to take.

Knows zlib and two header fields; nothing of what the bytes mean.
"""

import zlib
from typing import Final

from cascade.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from cascade.wire.tensors import Buffer, brief

_GZIP_WINDOW: Final = 31
_ZLIB_WINDOW: Final = 15
_WINDOWS: Final = {"gzip": _GZIP_WINDOW, "x-gzip": _GZIP_WINDOW, "deflate": _ZLIB_WINDOW}
_OFFERED: Final = ("gzip", "deflate")

# Answers are small and wanted soon: the cheapest level gets most of the gain.
_LEVEL: Final = 1

MIN_COMPRESSED_BYTES: Final = 1024
"""Smaller bodies fit one packet anyway and are sent as they are."""


def inflate(body: Buffer, content_encoding: str, max_bytes: int) -> Buffer:
    """Undoes a request's content encoding, never holding more than the limit.

    Args:
        body: the body as it came.
        content_encoding: the header's value; empty and ``identity`` mean none.
        max_bytes: most bytes that the inflated body may have.

    Returns:
        The body itself if it was not encoded, else what it inflates to.

    Raises:
        PayloadTooLarge: the body, or what it inflates to, is longer than ``max_bytes``.
        UnsupportedMediaType: another encoding, or several at once.
        BadRequest: the body is not what its encoding says, is cut short or goes on after its end.
    """
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body may have {max_bytes} bytes, got {len(body)}")
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        raise UnsupportedMediaType(
            f"content-encoding must be one of {', '.join(_OFFERED)} or identity, got {brief(content_encoding)}"
        )
    stream = zlib.decompressobj(window)
    try:
        inflated = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body ({len(body)} bytes) is not valid {encoding}: {error}") from None
    if len(inflated) > max_bytes:
        raise PayloadTooLarge(f"the body may inflate to {max_bytes} bytes, got more")
    if not stream.eof:
        raise BadRequest(f"the {encoding} body is cut short after {len(body)} bytes")
    if stream.unused_data:
        raise BadRequest(f"{len(stream.unused_data)} bytes follow the end of the {encoding} body")
    return inflated


def choose_encoding(accept_encoding: str) -> str | None:
    """Chooses how to encode an answer from what the client prefers (RFC 9110, section 12.5.3).

    Args:
        accept_encoding: the header's value; empty if there was none.

    Returns:
        ``gzip`` or ``deflate``, whichever has the higher weight, gzip on a tie; None to send the body as it is, which is
        also the answer when ``identity`` has a weight above both.
    """
    if not accept_encoding:
        return None
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        coding, _, parameters = item.partition(";")
        weights[coding.strip()] = _weight(parameters)
    rest = weights.get("*", 0.0)
    best = max(_OFFERED, key=lambda coding: weights.get(coding, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def compress(body: bytes, accept_encoding: str, min_bytes: int = MIN_COMPRESSED_BYTES) -> tuple[bytes, str | None]:
    """Encodes an answer if the client takes it and the answer is long enough to gain from it.

    Args:
        body: the answer.
        accept_encoding: the request header's value.
        min_bytes: shorter bodies are left alone.

    Returns:
        The body to send and its content encoding, None if it is the body as given.
    """
    encoding = choose_encoding(accept_encoding) if len(body) >= min_bytes else None
    if encoding is None:
        return body, None
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[encoding])
    return stream.compress(body) + stream.flush(), encoding
