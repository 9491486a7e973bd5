"""Decoding of inference requests: what is taken, and what each refusal says."""

import re

import numpy as np
import orjson
import pytest
from wire_cases import FASHION, TWO_IN_TWO_OUT, binary_message, message, one_input, tensor

from cascade.errors import BadRequest
from cascade.wire.oip import Limits, RequestedOutput, Signature, decode_request
from cascade.wire.tensors import TensorSpec


def decode_x(data, shape, datatype, *row, **limits):
    """The input ``x`` out of a JSON request."""
    request = decode_request(message(tensor(data, shape, datatype)), None, one_input(datatype, *row), Limits(**limits))
    return request.inputs["x"]


def refusal(body, json_length=None, signature=FASHION, **limits) -> str:
    with pytest.raises(BadRequest) as caught:
        decode_request(body, json_length, signature, Limits(**limits))
    assert type(caught.value) is BadRequest
    return caught.value.detail


def image(**members):
    return {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", **members}


class TestTensorsInJson:
    @pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]], ids=["flat", "nested"])
    def test_data_may_be_flat_or_nested(self, data):
        assert decode_x(data, [2, 3], "INT32", 3).tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_whole_numbers_are_taken_for_floats(self):
        array = decode_x([1, 2.5, 18446744073709551615], [3], "FP64")
        assert array.dtype == np.float64
        assert array.tolist() == [1.0, 2.5, 18446744073709551615.0]

    def test_strings_become_their_utf8_bytes(self):
        assert decode_x(["a", "ä\0"], [2], "BYTES").tolist() == [b"a", "ä\0".encode()]

    def test_open_dimensions_are_the_clients_choice(self):
        assert decode_x([[1, 2, 3]], [1, 3], "UINT8", -1).shape == (1, 3)

    @pytest.mark.parametrize(
        ("data", "shape", "datatype", "row", "says"),
        [
            ([1, 2], [3], "INT8", (), "input 'x': shape [3] has 3 elements, got 2 in data"),
            ([], [1], "INT8", (), "input 'x': shape [1] has 1 elements, got 0 in data"),
            (3, [1], "INT8", (), "input 'x': data must be a list of 1 elements, got 3"),
            ({"a": 1}, [1], "INT8", (), "data must be a list of 1 elements, got an object"),
            ([[1, 2]], [2, 2], "INT8", (2,), "input 'x': nested data must hold 2 rows, got 1"),
            ([[1, 2], [3]], [2, 2], "INT8", (2,), "lists at depth 1 must hold 2 elements, got 1"),
            ([[1, 2], 3], [2, 2], "INT8", (2,), "nested data must be lists at depth 1, got 3"),
            ([[1, 2]], [1, 2, 1], "INT8", (2, 1), "nested data must be lists at depth 2, got 1"),
            ([[[1]], [[2]]], [2, 1], "INT8", (1,), "input 'x', row 0: INT8 takes integers, got a list of 1"),
            ([1, 2, 3.0, 4], [2, 2], "INT8", (2,), "input 'x', row 1: INT8 takes integers, got 3.0"),
            ([True], [1], "UINT8", (), "UINT8 takes integers, got true"),
            ([None], [1], "FP32", (), "FP32 takes numbers, got null"),
            ([False], [1], "FP32", (), "FP32 takes numbers, got false"),
            (["1"], [1], "FP32", (), "FP32 takes numbers, got '1'"),
            ([1], [1], "BOOL", (), "BOOL takes true or false, got 1"),
            ([1], [1], "BYTES", (), "BYTES takes strings, got 1"),
            (["x" * 999], [1], "FP32", (), "got '" + "x" * 60 + "'..."),
            ([0, 256], [2], "UINT8", (), "input 'x', row 1: UINT8 holds 0 to 255, got 256"),
            ([0, -1], [2], "UINT64", (), "UINT64 holds 0 to 18446744073709551615, got -1"),
            ([2**63], [1], "INT64", (), "INT64 holds -9223372036854775808 to 9223372036854775807, got 92233720"),
            ([1.0, 1e39], [2], "FP32", (), "input 'x', row 1: 1e+39 is out of the range of FP32"),
            ([70000], [1], "FP16", (), "input 'x', row 0: 70000 is out of the range of FP16"),
            ([1.0], [1], "BF16", (), "input 'x': BF16 has no JSON form, send it as binary data"),
        ],
    )
    def test_data_that_does_not_fit_is_refused(self, data, shape, datatype, row, says):
        body = message(tensor(data, shape, datatype))
        assert says in refusal(body, signature=one_input(datatype, *row))

    def test_an_integer_beyond_64_bits_is_no_integer(self):
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}'
        assert "UINT64 takes integers, got 1.8446744073709552e+19" in refusal(body, signature=one_input("UINT64"))


