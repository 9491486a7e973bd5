"""Event streams on the wire: a parser that follows the standard gets back what was written, and who is sent a stream."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.wire.event_stream import PING, event, prefers_event_stream, stream_headers
from cascade.wire.http import read_headers

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def events_of(stream: bytes) -> list[tuple[str, str]]:
    """Name and data of every event, as WHATWG HTML, section 9.2.6 interprets a stream."""
    found, name, data = [], "", []
    text = stream.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        if not line:
            if data:
                found.append((name or "message", "\n".join(data)))
            name, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
    return found


@given(st.lists(JSON, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_what_is_written_is_read_whatever_stands_in_it(documents, pings):
    written = b"".join(
        (PING if ping else b"") + event(orjson.dumps(each)) for each, ping in zip(documents, pings, strict=False)
    )
    read = events_of(written)
    assert [name for name, _ in read] == ["message"] * len(documents)
    assert [orjson.loads(data) for _, data in read] == [orjson.loads(orjson.dumps(each)) for each in documents]


def test_a_ping_is_no_event():
    assert events_of(PING * 3) == []


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"text/event-stream", True),
        (b"TEXT/Event-Stream", True),
        (b"text/event-stream;q=0.5", True),
        (b"text/event-stream, */*;q=0.1", True),
        (b"text/event-stream, application/json;q=0.9", True),
        (b"application/json;q=0.5, text/event-stream ; q=0.6", True),
        (b"text/event-stream, application/json", False),
        (b"text/event-stream;q=0.8, application/json", False),
        (b"text/event-stream;q=0", False),
        (b"text/event-stream;q=often", False),
        (b"text/event-stream;q=nan", False),
        (b"text/event-streams", False),
        (b"text/*", False),
        (b"*/*", False),
        (b"", False),
    ],
)
def test_a_stream_is_for_who_prefers_it_to_json(accept, wanted):
    assert prefers_event_stream(accept) is wanted
    assert read_headers([(b"accept", accept)]).event_stream is wanted


@given(st.binary(max_size=60))
def test_no_accept_header_is_an_error(accept):
    assert prefers_event_stream(accept) in (True, False)


def test_two_accept_headers_read_as_one():
    assert not read_headers([(b"accept", b"text/event-stream"), (b"accept", b"application/json")]).event_stream
    assert not read_headers([]).event_stream


def test_nobody_keeps_or_holds_up_a_stream():
    assert dict(stream_headers()) == {
        b"content-type": b"text/event-stream",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    }
    assert dict(stream_headers(3))[b"preference-applied"] == b"wait=3"
