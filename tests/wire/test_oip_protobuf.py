"""Requests and answers in protobuf: made by tritonclient where it can make them, by hand where another client might."""

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.service_pb2 as theirs
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc._utils import _get_inference_request
from wire_cases import (
    EVERY_DATATYPE,
    FASHION,
    TWO_IN_TWO_OUT,
    arrays,
    assert_same,
    one_input,
    ordinary,
    thorough,
)

from cascade.errors import BadRequest, Overloaded
from cascade.wire.oip import InferRequest, Limits, Signature
from cascade.wire.oip_grpc import decode_request, encode_response, failed_event, read_message, shown_event
from cascade.wire.oip_messages import ModelInferRequest, ModelInferResponse, ServerLiveRequest
from cascade.wire.tensor_binary import to_binary
from cascade.wire.tensors import Datatype, TensorSpec

LIMITS = Limits(max_rows=16)

TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(message: Any, signature: Signature, limits: Limits = LIMITS) -> InferRequest:
    """Decode a message of another protobuf pool, as it comes over the wire."""
    return decode_request(read_message(ModelInferRequest, message.SerializeToString()), signature, limits)


def add_input(message: Any, name: str, datatype: str, array: np.ndarray, *, typed: bool) -> None:
    entry = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    if typed:
        getattr(entry.contents, TYPED[datatype]).extend(array.ravel().tolist())
    else:
        message.raw_input_contents.append(to_binary(TensorSpec(name, datatype, array.shape[1:]), array))


def typed(datatype: str, data: Any, shape: list[int] | None = None, name: str = "x") -> Any:
    """A request of one input with typed contents."""
    message = theirs.ModelInferRequest()
    entry = message.inputs.add(name=name, datatype=datatype, shape=shape or np.shape(data))
    getattr(entry.contents, TYPED[datatype]).extend(np.ravel(data).tolist())
    return message


def raw(datatype: str, data: bytes, shape: list[int], name: str = "x") -> Any:
    """A request of one raw input."""
    message = theirs.ModelInferRequest(raw_input_contents=[data])
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def triton_request(inputs: list[triton.InferInput], **facts: Any) -> Any:
    """A request as tritonclient sends it."""
    defaults = {"model_version": "", "request_id": "", "outputs": None, "priority": 0, "timeout": None, "parameters": None}
    sequence = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    return _get_inference_request("m", inputs, **{**defaults, **sequence, **facts})


