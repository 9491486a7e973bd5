"""Who may ask what: the key in a request's headers, and which routes are open, need a key, or need an operator's.

Knows header fields and kinds of routes; no file, no clock, and no key that is valid. A kind of route that nobody has put
into a list here is for operators alone.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from cascade.errors import Forbidden, Unauthorized
from cascade.wire.grant import Grant
from cascade.wire.routes import RouteKind


class Access(StrEnum):
    """What it takes to be answered, where keys are asked for."""

    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


_OPEN: Final = frozenset(
    {
        RouteKind.LIVENESS,
        RouteKind.SERVER_LIVE,
        RouteKind.SERVER_READY,
        RouteKind.MODEL_READY,
        RouteKind.STATUS_PAGE,
    }
)
"""Health checks: whoever watches a server needs no key, and learns nothing but that it is there. The status page is a
file of the package, the same everywhere; its figures are a route of their own, and its script asks for the key they need."""
_KEY: Final = frozenset(
    {
        RouteKind.SERVER_METADATA,
        RouteKind.MODEL_LIST,
        RouteKind.REPOSITORY_INDEX,
        RouteKind.MODEL_METADATA,
        RouteKind.MODEL_CONFIG,
        RouteKind.INFER,
        RouteKind.INFER_STREAM,
    }
)


def access_of(kind: RouteKind) -> Access:
    """What it takes to be answered on a route of this kind."""
    if kind in _OPEN:
        return Access.OPEN
    return Access.KEY if kind in _KEY else Access.ADMIN


def allowed(kind: RouteKind, grant: Grant | None) -> None:
    """Raise unless whoever holds this may ask for a route of this kind.

    Args:
        kind: of the route.
        grant: what the request's key gives; None for a request without one.

    Raises:
        Unauthorized: a key is needed.
        Forbidden: an operator's key is needed.
    """
    access = access_of(kind)
    if access is Access.OPEN:
        return
    if grant is None:
        raise Unauthorized("a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
    if access is Access.ADMIN and not grant.admin:
        raise Forbidden("this is for operators: the key must have been made with --admin")


def key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request presents.

    Args:
        headers: lower-case names and values, as ASGI gives them.

    Returns:
        The key as it came; None if there is none, empty (which is never a key) if there are several that differ.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, given = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        elif name == b"x-api-key":
            given = value
        else:
            continue
        given = given.strip()
        if found is not None and given != found:
            return b""
        found = given
    return found