class TestTensorsInBinary:
    def test_an_array_is_a_view_on_the_body(self):
        pixels = bytes(range(256)) * 4
        body, json_length = binary_message([pixels[:784]], [image()])
        array = decode_request(body, json_length, FASHION).inputs["image"]
        assert array.tobytes() == pixels[:784]
        assert not array.flags.owndata
        assert np.shares_memory(array, np.frombuffer(body, np.uint8))

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_can_hold_the_body(self, kind):
        body, json_length = binary_message([b"\7" * 784], [image()])
        request = decode_request(kind(body), json_length, FASHION)
        assert request.inputs["image"].max() == 7
        assert request.rows == 1

    def test_binary_tensors_follow_in_the_order_of_the_message(self):
        scale, tokens = np.array([0.5, 2.0], "<f4"), np.arange(6, dtype="<i8").reshape(2, 3)
        body, json_length = binary_message(
            [scale.tobytes(), tokens.tobytes()],
            [
                {"name": "scale", "shape": [2], "datatype": "FP32"},
                {"name": "tokens", "shape": [2, 3], "datatype": "INT64"},
            ],
        )
        inputs = decode_request(body, json_length, TWO_IN_TWO_OUT).inputs
        assert list(inputs) == ["tokens", "scale"]
        assert inputs["tokens"].tolist() == tokens.tolist()
        assert inputs["scale"].tolist() == [0.5, 2.0]

    def test_json_and_binary_tensors_mix(self):
        body, json_length = binary_message(
            [np.arange(2, dtype="<i8").tobytes(), b""],
            [
                {"name": "tokens", "shape": [1, 2], "datatype": "INT64"},
                {"name": "scale", "shape": [1], "datatype": "FP32", "data": [2], "parameters": {}},
            ],
        )
        inputs = decode_request(body, json_length, TWO_IN_TWO_OUT).inputs
        assert inputs["tokens"].tolist() == [[0, 1]]
        assert inputs["scale"].tolist() == [2.0]

    @pytest.mark.parametrize(
        ("size", "got"),
        [(783, "783"), (0, "0"), (-1, "-1"), (785, "785"), (True, "true"), ("784", "'784'"), (784.0, "784.0")],
    )
    def test_a_wrong_binary_size_is_refused(self, size, got):
        text = message(image(parameters={"binary_data_size": size}))
        detail = refusal(text + bytes(784), len(text))
        assert detail.startswith("input 'image': ")
        assert "784 bytes" in detail
        assert got in detail

    def test_binary_data_without_a_json_length_is_refused(self):
        body = message(image(parameters={"binary_data_size": 784}))
        assert "binary_data_size must be an integer from 0 to the 0 bytes that follow, got 784" in refusal(body)

    def test_bytes_that_belong_to_no_input_are_refused(self):
        body, json_length = binary_message([bytes(784)], [image()])
        assert refusal(body + b"\n", json_length) == "1 bytes follow the JSON part and belong to no input"

    def test_data_and_binary_data_exclude_each_other(self):
        body, json_length = binary_message([bytes(784)], [image(data=[1])])
        assert "give data or the parameter binary_data_size, got both" in refusal(body, json_length)
        assert "give data or the parameter binary_data_size, got neither" in refusal(message(image()))

    def test_a_boolean_that_is_neither_0_nor_1_is_refused(self):
        body, json_length = binary_message([b"\1\0\1\2"], [{"name": "x", "shape": [2, 2], "datatype": "BOOL"}])
        detail = refusal(body, json_length, one_input("BOOL", 2))
        assert detail == "input 'x', row 1: a binary BOOL is 0 or 1, got 2"

    @pytest.mark.parametrize(
        ("raw", "says"),
        [
            (b"\0\0\0", "has 1 BYTES elements of at least 4 bytes each, got binary data of 3 bytes"),
            (b"\2\0\0\0a", "BYTES element 0 of 1 ends 1 bytes after the binary data of 5 bytes"),
            (b"\xff\xff\xff\xffa", "BYTES element 0 of 1 ends 4294967294 bytes after"),
            (b"\0\0\0\0a", "1 bytes are left after its 1 BYTES elements"),
        ],
    )
    def test_bytes_elements_must_fill_their_data_exactly(self, raw, says):
        body, json_length = binary_message([raw], [{"name": "x", "shape": [1], "datatype": "BYTES"}])
        assert says in refusal(body, json_length, one_input("BYTES"))

    def test_a_bytes_element_cannot_borrow_its_length_from_what_follows(self):
        signature = Signature(
            "m", "1", (TensorSpec("a", "BYTES", (2,)), TensorSpec("b", "UINT8", (4,))), (TensorSpec("y", "FP32", ()),)
        )
        body, json_length = binary_message(
            [b"\3\0\0\0abc\0", bytes(4)],
            [{"name": "a", "shape": [1, 2], "datatype": "BYTES"}, {"name": "b", "shape": [1, 4], "datatype": "UINT8"}],
        )
        assert "BYTES element 1 of 2 ends 3 bytes after the binary data of 8 bytes" in refusal(body, json_length, signature)


