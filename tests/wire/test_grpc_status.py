"""What a client of gRPC sees of an error, and what the server reads of a call's metadata."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire_cases import thorough

from cascade.errors import (
    BadRequest,
    CalibrationMismatch,
    CascadeError,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    StageFailed,
    UnknownModel,
    UnsupportedMediaType,
)
from cascade.wire.grpc_status import read_metadata, status_of, timeout_entry
from cascade.wire.http import HeaderFacts, read_headers


@pytest.mark.parametrize(
    ("error", "code", "stable"),
    [
        (BadRequest("no"), "INVALID_ARGUMENT", "bad_request"),
        (UnsupportedMediaType("no"), "INVALID_ARGUMENT", "unsupported_media_type"),
        (PayloadTooLarge("no"), "RESOURCE_EXHAUSTED", "payload_too_large"),
        (UnknownModel("no"), "NOT_FOUND", "unknown_model"),
        (NotReady("no"), "UNAVAILABLE", "not_ready"),
        (StageFailed("no"), "UNAVAILABLE", "stage_failed"),
        (DeadlineExceeded("no"), "DEADLINE_EXCEEDED", "deadline_exceeded"),
        (CascadeError("no"), "INTERNAL", "internal"),
    ],
)
def test_every_error_has_a_code_a_sentence_and_a_stable_name(error, code, stable):
    assert status_of(error) == (code, f"{error.title}: no", (("cascade-code", stable),))


def test_a_request_that_was_turned_away_hears_when_to_come_back():
    status = status_of(Overloaded("too late", retry_after_s=3))
    assert status.code == "UNAVAILABLE"
    assert dict(status.metadata) == {"cascade-code": "overloaded", "retry-after": "3", "grpc-retry-pushback-ms": "3000"}


@pytest.mark.parametrize("error", [RuntimeError("the secret"), CalibrationMismatch("the secret")])
def test_what_went_wrong_inside_is_not_shown(error):
    status = status_of(error)
    assert status.code == "INTERNAL"
    assert "secret" not in status.details


def test_a_sentence_fits_the_trailers_and_is_text():
    assert len(status_of(BadRequest("x" * 10_000)).details) == 600
    status_of(BadRequest("\udcff")).details.encode()


def test_metadata_says_what_headers_of_the_same_names_say():
    pairs = {"cascade-tenant": "acme", "priority": "u=1, i", "x-envoy-expected-rq-timeout-ms": "250", "x-request-id": "r"}
    facts = read_metadata(pairs.items())
    assert facts == read_headers([(name.encode(), value.encode()) for name, value in pairs.items()])
    assert (facts.tenant, facts.urgency, facts.timeout_s, facts.request_id) == ("acme", 1, 0.25, "r")


@thorough
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cascade-tenant", "priority", "grpc-timeout", "prefer", "traceparent", "x-bin"]) | st.text(),
            st.text() | st.binary(),
        )
    )
)
@example([("cascade-tenant", "\udcff")])
def test_any_metadata_is_read(pairs):
    assert isinstance(read_metadata(pairs), HeaderFacts)


@thorough
@given(st.floats(0, 1e8))
@example(0.0)
@example(1e-6)
def test_a_calls_deadline_comes_back_as_a_time_limit_that_ends_before_it(remaining_s):
    limit_s = read_metadata([timeout_entry(remaining_s)]).timeout_s
    assert limit_s is not None
    assert limit_s > 0
    if remaining_s > 0.002:
        # gRPC has rounded up by as much as 1 ms or 1 %, whichever is more.
        assert limit_s <= min(remaining_s - 0.001, remaining_s / 1.01)
        assert limit_s >= 0.97 * remaining_s - 0.002
