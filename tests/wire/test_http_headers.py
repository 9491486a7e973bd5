"""What a request's headers say, and the headers of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import thorough

from cascade.errors import BadRequest
from cascade.wire.http import (
    HeaderFacts,
    Provenance,
    TraceParent,
    answer_headers,
    parse_json_length,
    priority_of,
    read_headers,
    time_limit_s,
)

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00f067aa0ba902b7"


def read(**headers: bytes) -> HeaderFacts:
    return read_headers([(name.replace("_", "-").encode(), value) for name, value in headers.items()])


def test_a_request_that_says_nothing_has_no_facts():
    assert read_headers([]) == HeaderFacts()
    assert read(host=b"x", user_agent=b"y") == HeaderFacts()


def test_the_fields_that_frame_the_body_are_collected():
    facts = read(
        inference_header_content_length=b"17", content_length=b"801", content_encoding=b"gzip", accept_encoding=b"br"
    )
    assert facts.inference_header_length == b"17"
    assert facts.content_length == 801
    assert facts.content_encoding == "gzip"
    assert facts.accept_encoding == "br"
    assert read(content_length=b"-1").content_length is None


def test_a_field_given_twice_reads_as_one_list():
    facts = read_headers([(b"accept-encoding", b"br"), (b"accept-encoding", b"gzip")])
    assert facts.accept_encoding == "br, gzip"
    with pytest.raises(BadRequest):
        parse_json_length(read_headers([(b"inference-header-content-length", b"1")] * 2).inference_header_length)


class TestJsonLength:
    @pytest.mark.parametrize(("value", "length"), [(None, None), (b"0", 0), (b" 17 ", 17), (b"9" * 18, int("9" * 18))])
    def test_whole_numbers_are_taken(self, value, length):
        assert parse_json_length(value) == length

    @pytest.mark.parametrize("value", [b"", b"-1", b"+1", b"1.0", b"0x1", b"1_0", b"\xb2", b"1, 1", b"9" * 5000])
    def test_anything_else_is_refused(self, value):
        with pytest.raises(BadRequest, match=r"^inference-header-content-length must be a whole number of bytes, got '"):
            parse_json_length(value)


class TestTimeLimits:
    @pytest.mark.parametrize(
        ("name", "value", "limit_s"),
        [
            ("x_request_timeout_seconds", b"0.3", 0.3),
            ("x_request_timeout_seconds", b"1e1", 10.0),
            ("x_envoy_expected_rq_timeout_ms", b"1500", 1.5),
            ("grpc_timeout", b"2H", 7200.0),
            ("grpc_timeout", b"3M", 180.0),
            ("grpc_timeout", b"4S", 4.0),
            ("grpc_timeout", b"100m", 0.1),
            ("grpc_timeout", b"5000u", 0.005),
            ("grpc_timeout", b"99999999n", 0.099999999),
            ("x_stainless_read_timeout", b"600", 600.0),
            ("prefer", b"wait=10", 10.0),
        ],
    )
    def test_each_source_is_read_in_its_own_unit(self, name, value, limit_s):
        assert read(**{name: value}).timeout_s == pytest.approx(limit_s)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x_request_timeout_seconds", b"0"),
            ("x_request_timeout_seconds", b"-1"),
            ("x_request_timeout_seconds", b"soon"),
            ("x_request_timeout_seconds", b"nan"),
            ("x_request_timeout_seconds", b"inf"),
            ("x_request_timeout_seconds", b"\xff"),
            ("x_request_timeout_seconds", b""),
            ("x_envoy_expected_rq_timeout_ms", b"0"),
            ("x_envoy_expected_rq_timeout_ms", b"1.5"),
            ("grpc_timeout", b"1"),
            ("grpc_timeout", b"S"),
            ("grpc_timeout", b""),
            ("grpc_timeout", b"1s"),
            ("grpc_timeout", b"0S"),
            ("grpc_timeout", b"0x"),
            ("grpc_timeout", b"123456789S"),
            ("prefer", b"wait=0"),
            ("prefer", b"wait=-1"),
            ("prefer", b"wait"),
            ("prefer", b"respond-async"),
        ],
    )
    def test_a_limit_that_is_off_or_malformed_does_not_count(self, name, value):
        assert read(**{name: value}).timeout_s is None

    def test_the_shortest_counts(self):
        facts = read(x_request_timeout_seconds=b"3", grpc_timeout=b"2S", prefer=b"wait=4", x_stainless_read_timeout=b"0")
        assert facts.timeout_s == 2.0
        assert facts.wait_s == 4

    @pytest.mark.parametrize("value", [b"wait=4", b'respond-async, Wait="4"; x=1', b"wait = 4", b"wait=4, wait=9"])
    def test_a_preference_may_be_written_in_many_ways(self, value):
        assert read(prefer=value).wait_s == 4

    @pytest.mark.parametrize(
        ("header", "requested_s", "limit_s"),
        [(None, None, 1.0), (None, 0.5, 0.5), (0.2, 0.5, 0.2), (0.5, 0.2, 0.2), (0.5, None, 0.5), (99.0, None, 10.0)],
    )
    def test_the_parameter_and_the_headers_are_held_against_the_servers_limits(self, header, requested_s, limit_s):
        assert time_limit_s(HeaderFacts(timeout_s=header), requested_s, default_s=1.0, max_s=10.0) == limit_s

    def test_the_default_does_not_pass_the_most_that_the_server_grants(self):
        assert time_limit_s(HeaderFacts(), None, default_s=60.0, max_s=10.0) == 10.0


class TestPriority:
    @pytest.mark.parametrize(
        ("value", "urgency", "incremental"),
        [
            (b"u=0", 0, False),
            (b"u=7, i", 7, True),
            (b"i", None, True),
            (b"i=?1,u=2", 2, True),
            (b"i=?0", None, False),
            (b"u=2;x=1 , i;y", 2, True),
            (b"u=2, u=5", 5, False),
            (b"u=2, u=9", 2, False),
            (b"u=8", None, False),
            (b"u=-1", None, False),
            (b"u", None, False),
            (b"u=2.5", None, False),
            (b"\xff", None, False),
        ],
    )
    def test_urgency_and_incremental_are_read(self, value, urgency, incremental):
        facts = read(priority=value)
        assert (facts.urgency, facts.incremental) == (urgency, incremental)

    def test_eight_urgencies_are_spread_over_the_classes(self):
        def classes(priorities):
            return [priority_of(HeaderFacts(urgency=u), None, priorities, default=1) for u in range(8)]

        assert classes(4) == [1, 1, 2, 2, 3, 3, 4, 4]
        assert classes(8) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert classes(1) == [1] * 8
        assert classes(3) == [1, 1, 1, 2, 2, 2, 3, 3]

    def test_the_parameter_is_heard_before_the_header_and_the_header_before_the_default(self):
        urgent = HeaderFacts(urgency=0)
        assert priority_of(urgent, 4, 4, default=2) == 4
        assert priority_of(urgent, None, 4, default=2) == 1
        assert priority_of(HeaderFacts(), None, 4, default=2) == 2


class TestIdentity:
    @pytest.mark.parametrize(
        ("value", "request_id"),
        [(b"7b9c-1", "7b9c-1"), (b" a b ", "a b"), (b"", None), (b"a\tb", None), (b"\xe4", None), (b"x" * 201, None)],
    )
    def test_a_request_id_and_a_tenant_are_short_printable_ascii(self, value, request_id):
        assert read(x_request_id=value).request_id == request_id
        assert read(cascade_tenant=value).tenant == request_id

    @pytest.mark.parametrize(("value", "asked"), [(b"?1", True), (b" ?1 ", True), (b"?0", False), (b"1", False)])
    def test_an_explanation_is_asked_for_by_a_structured_boolean(self, value, asked):
        assert read(cascade_explain=value).explain is asked
        assert read().explain is False

    @pytest.mark.parametrize(
        ("value", "sampled"),
        [
            (b"00-" + TRACE + b"-" + PARENT + b"-01", True),
            (b"00-" + TRACE + b"-" + PARENT + b"-00", False),
            (b" cc-" + TRACE + b"-" + PARENT + b"-03-what-the-future-adds", True),
        ],
    )
    def test_a_trace_context_is_read(self, value, sampled):
        assert read(traceparent=value).trace == TraceParent(TRACE.decode(), PARENT.decode(), sampled)

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"00",
            b"00-" + TRACE + b"-" + PARENT,
            b"00-" + TRACE + b"-" + PARENT + b"-01-more",
            b"ff-" + TRACE + b"-" + PARENT + b"-01",
            b"00-" + TRACE.upper() + b"-" + PARENT + b"-01",
            b"00-" + b"0" * 32 + b"-" + PARENT + b"-01",
            b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
            b"00-" + TRACE[:-1] + b"-" + PARENT + b"-01",
            b"00-" + TRACE + b"-" + PARENT + b"-0g",
        ],
    )
    def test_a_malformed_trace_context_is_ignored(self, value):
        assert read(traceparent=value).trace is None


@thorough
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"inference-header-content-length",
                    b"content-length",
                    b"content-encoding",
                    b"accept-encoding",
                    b"x-request-timeout-seconds",
                    b"x-envoy-expected-rq-timeout-ms",
                    b"grpc-timeout",
                    b"x-stainless-read-timeout",
                    b"prefer",
                    b"priority",
                    b"x-request-id",
                    b"traceparent",
                    b"cascade-tenant",
                ]
            ),
            st.binary(max_size=60) | st.text('0123456789.,-=;?ui waitnmSHM"', max_size=20).map(str.encode),
        ),
        max_size=8,
    )
)
def test_no_header_makes_the_server_stumble(headers):
    facts = read_headers(headers)
    assert facts.timeout_s is None or facts.timeout_s > 0
    assert 0 < time_limit_s(facts, None, 1.0, 10.0) <= 10
    assert 1 <= priority_of(facts, None, 4, 2) <= 4


class TestAnswers:
    def test_a_document_is_json(self):
        assert answer_headers(12, None) == [(b"content-type", b"application/json"), (b"content-length", b"12")]

    def test_an_answer_says_where_it_came_from_and_what_it_took(self):
        provenance = Provenance("small", "confident", False, (("queue", 0.0013), ("small", 0.0041)))
        headers = dict(answer_headers(300, 200, provenance, content_encoding="gzip", wait_s=10))
        assert headers == {
            b"content-type": b"application/octet-stream",
            b"content-length": b"300",
            b"inference-header-content-length": b"200",
            b"content-encoding": b"gzip",
            b"cascade-stage": b"small",
            b"cascade-exit-reason": b"confident",
            b"cascade-degraded": b"?0",
            b"server-timing": b"queue;dur=1.30, small;dur=4.10",
            b"preference-applied": b"wait=10",
        }

    def test_a_degraded_answer_says_so(self):
        headers = dict(answer_headers(3, None, Provenance("small", "deadline", True)))
        assert headers[b"cascade-degraded"] == b"?1"
        assert b"server-timing" not in headers

    def test_a_name_cannot_forge_a_header(self):
        provenance = Provenance("sm\r\nset-cookie: a", "früh", False, (("a,b;c", 0.001),))
        headers = dict(answer_headers(3, None, provenance))
        assert headers[b"cascade-stage"] == b"sm__set-cookie__a"
        assert headers[b"cascade-exit-reason"] == b"fr_h"
        assert headers[b"server-timing"] == b"a_b_c;dur=1.00"