class TestValuesThatAreNotFinite:
    @pytest.mark.parametrize(
        ("datatype", "array"),
        [
            ("FP16", np.array([[0, 1], [2, np.nan]], "<f2")),
            ("FP32", np.array([[0, 1], [np.inf, 2]], "<f4")),
            ("FP64", np.array([[0, 1], [-np.inf, np.nan]], "<f8")),
            ("BF16", np.array([[0, 0x3F80], [0x7F80, 0]], "<u2")),
        ],
    )
    def test_the_first_row_with_one_is_named(self, datatype, array):
        body, json_length = binary_message([array.tobytes()], [{"name": "x", "shape": [2, 2], "datatype": datatype}])
        signature = one_input(datatype, 2)
        detail = refusal(body, json_length, signature)
        assert detail == "input 'x', row 1: values must be finite, got NaN or infinity"
        allowed = decode_request(body, json_length, signature, Limits(require_finite=False))
        assert allowed.inputs["x"].tobytes() == array.tobytes()

    def test_a_raw_body_is_looked_at_too(self):
        signature = one_input("FP32", 1)
        assert "row 0: values must be finite" in refusal(np.array([np.nan], "<f4").tobytes(), 0, signature)
        decode_request(np.array([np.nan], "<f4").tobytes(), 0, signature, Limits(require_finite=False))

    def test_sums_that_overflow_are_not_mistaken_for_infinities(self):
        array = np.full((1, 4), np.finfo("<f4").max, "<f4")
        body, json_length = binary_message([array.tobytes()], [{"name": "x", "shape": [1, 4], "datatype": "FP32"}])
        assert decode_request(body, json_length, one_input("FP32", 4)).rows == 1


