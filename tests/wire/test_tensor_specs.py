"""What a tensor and a signature may declare."""

import pytest

from cascade.errors import SpecError
from cascade.wire.oip import Signature
from cascade.wire.tensors import Datatype, TensorSpec


def test_a_datatype_given_as_a_plain_string_becomes_the_enum():
    spec = TensorSpec("x", "FP32", [3, 4])
    assert spec.datatype is Datatype.FP32
    assert spec.shape == (3, 4)
    assert spec == TensorSpec("x", Datatype.FP32, (3, 4))
    assert hash(spec) == hash(TensorSpec("x", Datatype.FP32, (3, 4)))


@pytest.mark.parametrize(
    ("datatype", "shape", "row_bytes"),
    [("UINT8", (28, 28), 784), ("FP64", (), 8), ("BF16", (3,), 6), ("FP32", (-1,), None), ("BYTES", (2,), None)],
)
def test_the_bytes_of_a_row_are_known_where_the_declaration_fixes_them(datatype, shape, row_bytes):
    assert TensorSpec("x", datatype, shape).row_bytes == row_bytes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("", "FP32", (1,)), "needs a name"),
        (("x", "FP8", (1,)), "'x': datatype must be one of BOOL, .*, got 'FP8'"),
        (("x", "FP32", (0,)), r"'x': dimensions must be positive or -1, got \[0\]"),
        (("x", "FP32", (3, -2)), r"got \[3, -2\]"),
        (("x", "FP32", (1,) * 32), "at most 31 dimensions, got 32"),
        (("x", "FP32", (), True), "'x': text travels as BYTES, not as FP32"),
    ],
)
def test_a_wrong_declaration_is_refused_with_field_and_value(arguments, says):
    with pytest.raises(SpecError, match=says):
        TensorSpec(*arguments)


X, Y = TensorSpec("x", "FP32", ()), TensorSpec("y", "FP32", ())


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ((), (Y,), "inputs must declare at least one"),
        ((X,), (), "outputs must declare at least one"),
        ((X, X), (Y,), r"inputs must have different names, got \['x', 'x'\]"),
        ((X,), (Y, Y), "outputs must have different names"),
    ],
)
def test_a_wrong_signature_is_refused(inputs, outputs, says):
    with pytest.raises(SpecError, match=says):
        Signature("m", "1", inputs, outputs)


def test_signatures_compare_and_hash_by_what_they_declare():
    first, second = (Signature("m", "1", (X,), (Y,)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != Signature("m", "2", (X,), (Y,))
