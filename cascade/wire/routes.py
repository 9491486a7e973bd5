"""Which route a method and a path mean. Knows the table of routes, not what answers them or which models exist."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from cascade.errors import MethodNotAllowed, UnknownRoute
from cascade.wire.tensors import brief


class RouteKind(StrEnum):
    """What a client asks for."""

    LIVENESS = "liveness"
    SERVER_METADATA = "server_metadata"
    SERVER_LIVE = "server_live"
    SERVER_READY = "server_ready"
    MODEL_LIST = "model_list"
    SERVER_STATISTICS = "server_statistics"
    STATUS_PAGE = "status_page"
    STATUS_FIGURES = "status_figures"
    REPOSITORY_INDEX = "repository_index"
    MODEL_METADATA = "model_metadata"
    MODEL_READY = "model_ready"
    MODEL_CONFIG = "model_config"
    MODEL_STATISTICS = "model_statistics"
    MODEL_EXPLAIN = "model_explain"
    INFER = "infer"
    INFER_STREAM = "infer_stream"


@dataclass(frozen=True, slots=True)
class Route:
    """A route and the model it names, if any.

    Attributes:
        kind: what is asked for.
        model: the model's name, decoded; None where the route has none.
        version: the version, decoded; None if the path gives none.
        request_id: the request that an explanation is asked of, decoded; None where the route has none.
    """

    kind: RouteKind
    model: str | None = None
    version: str | None = None
    request_id: str | None = None


_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)

_SERVER_ROUTES: Final[Mapping[tuple[str, ...], tuple[RouteKind, tuple[str, ...]]]] = {
    (): (RouteKind.LIVENESS, _GET),
    ("v2",): (RouteKind.SERVER_METADATA, _GET),
    ("v2", "health", "live"): (RouteKind.SERVER_LIVE, _GET),
    ("v2", "health", "ready"): (RouteKind.SERVER_READY, _GET),
    ("v2", "models"): (RouteKind.MODEL_LIST, _GET),
    ("v2", "models", "stats"): (RouteKind.SERVER_STATISTICS, _GET),
    ("status",): (RouteKind.STATUS_PAGE, _GET),
    ("status", "figures"): (RouteKind.STATUS_FIGURES, _GET),
    ("v2", "repository", "index"): (RouteKind.REPOSITORY_INDEX, _POST),
}

_MODEL_ROUTES: Final[Mapping[tuple[str, ...], tuple[RouteKind, tuple[str, ...]]]] = {
    (): (RouteKind.MODEL_METADATA, _GET),
    ("ready",): (RouteKind.MODEL_READY, _GET),
    ("config",): (RouteKind.MODEL_CONFIG, _GET),
    ("stats",): (RouteKind.MODEL_STATISTICS, _GET),
    ("explain",): (RouteKind.MODEL_EXPLAIN, _GET),
    ("infer",): (RouteKind.INFER, _POST),
    ("infer_stream",): (RouteKind.INFER_STREAM, _POST),
}
"""What may follow ``v2/models/{model}[/versions/{version}]``; ``explain`` may be followed by the id of a request."""


def parse_route(method: str, path: str) -> Route:
    """Finds the route of a request.

    The path is taken as it was sent: names are decoded after it is split, so an encoded slash may be part of a name. One
    trailing slash is allowed, and a query is ignored. ``v2/models/stats`` is the statistics of all models, so a model
    called ``stats`` has no metadata route of its own.

    Args:
        method: the HTTP method, upper case.
        path: the path before percent-decoding.

    Returns:
        The route; HEAD gives the route of GET.

    Raises:
        UnknownRoute: no such path.
        MethodNotAllowed: the path exists under other methods.
    """
    segments = tuple(path.partition("?")[0].removeprefix("/").removesuffix("/").split("/"))
    if segments == ("",):
        segments = ()
    found = _SERVER_ROUTES.get(segments)
    model: str | None = None
    version: str | None = None
    request_id: str | None = None
    if found is None and segments[:2] == ("v2", "models"):
        model, rest = segments[2], segments[3:]
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if len(rest) == 2 and rest[0] == "explain":
            request_id, rest = rest[1], rest[:1]
        if model and version != "" and request_id != "":
            found = _MODEL_ROUTES.get(rest)
    if found is None:
        raise UnknownRoute(f"there is nothing at {brief(path)}")
    kind, allowed = found
    if method not in allowed:
        raise MethodNotAllowed(f"{brief(path)} takes {' or '.join(allowed)}, got {brief(method)}", allowed)
    return Route(kind, _decoded(model), _decoded(version), _decoded(request_id))


def _decoded(segment: str | None) -> str | None:
    return unquote(segment) if segment is not None and "%" in segment else segment