class TestRawBodies:
    def test_a_raw_body_is_one_row_answered_in_binary(self):
        request = decode_request(bytes(784), 0, FASHION)
        assert request.inputs["image"].shape == (1, 28, 28)
        assert request.rows == 1
        assert request.id is None
        assert request.parameters == {}
        assert request.outputs == (RequestedOutput(FASHION.outputs[0], True),)

    def test_one_open_dimension_follows_from_the_length(self):
        array = decode_request(np.arange(6, dtype="<i2").tobytes(), 0, one_input("INT16", 2, -1)).inputs["x"]
        assert array.shape == (1, 2, 3)

    @pytest.mark.parametrize("row", [(), (1,), (-1,)])
    def test_a_raw_body_of_bytes_is_the_element_itself(self, row):
        array = decode_request(b"\5hello", 0, one_input("BYTES", *row)).inputs["x"]
        assert array.ravel().tolist() == [b"\5hello"]
        assert array.ndim == 1 + len(row)

    @pytest.mark.parametrize(
        ("signature", "size", "says"),
        [
            (FASHION, 783, "input 'image': a raw body of one UINT8 row takes 784 bytes, got 783"),
            (FASHION, 1568, "takes 784 bytes, got 1568"),
            (FASHION, 0, "takes 784 bytes, got 0"),
            (one_input("FP32", 2, -1), 12, "takes a multiple of 8 bytes, got 12"),
            (one_input("FP32", -1), 0, "takes a multiple of 4 bytes, got 0"),
            (one_input("FP32", -1, -1), 8, "leaves no more than one dimension open, not [rows, -1, -1]"),
            (one_input("BYTES", 2), 8, "a raw body is one BYTES element, a row has shape [rows, 2]"),
            (TWO_IN_TWO_OUT, 8, "needs a model with one input, 'pair' has 2: 'tokens', 'scale'"),
        ],
    )
    def test_a_raw_body_that_is_no_row_is_refused(self, signature, size, says):
        assert says in refusal(bytes(size), 0, signature)

    def test_a_raw_boolean_is_checked(self):
        assert "is 0 or 1, got 9" in refusal(b"\x09", 0, one_input("BOOL"))


class TestText:
    TEXT = Signature("m", "1", (TensorSpec("x", "BYTES", (2,), text=True),), (TensorSpec("y", "FP32", ()),))
    ONE = Signature("m", "1", (TensorSpec("x", "BYTES", (), text=True),), (TensorSpec("y", "FP32", ()),))

    def test_text_in_utf8_is_taken_in_every_form(self):
        assert decode_request(message(tensor(["ä", ""], [1, 2], "BYTES")), None, self.TEXT).inputs["x"].tolist() == [
            ["ä".encode(), b""]
        ]
        raw = b"\2\0\0\0" + "ä".encode() + bytes(4)
        body, length = binary_message([raw], [{"name": "x", "shape": [1, 2], "datatype": "BYTES"}])
        assert decode_request(body, length, self.TEXT).inputs["x"].tolist() == [["ä".encode(), b""]]
        assert decode_request("ä".encode(), 0, self.ONE).inputs["x"].tolist() == ["ä".encode()]

    def test_bytes_that_are_no_text_are_refused_by_row_and_place(self):
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in (b"a", b"b", b"c", b"caf\xe9!"))
        body, length = binary_message([raw], [{"name": "x", "shape": [2, 2], "datatype": "BYTES"}])
        says = "input 'x', row 1: text must be UTF-8, got invalid continuation byte at byte 3"
        assert refusal(body, length, self.TEXT) == says
        assert "row 0: text must be UTF-8" in refusal(b"\xff", 0, self.ONE)

    def test_bytes_that_are_not_declared_as_text_may_be_anything(self):
        assert decode_request(b"\xff", 0, one_input("BYTES")).inputs["x"].tolist() == [b"\xff"]