def triton_input(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


# -- tensors -----------------------------------------------------------------------------------------------------------


@ordinary
@given(st.data(), st.sampled_from(list(Datatype)), st.booleans())
def test_no_element_of_any_datatype_changes_on_the_way(data, datatype, typed):
    array = data.draw(arrays(datatype, (3, 2)))
    typed = typed and datatype in TYPED
    message = theirs.ModelInferRequest()
    add_input(message, "x", datatype, array, typed=typed)
    request = decode(message, one_input(datatype, 2))
    assert_same(request.inputs["x"], array)
    assert request.rows == 3
    [output] = request.outputs
    answer = encode_response("m", "1", [(output.spec, array, output.binary)])
    returned = theirs.ModelInferResponse.FromString(answer.SerializeToString())
    assert bool(returned.raw_output_contents) != typed
    if typed:
        assert getattr(returned.outputs[0].contents, TYPED[datatype]) == array.ravel().tolist()
    elif datatype is not Datatype.BF16:  # which tritonclient reads as floats
        assert_same(triton.InferResult(returned).as_numpy("y"), array)


@ordinary
@given(st.data(), st.integers(1, 4))
def test_inputs_come_in_the_order_of_the_model_whatever_the_clients(data, rows):
    specs = EVERY_DATATYPE.inputs
    given_arrays = {spec.name: data.draw(arrays(spec.datatype, (rows, 2, 1))) for spec in specs}
    message = theirs.ModelInferRequest()
    for spec in data.draw(st.permutations(specs)):
        add_input(message, spec.name, spec.datatype, given_arrays[spec.name], typed=False)
    request = decode(message, EVERY_DATATYPE)
    assert list(request.inputs) == [spec.name for spec in specs]
    for name, array in request.inputs.items():
        assert_same(array, given_arrays[name])


def test_raw_inputs_are_not_copied():
    request = decode(raw("UINT8", bytes(range(4)), [2, 2]), one_input("UINT8", 2))
    assert not request.inputs["x"].flags.owndata
    assert not request.inputs["x"].flags.writeable


def test_what_tritonclient_sends_is_read():
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    wanted = [triton.InferRequestedOutput("logits")]
    request = decode(
        triton_request(
            [triton_input("image", "UINT8", images)],
            outputs=wanted,
            request_id="42",
            priority=2,
            timeout=500_000,
            parameters={"cascade_tenant": "acme", "cascade_max_cost": 1.5, "cascade_min_confidence": 0.5, "other": True},
        ),
        FASHION,
    )
    assert_same(request.inputs["image"], images)
    assert request.id == "42"
    assert (request.priority, request.timeout_s, request.tenant, request.max_cost) == (2, 0.5, "acme", 1.5)
    assert request.min_confidence == 0.5
    assert request.parameters["other"] is True
    assert [(output.spec.name, output.binary) for output in request.outputs] == [("logits", True)]


def test_a_request_that_says_nothing_leaves_everything_to_the_server():
    request = decode(raw("INT8", b"\x01", [1]), one_input("INT8"))
    assert (request.id, request.parameters) == (None, {})
    assert (request.timeout_s, request.priority, request.max_cost, request.tenant) == (None, None, None, None)


def test_an_answer_is_typed_where_the_request_was_and_can_be():
    assert [o.binary for o in decode(typed("FP32", [[1.0]]), one_input("FP32", 1)).outputs] == [False]
    half = Signature("m", "1", one_input("FP32", 1).inputs, (TensorSpec("y", "FP16", ()), TensorSpec("z", "FP32", ())))
    assert [o.binary for o in decode(typed("FP32", [[1.0]]), half).outputs] == [True, True]


def test_tritonclient_reads_an_answer():
    labels = np.array([b"one", b""], dtype=object)
    scores = np.array([[0.5, -0.0], [1e-300, 2.0]])
    outputs = [(spec, array, True) for spec, array in zip(TWO_IN_TWO_OUT.outputs, (labels, scores), strict=True)]
    parameters = {"a": True, "b": 7, "c": -0.5, "d": "text", "e": 2**40, "f": np.float64(2.5)}
    message = encode_response("pair", "3", outputs, request_id="x", parameters=parameters)
    result = triton.InferResult(theirs.ModelInferResponse.FromString(message.SerializeToString()))
    assert_same(result.as_numpy("label"), labels)
    assert_same(result.as_numpy("score"), scores)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("pair", "3", "x")
    read = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()}
    assert read == parameters


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_a_model_without_all_of_its_inputs_is_refused():
    message = raw("FP32", b"\0" * 4, [1], name="scale")
    with pytest.raises(BadRequest, match="'tokens', 'scale', missing 'tokens'"):
        decode(message, TWO_IN_TWO_OUT)
    with pytest.raises(BadRequest, match="missing 'x'"):
        decode(theirs.ModelInferRequest(), one_input("INT8"))


def twice(message: Any) -> Any:
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    return message


def both(message: Any) -> Any:
    message.inputs[0].contents.int_contents.append(1)
    return message


def neither(message: Any) -> Any:
    del message.raw_input_contents[:]
    return message


def parameter(where: str, name: str, **value: Any) -> Any:
    message = raw("INT8", b"\x01", [1])
    holder = {"request": message, "input": message.inputs[0], "output": message.outputs.add(name="y")}[where]
    holder.parameters[name].MergeFrom(theirs.InferParameter(**value))
    return message


