"""Compression of bodies, both ways."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import ordinary

from cascade.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from cascade.wire.encoding import MIN_COMPRESSED_BYTES, choose_encoding, compress, inflate

PACK = {"gzip": gzip.compress, "x-gzip": gzip.compress, " GZip ": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_body_is_inflated(encoding):
    assert inflate(PACK[encoding](b"hello" * 100), encoding, 500) == b"hello" * 100
    assert inflate(memoryview(PACK[encoding](b"")), encoding, 0) == b""


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_a_plain_body_is_not_touched(encoding):
    body = b"hello"
    assert inflate(body, encoding, 5) is body
    with pytest.raises(PayloadTooLarge, match="the body may have 4 bytes, got 5"):
        inflate(body, encoding, 4)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_stopped_at_the_limit(encoding):
    bomb = PACK[encoding](bytes(20_000_000))
    with pytest.raises(PayloadTooLarge, match="the body may inflate to 1000 bytes, got more"):
        inflate(bomb, encoding, 1000)
    assert len(inflate(PACK[encoding](bytes(1000)), encoding, 1000)) == 1000
    with pytest.raises(PayloadTooLarge):
        inflate(PACK[encoding](bytes(1001)), encoding, 1000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "x" * 999])
def test_an_unknown_encoding_is_unsupported(encoding):
    with pytest.raises(UnsupportedMediaType, match="content-encoding must be one of gzip, deflate or identity") as caught:
        inflate(b"", encoding, 10)
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda body: b"hello", r"the body \(5 bytes\) is not valid"),
        (lambda body: body[:-1], "body is cut short after"),
        (lambda body: b"", "body is cut short after 0 bytes"),
        (lambda body: body + b"xy", "2 bytes follow the end of the"),
        (lambda body: body + body, "bytes follow the end of the"),
    ],
    ids=["other bytes", "cut", "empty", "tail", "second member"],
)
def test_a_body_that_is_not_what_it_says_is_refused(encoding, damage, says):
    with pytest.raises(BadRequest, match=says) as caught:
        inflate(damage(PACK[encoding](b"hello" * 9)), encoding, 100)
    assert type(caught.value) is BadRequest


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("br, GZIP ; Q=0.2", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate", "deflate"),
        ("*", "gzip"),
        ("*;q=0.1, gzip;q=0", "deflate"),
        ("*;q=0", None),
        ("br, zstd", None),
        ("identity", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=much", None),
        ("gzip;q=2", None),
        ("gzip;q=nan", None),
        ("gzip;level=9", "gzip"),
        (",;=", None),
    ],
)
def test_the_answer_is_encoded_as_the_client_prefers(accept, chosen):
    assert choose_encoding(accept) == chosen


@ordinary
@given(st.binary(max_size=4000), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_inflates_to_itself(body, encoding):
    packed, used = compress(body, encoding, min_bytes=0)
    assert used == encoding
    assert inflate(packed, encoding, len(body)) == body


def test_short_answers_are_sent_as_they_are():
    assert compress(bytes(MIN_COMPRESSED_BYTES - 1), "gzip") == (bytes(MIN_COMPRESSED_BYTES - 1), None)
    assert compress(bytes(MIN_COMPRESSED_BYTES), "gzip")[1] == "gzip"
    assert compress(bytes(MIN_COMPRESSED_BYTES), "br")[1] is None