class TestShapesAndRows:
    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            (None, "input 'x': shape must be a list of integers, [rows, 2, -1], got null"),
            ([], "got []"),
            ("1", "got '1'"),
            ([1, 2.0, 3], "must be a list of integers, [rows, 2, -1], got [1, 2.0, 3]"),
            ([True, 2, 3], "got [true, 2, 3]"),
            ([1, 2], "input 'x': shape must be [rows, 2, -1], got [1, 2]"),
            ([1, 2, 3, 4], "got [1, 2, 3, 4]"),
            ([1, 3, 3], "got [1, 3, 3]"),
            ([1, 2, 0], "got [1, 2, 0]"),
            ([1, 2, -1], "got [1, 2, -1]"),
            ([1] * 9, "got a list of 9"),
            ([0, 2, 3], "input 'x': a request holds 1 to 8 rows, got 0"),
            ([-1, 2, 3], "got -1"),
            ([9, 2, 3], "a request holds 1 to 8 rows, got 9"),
            ([2**64 - 1, 2, 2**64 - 1], "got 18446744073709551615"),
            ([1, 2, 2**64 - 1], "takes 36893488147419103230 bytes, got binary data of 6"),
        ],
    )
    def test_a_shape_that_does_not_fit_is_refused(self, shape, says):
        body, json_length = binary_message([bytes(6)], [{"name": "x", "shape": shape, "datatype": "UINT8"}])
        assert says in refusal(body, json_length, one_input("UINT8", 2, -1), max_rows=8)

    def test_all_inputs_have_as_many_rows(self):
        body = message(tensor([1, 2], [2, 1], "INT64", "tokens"), tensor([1], [1], "FP32", "scale"))
        detail = refusal(body, signature=TWO_IN_TWO_OUT)
        assert detail == "input 'scale': all inputs hold the same number of rows, 2, got 1"

    def test_rows_are_the_batch_dimension(self):
        request = decode_request(message(tensor([1, 2, 3], [3], "FP32")), None, one_input("FP32"))
        assert request.rows == 3


class TestMembers:
    def test_unknown_members_are_ignored(self):
        body = message({**tensor([1], [1], "FP32"), "x": {}}, model_name="m", whatever=[{"deep": [1]}])
        assert decode_request(body, None, one_input("FP32")).rows == 1

    def test_null_stands_for_an_absent_member(self):
        body = message({**tensor([1], [1], "FP32"), "parameters": None}, id=None, parameters=None, outputs=None)
        request = decode_request(body, None, one_input("FP32"))
        assert request.id is None
        assert request.parameters == {}
        assert not request.outputs[0].binary

    @pytest.mark.parametrize("request_id", ["42", ""])
    def test_the_id_is_kept(self, request_id):
        assert decode_request(message(tensor([1], [1], "FP32"), id=request_id), None, one_input("FP32")).id == request_id

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"", "the JSON part of the request (0 bytes) cannot be read: "),
            (b"{", "(1 bytes) cannot be read: "),
            (b'{"inputs":[NaN]}', "cannot be read: "),
            (b'"\xff"', "cannot be read: "),
            (b"[" * 2000, "cannot be read: "),
            (b"[1]", "the request must be a JSON object, got a list of 1"),
            (b"{}", "inputs must be a list of tensors, 'image', got null"),
            (b'{"inputs":[]}', "the model's inputs are 'image', missing 'image'"),
            (b'{"inputs":[1]}', "an input must be an object with a name, got 1"),
            (b'{"inputs":[{}]}', "an input must have a name, one of 'image', got null"),
            (b'{"inputs":[{"name":"im"}]}', "input 'im' is unknown, the model's inputs are 'image'"),
            (b'{"inputs":[{"name":"image"}]}', "input 'image': datatype must be UINT8, got null"),
            (b'{"inputs":[{"name":"image","datatype":"FP32"}]}', "input 'image': datatype must be UINT8, got 'FP32'"),
            (
                b'{"inputs":[{"name":"image","parameters":[]}]}',
                "input 'image': parameters must be an object, got a list",
            ),
            (b'{"id":7}', "id must be a string, got 7"),
            (b'{"parameters":3}', "parameters must be an object, got 3"),
            (b'{"parameters":{"a":null}}', "parameters: 'a' must be a string, number or boolean, got null"),
            (b'{"parameters":{"a":{}}}', "parameters: 'a' must be a string, number or boolean, got an object"),
            (
                b'{"inputs":[{"name":"image","parameters":{"shared_memory_region":"r"}}]}',
                "input 'image': the parameter shared_memory_region is not supported",
            ),
        ],
    )
    def test_a_malformed_message_is_refused(self, body, says):
        assert says in refusal(body)

    def test_an_input_given_twice_is_refused(self):
        body = message(tensor([1], [1], "FP32"), tensor([1], [1], "FP32"))
        assert refusal(body, signature=one_input("FP32")) == "input 'x' is given twice"

    def test_missing_inputs_are_named(self):
        body = message(tensor([1], [1, 1], "INT64", "tokens"))
        assert "inputs are 'tokens', 'scale', missing 'scale'" in refusal(body, signature=TWO_IN_TWO_OUT)

    @pytest.mark.parametrize("json_length", [-1, 3, 10**17])
    def test_a_json_length_outside_the_body_is_refused(self, json_length):
        assert f"within the body of 2 bytes, got {json_length}" in refusal(b"{}", json_length)

    def test_no_message_quotes_a_whole_document(self):
        deep = b"[" * 900 + b"]" * 900
        for member in (b"id", b"parameters", b"inputs", b"outputs"):
            body = message(tensor([1], [1], "FP32"))[:-1] + b',"' + member + b'":' + deep + b"}"
            assert len(refusal(body, signature=one_input("FP32"))) < 200
        long = message(tensor([1], [1], "FP32", "n" * 10**5))
        assert len(refusal(long, signature=one_input("FP32"))) < 200