@pytest.mark.parametrize(
    ("message", "mentions"),
    [
        (raw("INT8", b"\x01", [1], name="z"), "input 'z' is unknown"),
        (raw("INT8", b"\x01", [1, 1]), r"shape must be \[rows\], got \[1, 1\]"),
        (raw("INT8", b"\x01", [-1]), "1 to 16 rows, got -1"),
        (raw("INT8", b"\x01" * 17, [17]), "1 to 16 rows, got 17"),
        (raw("UINT8", b"\x01", [1]), "datatype must be INT8, got 'UINT8'"),
        (raw("INT8", b"\x01\x02", [1]), "takes 1 bytes, got binary data of 2"),
        (twice(raw("INT8", b"\x01", [1])), "given twice"),
        (both(raw("INT8", b"\x01", [1])), "contents or raw_input_contents, got both"),
        (neither(raw("INT8", b"\x01", [1])), "contents or raw_input_contents, got neither"),
        (theirs.ModelInferRequest(raw_input_contents=[b""]), "for each of 0 inputs, got 1"),
        (typed("INT32", [1], [1]), "datatype must be INT8"),
        (parameter("request", "timeout", int64_param=-1), "timeout must be an integer"),
        (parameter("request", "timeout", string_param="1"), "timeout must be an integer"),
        (parameter("request", "priority", uint64_param=2**63), "priority must be an integer of 1"),
        (parameter("request", "priority", bool_param=True), "priority must be an integer of 1"),
        (parameter("request", "cascade_max_cost", double_param=float("nan")), "cascade_max_cost must be a number above 0"),
        (parameter("request", "cascade_tenant", string_param=""), "cascade_tenant must be a string"),
        (parameter("request", "anything"), "'anything' must be a string, number or boolean, got none"),
        (parameter("input", "shared_memory_region", string_param="r"), "shared_memory_region is not supported"),
        (parameter("output", "classification", int64_param=3), "classification is not supported"),
    ],
)
def test_a_wrong_request_is_refused_with_what_was_expected_and_what_came(message, mentions):
    with pytest.raises(BadRequest, match=mentions):
        decode(message, one_input("INT8"))


@pytest.mark.parametrize(
    ("message", "signature", "mentions"),
    [
        (typed("INT32", [300]), "INT8", "datatype must be INT8"),
        (typed("UINT8", [256]), "UINT8", "element 0: UINT8 takes 0 to 255, got 256"),
        (typed("INT16", [1, -32769]), "INT16", "element 1: INT16 takes -32768 to 32767, got -32769"),
        (typed("FP32", [1.0, 2.0], [1]), "FP32", "has 1 elements, got 2 fp32_contents"),
        (typed("FP64", [np.inf]), "FP64", "row 0: values must be finite"),
        (typed("FP32", [np.nan]), "FP32", "row 0: values must be finite"),
    ],
)
def test_wrong_typed_contents_are_refused(message, signature, mentions):
    with pytest.raises(BadRequest, match=mentions):
        decode(message, one_input(signature))


def test_typed_contents_in_the_field_of_another_datatype_are_refused():
    message = typed("FP32", [1.0])
    message.inputs[0].datatype = "FP64"
    with pytest.raises(BadRequest, match="the contents of FP64 are fp64_contents, got fp32_contents"):
        decode(message, one_input("FP64"))
    message.inputs[0].datatype = "FP16"
    with pytest.raises(BadRequest, match="FP16 has no typed contents, send it in raw_input_contents"):
        decode(message, one_input("FP16"))
    message.inputs[0].ClearField("contents")
    message.inputs[0].contents.SetInParent()
    message.inputs[0].datatype = "FP32"
    with pytest.raises(BadRequest, match="are fp32_contents, got none"):
        decode(message, one_input("FP32"))


