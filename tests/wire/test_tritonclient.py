"""tritonclient's own encoder and decoder, without a server, as the second opinion on every message."""

import gzip
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import FASHION, JSON_DATATYPES, TWO_IN_TWO_OUT, arrays, assert_same, one_input, ordinary

from cascade.errors import Overloaded
from cascade.wire.encoding import compress, inflate
from cascade.wire.oip import decode_request, encode_response
from cascade.wire.problem import problem
from cascade.wire.tensors import Datatype

CLIENT_DATATYPES = [datatype for datatype in Datatype if datatype is not Datatype.BF16]


def client_input(name: str, datatype: str, array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


@pytest.mark.parametrize("datatype", CLIENT_DATATYPES)
@ordinary
@given(data=st.data())
def test_binary_requests_of_every_datatype(datatype, data):
    array = data.draw(arrays(datatype, (2, 3)))
    body, json_length = triton.InferenceServerClient.generate_request_body([client_input("x", datatype, array)])
    request = decode_request(body, json_length, one_input(datatype, 3))
    assert_same(request.inputs["x"], array)
    assert request.outputs[0].binary


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@ordinary
@given(data=st.data())
def test_json_requests_of_every_datatype(datatype, data):
    array = data.draw(arrays(datatype, (2, 3), utf8=True))
    body, json_length = triton.InferenceServerClient.generate_request_body(
        [client_input("x", datatype, array, binary=False)],
        outputs=[triton.InferRequestedOutput("y", binary_data=False)],
    )
    assert json_length is None
    request = decode_request(body, json_length, one_input(datatype, 3))
    assert_same(request.inputs["x"], array)
    assert not request.outputs[0].binary


def test_bf16_travels_as_its_bits():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([[1.5, -2.0, 0.25]], ml_dtypes.bfloat16)
    body, json_length = triton.InferenceServerClient.generate_request_body([client_input("x", "BF16", array)])
    signature = one_input("BF16", 3)
    bits = decode_request(body, json_length, signature).inputs["x"]
    assert bits.tobytes() == array.tobytes()
    for binary in (True, False):
        answer, answer_json_length = encode_response("m", "1", [(signature.outputs[0], bits, binary)])
        result = triton.InferResult.from_response_body(answer, header_length=answer_json_length)
        assert result.as_numpy("y").tolist() == array.tolist()


def test_everything_a_client_can_say_about_a_request():
    tokens, scale = np.arange(6).reshape(2, 3), np.array([1.0, 2.0], np.float32)
    body, json_length = triton.InferenceServerClient.generate_request_body(
        [client_input("scale", "FP32", scale), client_input("tokens", "INT64", tokens)],
        outputs=[triton.InferRequestedOutput("score", binary_data=True), triton.InferRequestedOutput("label", False)],
        request_id="42",
        priority=2,
        timeout=500_000,
        parameters={"cascade_max_cost": 3.5, "note": "hello"},
    )
    request = decode_request(body, json_length, TWO_IN_TWO_OUT)
    assert request.id == "42"
    assert request.priority == 2
    assert request.timeout_s == 0.5
    assert request.max_cost == 3.5
    assert request.parameters["note"] == "hello"
    assert [(output.spec.name, output.binary) for output in request.outputs] == [("score", True), ("label", False)]
    assert_same(request.inputs["tokens"], tokens)
    assert_same(request.inputs["scale"], scale)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", CLIENT_DATATYPES)
@ordinary
@given(data=st.data())
def test_answers_of_every_datatype(datatype, binary, data):
    array = data.draw(arrays(datatype, (2, 3), utf8=not binary))
    body, json_length = encode_response("m", "1", [(one_input(datatype, 3).outputs[0], array, binary)])
    result = triton.InferResult.from_response_body(body, header_length=json_length)
    got = result.as_numpy("y")
    if datatype is Datatype.BYTES and not binary:
        got = np.array([[text.encode() for text in row] for row in got], dtype=object)
    assert_same(got, array)


def test_an_answer_with_an_id_and_provenance():
    label, score = TWO_IN_TWO_OUT.outputs
    labels = np.array([b"cat", b"dog"], dtype=object)
    body, json_length = encode_response(
        "pair",
        "3",
        [(label, labels, True), (score, np.ones((2, 2)), False)],
        request_id="42",
        parameters={"cascade_stage": "small", "cascade_degraded": True},
    )
    result = triton.InferResult.from_response_body(body, header_length=json_length)
    assert result.get_response()["id"] == "42"
    assert result.get_response()["parameters"] == {"cascade_stage": "small", "cascade_degraded": True}
    assert result.as_numpy("label").tolist() == [b"cat", b"dog"]
    assert result.as_numpy("score").tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compression_both_ways(encoding, pack):
    image = np.zeros((1, 28, 28), np.uint8)
    body, json_length = triton.InferenceServerClient.generate_request_body([client_input("image", "UINT8", image)])
    inflated = inflate(pack(body), encoding, 10_000)
    assert_same(decode_request(inflated, json_length, FASHION).inputs["image"], image)

    logits = np.zeros((100, 10), np.float32)
    answer, answer_json_length = encode_response("fashion", "1", [(FASHION.outputs[0], logits, True)])
    packed, used = compress(answer, encoding)
    assert used == encoding
    assert len(packed) < len(answer)
    result = triton.InferResult.from_response_body(packed, header_length=answer_json_length, content_encoding=used)
    assert_same(result.as_numpy("logits"), logits)


def test_a_client_reads_the_sentence_of_an_error():
    from tritonclient.http._utils import _get_error

    class Response:
        status_code = 503

        def read(self):
            return problem(Overloaded("come back later", retry_after_s=2)).body

    error = _get_error(Response())
    assert error.status() == "503"
    assert error.message() == "Overloaded: come back later"