class TestRequestedOutputs:
    def outputs(self, **members):
        body = message(tensor([1], [1, 1], "INT64", "tokens"), tensor([1], [1], "FP32", "scale"), **members)
        return [(spec.name, binary) for spec, binary in decode_request(body, None, TWO_IN_TWO_OUT).outputs]

    def refused(self, **members):
        body = message(tensor([1], [1, 1], "INT64", "tokens"), tensor([1], [1], "FP32", "scale"), **members)
        return refusal(body, signature=TWO_IN_TWO_OUT)

    @pytest.mark.parametrize("none", [{}, {"outputs": []}])
    def test_without_a_wish_all_outputs_are_given(self, none):
        assert self.outputs(**none) == [("label", False), ("score", False)]
        assert self.outputs(**none, parameters={"binary_data_output": True}) == [("label", True), ("score", True)]

    def test_the_wish_of_an_output_overrides_that_of_the_request(self):
        wanted = [{"name": "score"}, {"name": "label", "parameters": {"binary_data": False}}]
        assert self.outputs(outputs=wanted, parameters={"binary_data_output": True}) == [
            ("score", True),
            ("label", False),
        ]
        wanted = [{"name": "score", "parameters": {"binary_data": True}}]
        assert self.outputs(outputs=wanted) == [("score", True)]

    @pytest.mark.parametrize(
        ("members", "says"),
        [
            ({"outputs": [{"name": "y"}]}, "output 'y' is unknown, the model's outputs are 'label', 'score'"),
            ({"outputs": [{"name": "score"}, {"name": "score"}]}, "output 'score' is given twice"),
            ({"outputs": {"name": "score"}}, "outputs must be a list of tensors, 'label', 'score', got an object"),
            ({"outputs": [None]}, "an output must be an object with a name, got null"),
            ({"outputs": [{"name": 5}]}, "an output must have a name, one of 'label', 'score', got 5"),
            (
                {"outputs": [{"name": "score", "parameters": {"binary_data": 1}}]},
                "output 'score': binary_data must be true or false, got 1",
            ),
            (
                {"outputs": [{"name": "score", "parameters": {"classification": 3}}]},
                "output 'score': the parameter classification is not supported",
            ),
            (
                {"parameters": {"binary_data_output": "yes"}},
                "parameters: binary_data_output must be true or false, got 'yes'",
            ),
        ],
    )
    def test_a_wish_that_cannot_be_met_is_refused(self, members, says):
        assert self.refused(**members) == says


