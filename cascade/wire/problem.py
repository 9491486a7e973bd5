"""Errors as HTTP answers: application/problem+json (RFC 9457) that Open Inference Protocol clients read too.

Knows the tree of errors and how each looks on the wire. What went wrong inside is never shown: an exception that nobody
raised on purpose, or one meant for the operator, becomes the same fixed answer.
"""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson

from cascade.errors import (
    CascadeError,
    ConfigError,
    HeadersTooLarge,
    MethodNotAllowed,
    Overloaded,
    TooManyRequests,
    TooSlow,
    Unauthorized,
)
from cascade.wire.http import Headers

_INTERNAL_DETAIL: Final = "the server could not handle the request; its log says why"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer.

    Attributes:
        status: the status code.
        headers: names and values for ASGI.
        body: the bytes.
    """

    status: int
    headers: Headers
    body: bytes


def shown(error: Exception) -> tuple[CascadeError, str]:
    """What a client sees of an error: one that was raised on purpose and for it, or one that tells nothing; its sentence."""
    if not isinstance(error, CascadeError) or isinstance(error, ConfigError):
        error = CascadeError(_INTERNAL_DETAIL)
    # A detail may quote bytes that are no text; what carries it to the client must not fail on them.
    return error, error.detail.encode("utf-8", "replace").decode()


def problem(error: Exception, request_id: str | None = None) -> Reply:
    """Makes the answer that tells a client of an error.

    The body has the members of RFC 9457, plus ``error``, the sentence that OIP clients show, and ``code``, which stays the
    same when sentences change.

    Args:
        error: what was raised.
        request_id: the client's id for the request, if it is known.

    Returns:
        The answer, with ``Retry-After`` for a shed request or too many, ``Allow`` for a wrong method, ``WWW-Authenticate``
        where a key is wanted, and ``Connection: close`` where the rest of the request is not waited for.
    """
    error, detail = shown(error)
    document: dict[str, Any] = {
        "type": f"urn:cascade:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": detail,
        "error": f"{error.title}: {detail}",
        "code": error.code,
    }
    if request_id is not None:
        document["instance"] = f"urn:request:{quote(request_id, safe='', errors='replace')}"
    body = orjson.dumps(document)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, Overloaded | TooManyRequests):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b'Bearer realm="cascade"'))
    if isinstance(error, TooSlow | HeadersTooLarge):
        headers.append((b"connection", b"close"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode("ascii")))
    return Reply(error.status, headers, body)
