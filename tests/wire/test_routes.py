"""Methods and paths to routes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import thorough

from cascade.errors import MethodNotAllowed, UnknownRoute
from cascade.wire.routes import Route, RouteKind, parse_route

GET_ROUTES = [
    ("/", Route(RouteKind.LIVENESS)),
    ("", Route(RouteKind.LIVENESS)),
    ("/v2", Route(RouteKind.SERVER_METADATA)),
    ("/v2/", Route(RouteKind.SERVER_METADATA)),
    ("/v2?verbose=1", Route(RouteKind.SERVER_METADATA)),
    ("/v2/health/live", Route(RouteKind.SERVER_LIVE)),
    ("/v2/health/ready", Route(RouteKind.SERVER_READY)),
    ("/v2/models", Route(RouteKind.MODEL_LIST)),
    ("/v2/models/", Route(RouteKind.MODEL_LIST)),
    ("/v2/models/stats", Route(RouteKind.SERVER_STATISTICS)),
    ("/status", Route(RouteKind.STATUS_PAGE)),
    ("/status/", Route(RouteKind.STATUS_PAGE)),
    ("/status/figures", Route(RouteKind.STATUS_FIGURES)),
    ("/v2/models/m", Route(RouteKind.MODEL_METADATA, "m")),
    ("/v2/models/m/", Route(RouteKind.MODEL_METADATA, "m")),
    ("/v2/models/m/versions/1", Route(RouteKind.MODEL_METADATA, "m", "1")),
    ("/v2/models/m/ready", Route(RouteKind.MODEL_READY, "m")),
    ("/v2/models/m/versions/1/ready", Route(RouteKind.MODEL_READY, "m", "1")),
    ("/v2/models/m/config", Route(RouteKind.MODEL_CONFIG, "m")),
    ("/v2/models/m/versions/1/config", Route(RouteKind.MODEL_CONFIG, "m", "1")),
    ("/v2/models/m/stats", Route(RouteKind.MODEL_STATISTICS, "m")),
    ("/v2/models/m/versions/1/stats", Route(RouteKind.MODEL_STATISTICS, "m", "1")),
    ("/v2/models/m/explain", Route(RouteKind.MODEL_EXPLAIN, "m")),
    ("/v2/models/m/explain/", Route(RouteKind.MODEL_EXPLAIN, "m")),
    ("/v2/models/m/explain/42", Route(RouteKind.MODEL_EXPLAIN, "m", None, "42")),
    ("/v2/models/m/versions/1/explain/a%2Fb", Route(RouteKind.MODEL_EXPLAIN, "m", "1", "a/b")),
    ("/v2/models/org%2Fmodel%20a/ready", Route(RouteKind.MODEL_READY, "org/model a")),
    ("/v2/models/%C3%BC/versions/v%2F2", Route(RouteKind.MODEL_METADATA, "ü", "v/2")),
    ("/v2/models/versions", Route(RouteKind.MODEL_METADATA, "versions")),
    ("/v2/models/stats/stats", Route(RouteKind.MODEL_STATISTICS, "stats")),
]
POST_ROUTES = [
    ("/v2/models/m/infer", Route(RouteKind.INFER, "m")),
    ("/v2/models/m/versions/1/infer", Route(RouteKind.INFER, "m", "1")),
    ("/v2/models/m/infer_stream", Route(RouteKind.INFER_STREAM, "m")),
    ("/v2/models/m/versions/1/infer_stream", Route(RouteKind.INFER_STREAM, "m", "1")),
    ("/v2/repository/index", Route(RouteKind.REPOSITORY_INDEX)),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("path", "route"), GET_ROUTES)
def test_documents_are_read_with_get_or_head(method, path, route):
    assert parse_route(method, path) == route


@pytest.mark.parametrize(("path", "route"), POST_ROUTES)
def test_work_is_posted(path, route):
    assert parse_route("POST", path) == route


@pytest.mark.parametrize("method", ["POST", "PUT", "get", ""])
@pytest.mark.parametrize(("path", "route"), GET_ROUTES)
def test_a_document_takes_no_other_method(method, path, route):
    with pytest.raises(MethodNotAllowed, match="takes GET or HEAD, got") as caught:
        parse_route(method, path)
    assert caught.value.allowed == ("GET", "HEAD")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize(("path", "route"), POST_ROUTES)
def test_work_takes_no_other_method(method, path, route):
    with pytest.raises(MethodNotAllowed) as caught:
        parse_route(method, path)
    assert caught.value.allowed == ("POST",)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/V2",
        "/v2/health",
        "/v2/health/",
        "/v2//",
        "/v2/models//ready",
        "/v2/models/m/versions",
        "/v2/models/m/versions/",
        "/v2/models/m/versions//infer",
        "/v2/models/m/versions/1/versions/2",
        "/v2/models/m/unload",
        "/v2/models/m/ready/now",
        "/v2%2Fmodels/m",
        "/v2/repository/models/m/load",
        "/" + "x" * 9000,
    ],
)
def test_any_other_path_is_unknown(path):
    with pytest.raises(UnknownRoute, match="there is nothing at") as caught:
        parse_route("GET", path)
    assert len(caught.value.detail) < 200


@thorough
@given(
    st.text(max_size=4),
    st.lists(st.sampled_from(["v2", "models", "m", "versions", "1", "infer", "", "%", "%ff", "?", "\x00"])).map("/".join),
)
def test_any_path_gives_a_route_or_an_error_with_a_status(method, path):
    for attempt in ("GET", "POST", method):
        try:
            route = parse_route(attempt, "/" + path)
        except (UnknownRoute, MethodNotAllowed):
            continue
        assert isinstance(route, Route)