class TestScheduling:
    def decode(self, parameters):
        return decode_request(message(tensor([1], [1], "FP32"), parameters=parameters), None, one_input("FP32"))

    def test_what_is_not_given_is_none(self):
        request = self.decode({})
        assert (request.timeout_s, request.priority, request.max_cost, request.tenant) == (None, None, None, None)
        assert request.min_confidence is None

    @pytest.mark.parametrize("value", [1, 0.25])
    def test_a_confidence_that_is_enough_is_taken(self, value):
        assert self.decode({"cascade_min_confidence": value}).min_confidence == value

    @pytest.mark.parametrize("value", [0, -0.5, 1.01, True, "1"])
    def test_a_confidence_that_is_no_probability_is_refused(self, value):
        body = message(tensor([1], [1], "FP32"), parameters={"cascade_min_confidence": value})
        detail = refusal(body, signature=one_input("FP32"))
        assert detail.startswith("parameters: cascade_min_confidence must be a number above 0 and at most 1, got ")

    def test_what_is_given_is_taken(self):
        parameters = {"timeout": 250_000, "priority": 4, "cascade_max_cost": 3, "cascade_tenant": "shop", "mine": "x"}
        request = self.decode(parameters)
        assert (request.timeout_s, request.priority, request.max_cost, request.tenant) == (0.25, 4, 3.0, "shop")
        assert request.parameters == parameters

    def test_an_explanation_is_asked_for_by_true_alone(self):
        assert [self.decode({"cascade_explain": value}).explain for value in (True, False)] == [True, False]
        assert not self.decode({}).explain
        body = message(tensor([1], [1], "FP32"), parameters={"cascade_explain": 1})
        assert refusal(body, signature=one_input("FP32")) == "parameters: cascade_explain must be true or false, got 1"

    def test_zero_means_the_default_as_in_triton(self):
        request = self.decode({"timeout": 0, "priority": 0})
        assert (request.timeout_s, request.priority) == (None, None)

    @pytest.mark.parametrize("value", ["-1", "1.5", "true", '"1"', "86400000001", "123456789012345678901234567890"])
    def test_a_timeout_out_of_range_is_refused(self, value):
        body = message(tensor([1], [1], "FP32"))[:-1] + f',"parameters":{{"timeout":{value}}}}}'.encode()
        detail = refusal(body, signature=one_input("FP32"))
        assert detail.startswith("parameters: timeout must be an integer of 0 to 86400000000 microseconds, got ")

    @pytest.mark.parametrize("value", [-1, 5, 1.0, True, "1", 2**64 - 1])
    def test_a_priority_out_of_range_is_refused(self, value):
        detail = refusal(message(tensor([1], [1], "FP32"), parameters={"priority": value}), signature=one_input("FP32"))
        assert detail.startswith("parameters: priority must be an integer of 1 (most important) to 4, or 0")

    @pytest.mark.parametrize("value", [0, -0.5, True, "1"])
    def test_a_cost_that_is_no_positive_number_is_refused(self, value):
        body = message(tensor([1], [1], "FP32"), parameters={"cascade_max_cost": value})
        assert re.match(
            "parameters: cascade_max_cost must be a number above 0, got ", refusal(body, signature=one_input("FP32"))
        )

    @pytest.mark.parametrize("value", ["", "x" * 201, 1, True])
    def test_a_tenant_that_is_no_short_string_is_refused(self, value):
        body = message(tensor([1], [1], "FP32"), parameters={"cascade_tenant": value})
        detail = refusal(body, signature=one_input("FP32"))
        assert detail.startswith("parameters: cascade_tenant must be a string of 1 to 200 characters, got ")


def test_the_json_part_may_be_padded_with_spaces():
    text = message(image(parameters={"binary_data_size": 784})) + b"   "
    assert decode_request(text + bytes(784), len(text), FASHION).rows == 1
    assert orjson.loads(text)["inputs"]
