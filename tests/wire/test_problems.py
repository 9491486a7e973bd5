"""Errors as answers."""

import orjson
import pytest

from cascade import errors
from cascade.wire.problem import problem


def test_an_error_is_a_problem_document_that_triton_clients_read_too():
    reply = problem(errors.BadRequest("input 'x': expected 3, got 4"), "ab c/7")
    assert reply.status == 400
    assert dict(reply.headers) == {
        b"content-type": b"application/problem+json",
        b"content-length": str(len(reply.body)).encode(),
    }
    assert orjson.loads(reply.body) == {
        "type": "urn:cascade:error:bad_request",
        "title": "Bad request",
        "status": 400,
        "detail": "input 'x': expected 3, got 4",
        "instance": "urn:request:ab%20c%2F7",
        "error": "Bad request: input 'x': expected 3, got 4",
        "code": "bad_request",
    }


def test_a_request_without_an_id_has_no_instance():
    assert "instance" not in orjson.loads(problem(errors.NotReady("loading")).body)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.BadRequest("d"), 400, "bad_request"),
        (errors.PayloadTooLarge("d"), 413, "payload_too_large"),
        (errors.UnsupportedMediaType("d"), 415, "unsupported_media_type"),
        (errors.UnknownModel("d"), 404, "unknown_model"),
        (errors.UnknownRoute("d"), 404, "unknown_route"),
        (errors.UnknownRequest("d"), 404, "unknown_request"),
        (errors.MethodNotAllowed("d", ("GET",)), 405, "method_not_allowed"),
        (errors.NotReady("d"), 503, "not_ready"),
        (errors.Overloaded("d", 1), 503, "overloaded"),
        (errors.DeadlineExceeded("d"), 504, "deadline_exceeded"),
        (errors.StageFailed("d"), 502, "stage_failed"),
        (errors.CascadeError("d"), 500, "internal"),
    ],
)
def test_every_error_keeps_its_status_and_code(error, status, code):
    reply = problem(error)
    document = orjson.loads(reply.body)
    assert reply.status == document["status"] == status
    assert document["code"] == code
    assert document["detail"] == "d"


def test_a_shed_request_is_told_when_to_come_back():
    assert dict(problem(errors.Overloaded("busy", retry_after_s=3)).headers)[b"retry-after"] == b"3"


def test_a_wrong_method_is_told_the_right_ones():
    assert dict(problem(errors.MethodNotAllowed("no", ("GET", "HEAD"))).headers)[b"allow"] == b"GET, HEAD"


@pytest.mark.parametrize("error", [ValueError("secret"), errors.SpecError("secret"), KeyError("secret")])
def test_what_went_wrong_inside_is_not_shown(error):
    reply = problem(error)
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert orjson.loads(reply.body)["code"] == "internal"


def test_a_detail_that_is_no_text_does_not_break_the_answer():
    document = orjson.loads(problem(errors.BadRequest("got '\udcff'"), "\udcff").body)
    assert document["detail"] == "got '?'"
    assert document["instance"] == "urn:request:%3F"
