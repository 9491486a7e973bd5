"""One tensor from the JSON member ``data`` and back.

Knows the declaration of a tensor and values that a JSON parser made; nothing of messages, HTTP, stages or time. Whatever
the values are, reading returns an array that fits the declaration or raises BadRequest.
"""

from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np

from cascade.errors import BadRequest
from cascade.wire.tensors import Array, Datatype, TensorSpec, brief, object_array

_INTEGERS: Final[tuple[str, frozenset[type]]] = ("integers", frozenset({int}))
_NUMBERS: Final[tuple[str, frozenset[type]]] = ("numbers", frozenset({int, float}))
_JSON_TYPES: Final[dict[Datatype, tuple[str, frozenset[type]]]] = {
    Datatype.BOOL: ("true or false", frozenset({bool})),
    Datatype.BYTES: ("strings", frozenset({str})),
    Datatype.FP16: _NUMBERS,
    Datatype.FP32: _NUMBERS,
    Datatype.FP64: _NUMBERS,
}


def from_json(spec: TensorSpec, shape: list[int], data: object) -> Array:
    """Reads a tensor from the member ``data``: flat in row-major order, or nested exactly as the shape says.

    Whole numbers are taken for floats; fractions are not taken for integers, nor booleans for numbers or the reverse.
    BYTES are JSON strings and become their UTF-8 bytes.

    Args:
        spec: the declaration.
        shape: a shape that ``rows_of`` accepted.
        data: the member as JSON gave it.

    Returns:
        An array of ``shape``.

    Raises:
        BadRequest: ragged or miscounted data, an element of another type or out of the datatype's range, or BF16.
    """
    if spec.datatype is Datatype.BF16:
        raise BadRequest(f"input {spec.name!r}: BF16 has no JSON form, send it as binary data")
    flat = _flattened(spec, shape, data)
    wanted, types = _JSON_TYPES.get(spec.datatype, _INTEGERS)
    if not types.issuperset(map(type, flat)):
        index = next(i for i, value in enumerate(flat) if type(value) not in types)
        raise BadRequest(f"{_place(spec, shape, index)}: {spec.datatype} takes {wanted}, got {brief(flat[index])}")
    if spec.datatype is Datatype.BYTES:
        return object_array([text.encode() for text in flat], shape)
    if spec.is_float:
        return _floats(spec, shape, flat)
    if spec.datatype is not Datatype.BOOL:
        bounds = np.iinfo(spec.dtype)
        if min(flat) < bounds.min or max(flat) > bounds.max:
            index = next(i for i, value in enumerate(flat) if not bounds.min <= value <= bounds.max)
            raise BadRequest(
                f"{_place(spec, shape, index)}: {spec.datatype} holds {bounds.min} to {bounds.max}, got {flat[index]}"
            )
    return np.array(flat, dtype=spec.dtype).reshape(shape)


def _place(spec: TensorSpec, shape: list[int], index: int) -> str:
    return f"input {spec.name!r}, row {index // prod(shape[1:])}"


def _floats(spec: TensorSpec, shape: list[int], flat: list[Any]) -> Array:
    # JSON has no infinities, so one that appears came from a number beyond the datatype's range.
    with np.errstate(over="ignore"):
        array = np.array(flat, dtype=np.float64).astype(spec.dtype)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite))
        raise BadRequest(f"{_place(spec, shape, index)}: {brief(flat[index])} is out of the range of {spec.datatype}")
    return array.reshape(shape)


def _flattened(spec: TensorSpec, shape: list[int], data: object) -> list[Any]:
    if type(data) is not list:
        raise BadRequest(f"input {spec.name!r}: data must be a list of {prod(shape)} elements, got {brief(data)}")
    if not data or type(data[0]) is not list:
        if len(data) != prod(shape):
            raise BadRequest(f"input {spec.name!r}: shape {shape} has {prod(shape)} elements, got {len(data)} in data")
        return data
    if len(data) != shape[0]:
        raise BadRequest(f"input {spec.name!r}: nested data must hold {shape[0]} rows, got {len(data)}")
    level: list[Any] = data
    for depth, dim in enumerate(shape[1:], start=1):
        if set(map(type, level)) != {list}:
            got = next(item for item in level if type(item) is not list)
            raise BadRequest(f"input {spec.name!r}: nested data must be lists at depth {depth}, got {brief(got)}")
        if set(map(len, level)) != {dim}:
            got = next(item for item in level if len(item) != dim)
            raise BadRequest(f"input {spec.name!r}: lists at depth {depth} must hold {dim} elements, got {len(got)}")
        level = list(chain.from_iterable(level))
    return level


def to_json(spec: TensorSpec, array: Array) -> Any:
    """Writes a tensor as the member ``data``: flat, row-major, for an encoder that knows numpy arrays.

    FP16 becomes numbers and BF16 is widened to FP32 without loss. JSON has no NaN and no infinities: they become null.

    Args:
        spec: the declaration.
        array: the tensor.

    Returns:
        A contiguous one-dimensional array, or a list of strings for BYTES.

    Raises:
        BadRequest: BYTES that are not UTF-8, which JSON cannot carry; the client has to ask for binary data.
    """
    if spec.datatype is Datatype.BYTES:
        try:
            return [item.decode() for item in array.ravel()]
        except UnicodeDecodeError:
            raise BadRequest(
                f"output {spec.name!r}: the answer is not UTF-8 and cannot be given in JSON, ask for it as binary data"
            ) from None
    flat = np.asarray(array, dtype=spec.dtype, order="C").reshape(-1)
    if spec.datatype is Datatype.BF16:
        return (flat.astype("<u4") << 16).view("<f4")
    return flat
