"""Encoding of answers, read back with nothing but the protocol's text in hand."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import JSON_DATATYPES, TWO_IN_TWO_OUT, arrays, assert_same, ordinary

from cascade.errors import BadRequest
from cascade.wire.oip import encode_response
from cascade.wire.tensors import Datatype, TensorSpec

LABEL, SCORE = TWO_IN_TWO_OUT.outputs


def objects(*elements: bytes) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def test_a_json_answer_is_json_only():
    scores = np.array([[0.5, 1.25], [2, -0.1]])
    outputs = [(LABEL, objects(b"cat", "ü".encode()), False), (SCORE, scores, False)]
    body, json_length = encode_response("pair", "3", outputs)
    assert json_length is None
    assert orjson.loads(body) == {
        "model_name": "pair",
        "model_version": "3",
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["cat", "ü"]},
            {"name": "score", "shape": [2, 2], "datatype": "FP64", "data": [0.5, 1.25, 2.0, -0.1]},
        ],
    }


def test_binary_tensors_follow_the_json_part_in_order():
    scores = np.array([[0.5, 1.25]])
    outputs = [(LABEL, objects(b"\xff\0"), True), (SCORE, scores, True)]
    body, json_length = encode_response("pair", "3", outputs)
    head = orjson.loads(body[:json_length])
    assert head["outputs"] == [
        {"name": "label", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
        {"name": "score", "shape": [1, 2], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
    ]
    assert body[json_length:] == b"\2\0\0\0\xff\0" + scores.tobytes()


def test_json_and_binary_outputs_mix():
    body, json_length = encode_response("m", "1", [(SCORE, np.ones((1, 2)), False), (LABEL, objects(b"a"), True)])
    first, second = orjson.loads(body[:json_length])["outputs"]
    assert first["data"] == [1.0, 1.0]
    assert "data" not in second
    assert body[json_length:] == b"\1\0\0\0a"


def test_the_id_is_given_back_and_never_invented():
    outputs = [(SCORE, np.ones((1, 2)), False)]
    assert "id" not in orjson.loads(encode_response("m", "1", outputs)[0])
    assert orjson.loads(encode_response("m", "1", outputs, request_id="")[0])["id"] == ""
    assert orjson.loads(encode_response("m", "1", outputs, request_id="42")[0])["id"] == "42"


def test_parameters_say_where_the_answer_came_from():
    parameters = {"cascade_stage": "small", "cascade_degraded": True, "cascade_confidence": np.float64(0.71)}
    outputs = [(SCORE, np.ones((1, 2)), False)]
    assert orjson.loads(encode_response("m", "1", outputs, parameters=parameters)[0])["parameters"] == parameters
    assert "parameters" not in orjson.loads(encode_response("m", "1", outputs, parameters={})[0])


def test_arrays_of_another_type_or_layout_are_converted():
    transposed = np.arange(4, dtype=np.float32).reshape(2, 2).T
    body, json_length = encode_response("m", "1", [(SCORE, transposed, True)])
    assert np.frombuffer(body[json_length:], "<f8").tolist() == [0, 2, 1, 3]
    body, _ = encode_response("m", "1", [(SCORE, transposed, False)])
    assert orjson.loads(body)["outputs"][0]["data"] == [0, 2, 1, 3]


def test_values_that_json_has_no_word_for_become_null():
    body, _ = encode_response("m", "1", [(SCORE, np.array([[np.nan, np.inf]]), False)])
    assert orjson.loads(body)["outputs"][0]["data"] == [None, None]


def test_bf16_is_widened_in_json():
    spec = TensorSpec("y", Datatype.BF16, (3,))
    body, _ = encode_response("m", "1", [(spec, np.array([[0x3F80, 0xC000, 0x3E80]], "<u2"), False)])
    assert orjson.loads(body)["outputs"][0]["data"] == [1.0, -2.0, 0.25]


def test_bytes_that_are_no_text_cannot_be_given_in_json():
    with pytest.raises(BadRequest, match=r"output 'label': the answer is not UTF-8 .* ask for it as binary data"):
        encode_response("m", "1", [(LABEL, objects(b"ok", b"\xff"), False)])


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@ordinary
@given(data=st.data())
def test_every_datatype_survives_json(datatype, data):
    array = data.draw(arrays(datatype, (2, 3), utf8=True))
    body, _ = encode_response("m", "1", [(TensorSpec("y", datatype, (3,)), array, False)])
    values = orjson.loads(body)["outputs"][0]["data"]
    if datatype is Datatype.BYTES:
        values = [text.encode() for text in values]
    assert_same(np.array(values, dtype=array.dtype).reshape(2, 3), array)