def test_values_that_are_not_finite_are_refused_raw_as_well():
    with pytest.raises(BadRequest, match="row 1: values must be finite"):
        decode(raw("FP16", np.array([0, np.inf], np.float16).tobytes(), [2]), one_input("FP16"))


@pytest.mark.parametrize("kind", [ModelInferRequest, ServerLiveRequest])
def test_bytes_that_are_no_message_are_refused(kind):
    with pytest.raises(BadRequest, match=f"the 3 bytes are no {kind.DESCRIPTOR.name}"):
        read_message(kind, b"\x0a\xff\x01")


# -- anything at all ---------------------------------------------------------------------------------------------------


def decode_or_refuse(payload: bytes, signature: Signature) -> None:
    """Decode bytes and check the promises that hold for every request."""
    try:
        request = decode_request(read_message(ModelInferRequest, payload), signature, LIMITS)
    except BadRequest:
        return
    assert list(request.inputs) == [spec.name for spec in signature.inputs]
    for spec in signature.inputs:
        array = request.inputs[spec.name]
        assert array.dtype == spec.dtype
        assert array.shape[0] == request.rows <= LIMITS.max_rows
        assert all(got == dim or dim == -1 for got, dim in zip(array.shape[1:], spec.shape, strict=True))
    outputs = [
        (output.spec, np.zeros((1, *(abs(dim) for dim in output.spec.shape)), output.spec.dtype), output.binary)
        for output in request.outputs
        if output.spec.datatype is not Datatype.BYTES
    ]
    encode_response("m", "1", outputs, request_id=request.id, parameters=request.parameters)


