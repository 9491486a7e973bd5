"""Signatures, messages and hypothesis strategies that the tests of the wire share."""

import string
from typing import Any

import numpy as np
import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.wire.oip import Signature
from cascade.wire.tensors import DTYPES, Datatype, TensorSpec

thorough = settings(deadline=None, max_examples=200)
ordinary = settings(deadline=None, max_examples=25)

FASHION = Signature(
    "fashion", "1", (TensorSpec("image", Datatype.UINT8, (28, 28)),), (TensorSpec("logits", Datatype.FP32, (10,)),)
)

TWO_IN_TWO_OUT = Signature(
    "pair",
    "3",
    (TensorSpec("tokens", Datatype.INT64, (-1,)), TensorSpec("scale", Datatype.FP32, ())),
    (TensorSpec("label", Datatype.BYTES, ()), TensorSpec("score", Datatype.FP64, (2,))),
)

EVERY_DATATYPE = Signature(
    "zoo",
    "1",
    tuple(TensorSpec(datatype.lower(), datatype, (2, -1)) for datatype in Datatype),
    tuple(TensorSpec(datatype.lower(), datatype, (2, -1)) for datatype in Datatype),
)

JSON_DATATYPES = [datatype for datatype in Datatype if datatype is not Datatype.BF16]


def one_input(datatype: str, *row: int) -> Signature:
    """A model with the input ``x`` and the output ``y`` of the same kind."""
    return Signature("m", "1", (TensorSpec("x", datatype, row),), (TensorSpec("y", datatype, row),))


def message(*inputs: dict[str, Any], **members: Any) -> bytes:
    """A request that is JSON only."""
    return orjson.dumps({"inputs": list(inputs), **members})


def tensor(data: Any, shape: list[int], datatype: str, name: str = "x", **members: Any) -> dict[str, Any]:
    """An input with its data in JSON."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **members}


def binary_message(raw: list[bytes], inputs: list[dict[str, Any]], **members: Any) -> tuple[bytes, int]:
    """A request whose inputs all follow the JSON part, and the length of that part."""
    for chunk, entry in zip(raw, inputs, strict=True):
        entry.setdefault("parameters", {"binary_data_size": len(chunk)})
    text = orjson.dumps({"inputs": inputs, **members})
    return text + b"".join(raw), len(text)


def elements(datatype: Datatype, *, utf8: bool) -> st.SearchStrategy[Any]:
    """Finite elements of a datatype; BYTES are text where JSON has to carry them."""
    if datatype is Datatype.BYTES:
        return st.text(max_size=8).map(str.encode) if utf8 else st.binary(max_size=8)
    if datatype is Datatype.BF16:
        return st.integers(0, 0x7F7F) | st.integers(0x8000, 0xFF7F)
    if datatype is Datatype.FP16:
        return (st.integers(0, 0x7BFF) | st.integers(0x8000, 0xFBFF)).map(lambda bits: np.uint16(bits).view(np.float16))
    if datatype in (Datatype.FP32, Datatype.FP64):
        return hnp.from_dtype(DTYPES[datatype], allow_nan=False, allow_infinity=False)
    return hnp.from_dtype(DTYPES[datatype])


@st.composite
def arrays(draw: st.DrawFn, datatype: Datatype, shape: tuple[int, ...], *, utf8: bool = False) -> np.ndarray:
    """Arrays of a datatype and shape."""
    if datatype is not Datatype.BYTES:
        return draw(hnp.arrays(DTYPES[datatype], shape, elements=elements(datatype, utf8=utf8)))
    count = int(np.prod(shape))
    array = np.empty(count, dtype=object)
    array[:] = draw(st.lists(elements(datatype, utf8=utf8), min_size=count, max_size=count))
    return array.reshape(shape)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable, max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, so that -0.0 is not 0.0."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if expected.dtype == object:
        assert got.ravel().tolist() == expected.ravel().tolist()
    else:
        assert got.tobytes() == expected.tobytes()
