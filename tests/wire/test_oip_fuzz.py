"""Whatever bytes arrive, decoding either gives arrays that fit the signature or refuses the request."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire_cases import (
    EVERY_DATATYPE,
    FASHION,
    JSON_DATATYPES,
    TWO_IN_TWO_OUT,
    arrays,
    assert_same,
    binary_message,
    json_values,
    message,
    one_input,
    ordinary,
    thorough,
)

from cascade.errors import BadRequest
from cascade.wire.encoding import compress, inflate
from cascade.wire.oip import InferRequest, Limits, Signature, decode_request
from cascade.wire.problem import problem
from cascade.wire.tensor_binary import to_binary
from cascade.wire.tensors import Datatype

LIMITS = Limits(max_rows=16)


def decode_or_refuse(body: bytes, json_length: int | None, signature: Signature) -> InferRequest | None:
    """Decodes a message and checks the promises that hold for every one."""
    refused = None
    try:
        request = decode_request(body, json_length, signature, LIMITS)
    except BadRequest as error:
        refused = error
    if refused is not None:
        reply = problem(refused)
        assert reply.status == 400
        assert orjson.loads(reply.body)["detail"] == refused.detail
        return None
    assert list(request.inputs) == [spec.name for spec in signature.inputs]
    for spec in signature.inputs:
        array = request.inputs[spec.name]
        assert array.dtype == spec.dtype
        assert array.shape[0] == request.rows <= LIMITS.max_rows
        assert all(got == dim or dim == -1 for got, dim in zip(array.shape[1:], spec.shape, strict=True))
    assert {output.spec for output in request.outputs} <= set(signature.outputs)
    assert request.timeout_s is None or 0 < request.timeout_s <= LIMITS.max_timeout_s
    assert request.priority is None or 1 <= request.priority <= LIMITS.priorities
    assert request.max_cost is None or request.max_cost > 0
    return request


signatures = st.sampled_from([FASHION, TWO_IN_TWO_OUT, EVERY_DATATYPE, one_input("BYTES", -1, -1), one_input("BOOL")])
json_lengths = st.none() | st.integers(-2, 4096)


@thorough
@given(st.binary(max_size=2000), json_lengths, signatures)
@example(b"\xff" * 784, 0, FASHION)
def test_any_bytes_are_decoded_or_refused(body, json_length, signature):
    decode_or_refuse(body, json_length, signature)


@thorough
@given(json_values, st.binary(max_size=64), signatures)
def test_any_json_is_decoded_or_refused(value, tail, signature):
    text = orjson.dumps(value)
    decode_or_refuse(text, None, signature)
    decode_or_refuse(text + tail, len(text), signature)


@st.composite
def valid_documents(draw: st.DrawFn) -> tuple[Signature, dict[str, Any], list[bytes]]:
    """A signature, a request that fits it, and the binary tensors that follow."""
    signature = draw(st.sampled_from([FASHION, TWO_IN_TWO_OUT, EVERY_DATATYPE]))
    rows = draw(st.integers(1, 3))
    inputs, raw = [], []
    for spec in signature.inputs:
        row = tuple(draw(st.integers(1, 3)) if dim == -1 else dim for dim in spec.shape)
        array = draw(arrays(spec.datatype, (rows, *row), utf8=True))
        entry: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype.value}
        if spec.datatype is Datatype.BF16 or draw(st.booleans()):
            chunk = to_binary(spec, array)
            entry["parameters"] = {"binary_data_size": len(chunk)}
            raw.append(chunk)
        elif spec.datatype is Datatype.BYTES:
            entry["data"] = [item.decode() for item in array.ravel()]
        else:
            entry["data"] = array.tolist() if draw(st.booleans()) else array.ravel().tolist()
        inputs.append(entry)
    document: dict[str, Any] = {"inputs": inputs, "id": "7"}
    document["parameters"] = {"timeout": 1000, "priority": 2, "cascade_max_cost": 0.5, "binary_data_output": True}
    document["outputs"] = [{"name": signature.outputs[0].name, "parameters": {"binary_data": False}}]
    return signature, document, raw


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON document; of a long list only the first and last element."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1}:
            found += places(value[index], (*path, index))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@ordinary
@given(valid_documents())
def test_a_valid_message_is_decoded(case):
    signature, document, raw = case
    text = orjson.dumps(document)
    request = decode_or_refuse(text + b"".join(raw), len(text), signature)
    assert request is not None
    assert (request.id, request.timeout_s, request.priority, request.max_cost) == ("7", 0.001, 2, 0.5)
    assert request.outputs == ((signature.outputs[0], False),)


strange = json_values | st.sampled_from([-1, 0, 2**63, 2**64 - 1, 1e300, "", "image", [], {}, [[]], [-1, 2, -1], [1] * 70])


@thorough
@given(valid_documents(), st.data())
def test_a_message_with_members_replaced_is_decoded_or_refused(case, data):
    signature, document, raw = case
    for _ in range(data.draw(st.integers(1, 2))):
        document = replaced(document, data.draw(st.sampled_from(places(document))), data.draw(strange))
    text = orjson.dumps(document)
    decode_or_refuse(text + b"".join(raw), len(text), signature)


@thorough
@given(valid_documents(), st.data())
def test_a_message_with_bytes_damaged_is_decoded_or_refused(case, data):
    signature, document, raw = case
    text = orjson.dumps(document)
    body = bytearray(text + b"".join(raw))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        stop = data.draw(st.integers(start, min(start + 8, len(body))))
        body[start:stop] = data.draw(st.binary(max_size=8))
    decode_or_refuse(bytes(body), data.draw(st.sampled_from([len(text), None, 0, len(body)])), signature)


def inflate_or_refuse(body: bytes, encoding: str, max_bytes: int) -> None:
    with contextlib.suppress(BadRequest):
        assert len(inflate(body, encoding, max_bytes)) <= max_bytes


@thorough
@given(st.binary(max_size=400), st.sampled_from(["gzip", "deflate", "x-gzip", "identity", "br", "gzip, deflate", "\xff"]))
def test_any_bytes_in_any_encoding_are_inflated_or_refused(body, encoding):
    inflate_or_refuse(body, encoding, 256)


@thorough
@given(st.binary(min_size=1, max_size=400), st.sampled_from(["gzip", "deflate"]), st.data())
def test_a_damaged_compressed_body_is_inflated_or_refused(body, encoding, data):
    packed = bytearray(compress(body, encoding, min_bytes=0)[0])
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    inflate_or_refuse(bytes(packed), encoding, 10_000)


@pytest.mark.parametrize("datatype", list(Datatype))
@ordinary
@given(data=st.data())
def test_every_datatype_survives_the_binary_form(datatype, data):
    array = data.draw(arrays(datatype, (2, 3)))
    signature = one_input(datatype, 3)
    raw = to_binary(signature.inputs[0], array)
    body, json_length = binary_message([raw], [{"name": "x", "shape": [2, 3], "datatype": datatype.value}])
    request = decode_or_refuse(body, json_length, signature)
    assert request is not None
    assert_same(request.inputs["x"], array)


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@ordinary
@given(data=st.data())
def test_every_datatype_survives_json(datatype, nested, data):
    array = data.draw(arrays(datatype, (2, 3), utf8=True))
    values = array if nested else array.ravel()
    listed = values.tolist()
    if datatype is Datatype.BYTES:
        listed = [[item.decode() for item in row] for row in listed] if nested else [item.decode() for item in listed]
    body = message({"name": "x", "shape": [2, 3], "datatype": datatype.value, "data": listed})
    request = decode_or_refuse(body, None, one_input(datatype, 3))
    assert request is not None
    assert_same(request.inputs["x"], array)