signatures = st.sampled_from([FASHION, TWO_IN_TWO_OUT, one_input("BYTES", -1, -1), one_input("BOOL"), one_input("INT8", 2)])
names = st.sampled_from(["x", "image", "tokens", "scale", "y", ""]) | st.text(max_size=3)
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 20)
parameter_values = st.one_of(
    st.builds(theirs.InferParameter),
    st.builds(theirs.InferParameter, bool_param=st.booleans()),
    st.builds(theirs.InferParameter, int64_param=numbers),
    st.builds(theirs.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(theirs.InferParameter, double_param=st.floats()),
    st.builds(theirs.InferParameter, string_param=st.text(max_size=5)),
)
parameters = st.dictionaries(
    st.sampled_from(
        ["timeout", "priority", "cascade_max_cost", "cascade_min_confidence", "cascade_tenant", "classification", "z"]
    ),
    parameter_values,
    max_size=2,
)
contents = st.builds(
    theirs.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    uint_contents=st.lists(st.integers(0, 300), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=3),
)


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    """A message of the right kind with anything in its fields, perhaps cut or followed by something."""
    tensor = theirs.ModelInferRequest.InferInputTensor
    inputs = st.builds(
        tensor,
        name=names,
        datatype=st.sampled_from([*Datatype, "", "fp32"]),
        shape=st.lists(numbers, max_size=3),
        parameters=parameters,
        contents=st.none() | contents,
    )
    output = st.builds(theirs.ModelInferRequest.InferRequestedOutputTensor, name=names, parameters=parameters)
    message = theirs.ModelInferRequest(
        id=draw(st.text(max_size=3)),
        parameters=draw(parameters),
        inputs=draw(st.lists(inputs, max_size=3)),
        outputs=draw(st.just([]) | st.lists(output, max_size=2)),
        raw_input_contents=draw(st.lists(st.binary(max_size=20), max_size=3)),
    )
    payload: bytes = message.SerializeToString()
    return payload[: draw(st.integers(0, len(payload)))] if draw(st.booleans()) else payload + draw(st.binary(max_size=3))


@thorough
@given(st.binary(max_size=2000), signatures)
@example(b"\xff" * 784, FASHION)
@example(b"", FASHION)
@example(b"\x0b" * 5000, FASHION)
def test_any_bytes_are_decoded_or_refused(payload, signature):
    decode_or_refuse(payload, signature)


@thorough
@given(nearly_requests(), signatures)
def test_any_message_is_decoded_or_refused(payload, signature):
    decode_or_refuse(payload, signature)


@thorough
@given(st.integers(0, 90), st.integers(0, 255), st.booleans())
def test_a_good_request_with_a_wrong_byte_is_decoded_or_refused(position, byte, is_typed):
    message = typed("INT8", [[1, 2]]) if is_typed else raw("INT8", b"\x01\x02", [1, 2])
    payload = bytearray(message.SerializeToString())
    payload[position % len(payload)] = byte
    decode_or_refuse(bytes(payload), one_input("INT8", 2))


def test_an_empty_answer_is_a_message():
    assert ModelInferResponse.FromString(encode_response("", "", []).SerializeToString()) == ModelInferResponse()


@pytest.mark.parametrize("form", [raw, typed])
def test_bytes_that_are_no_text_are_refused_where_text_was_declared(form):
    signature = Signature("m", "1", (TensorSpec("x", "BYTES", (), text=True),), (TensorSpec("y", "FP32", ()),))

    def request(text: bytes) -> Any:
        if form is raw:
            return raw("BYTES", len(text).to_bytes(4, "little") + text, [1])
        return typed("BYTES", np.array([text], dtype=object), [1])

    assert decode(request("ä".encode()), signature).inputs["x"].tolist() == ["ä".encode()]
    with pytest.raises(BadRequest, match="input 'x', row 0: text must be UTF-8, got invalid start byte at byte 0"):
        decode(request(b"\xff"), signature)


def test_an_answer_of_a_stream_is_read_by_tritonclient():
    request = decode(
        triton_request([triton_input("x", "INT8", np.ones((1, 2), np.int8))], request_id="7"), one_input("INT8", 2)
    )
    spec = TensorSpec("y", Datatype.FP32, ())
    event = shown_event(
        "m", "1", [(spec, np.array([0.5], np.float32), True)], request, {"cascade_final": False}, final=False
    )
    theirs_read = theirs.ModelStreamInferResponse.FromString(event.SerializeToString())
    assert theirs_read.error_message == ""
    result = triton.InferResult(theirs_read.infer_response)
    assert result.as_numpy(spec.name).tolist() == [0.5]
    assert result.get_response().id == "7"
    assert dict(result.get_response().parameters).keys() == {"cascade_final"}


@pytest.mark.parametrize(("value", "marked"), [(True, True), (False, False), ("yes", False)])
def test_an_answer_of_a_stream_has_tritons_mark_where_it_is_asked_for(value, marked):
    message = raw("INT8", b"\x01", [1])
    if isinstance(value, bool):
        message.parameters["triton_enable_empty_final_response"].bool_param = value
    else:
        message.parameters["triton_enable_empty_final_response"].string_param = value
    event = shown_event("m", "1", [], decode(message, one_input("INT8")), {}, final=True)
    assert ("triton_final_response" in event.infer_response.parameters) is marked


@pytest.mark.parametrize("request_id", ["7", "", None])
def test_an_error_of_a_stream_is_read_by_tritonclient(request_id):
    event = failed_event(Overloaded("come later", 3), "m", request_id)
    read = theirs.ModelStreamInferResponse.FromString(event.SerializeToString())
    assert read.error_message == ("[request id: 7] " if request_id else "") + "Overloaded: come later"
    assert read.infer_response.id == (request_id or "")
    parameters = read.infer_response.parameters
    assert parameters["cascade_code"].string_param == "overloaded"
    assert parameters["cascade_retry_after"].int64_param == 3
    assert parameters["cascade_final"].bool_param


def test_an_error_of_a_stream_shows_nothing_of_what_went_wrong_inside():
    event = failed_event(KeyError("secret"), "m", "7")
    assert "secret" not in str(event)
    assert event.infer_response.parameters["cascade_code"].string_param == "internal"
