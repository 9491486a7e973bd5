"""One tensor from its binary form and back: little-endian, row-major, without padding.

Knows the declaration of a tensor and the bytes it came in; nothing of messages, HTTP, stages or time. Whatever the bytes
are, reading returns an array that fits the declaration or raises BadRequest, and allocates in proportion to what came.
"""

from math import prod
from typing import Final

import numpy as np

from cascade.errors import BadRequest
from cascade.wire.tensors import Array, Buffer, Datatype, TensorSpec, first_row, object_array, row_shape

_LENGTH_BYTES: Final = 4


def from_binary(spec: TensorSpec, shape: list[int], body: Buffer, offset: int, size: int) -> Array:
    """Reads a tensor from its binary form, without a copy except for BYTES.

    Args:
        spec: the declaration.
        shape: a shape that ``rows_of`` accepted.
        body: the whole message.
        offset: where the tensor begins in it; ``offset + size`` lies within the body.
        size: its length in bytes.

    Returns:
        An array of ``shape``. It is a view on the body: read-only if the body is, and not necessarily aligned.

    Raises:
        BadRequest: the length does not fit the shape, a BOOL is neither 0 nor 1, or BYTES elements overrun.
    """
    if spec.datatype is Datatype.BYTES:
        return _bytes_elements(spec, shape, body, offset, size)
    expected = spec.row_bytes
    expected = prod(shape) * spec.dtype.itemsize if expected is None else shape[0] * expected
    if size != expected:
        raise BadRequest(
            f"input {spec.name!r}: shape {shape} of {spec.datatype} takes {expected} bytes, got binary data of {size}"
        )
    array: Array = np.ndarray(shape, spec.dtype, body, offset)
    if spec.datatype is Datatype.BOOL:
        codes = array.view(np.uint8)
        if codes.max() > 1:
            row = first_row(codes > 1)
            raise BadRequest(f"input {spec.name!r}, row {row}: a binary BOOL is 0 or 1, got {codes[row].max()}")
    return array


def _bytes_elements(spec: TensorSpec, shape: list[int], body: Buffer, offset: int, size: int) -> Array:
    count = prod(shape)
    if count * _LENGTH_BYTES > size:
        raise BadRequest(
            f"input {spec.name!r}: shape {shape} has {count} BYTES elements of at least {_LENGTH_BYTES} bytes each, "
            f"got binary data of {size} bytes"
        )
    end = offset + size
    elements: list[bytes] = []
    for index in range(count):
        start = offset + _LENGTH_BYTES
        stop = start + int.from_bytes(body[offset:start], "little")
        if start > end or stop > end:
            raise BadRequest(
                f"input {spec.name!r}: BYTES element {index} of {count} ends {max(start, stop) - end} bytes after the "
                f"binary data of {size} bytes"
            )
        elements.append(bytes(body[start:stop]))
        offset = stop
    if offset != end:
        raise BadRequest(f"input {spec.name!r}: {end - offset} bytes are left after its {count} BYTES elements")
    return object_array(elements, shape)


def from_raw(spec: TensorSpec, body: Buffer) -> Array:
    """Reads a body that is one row of one tensor and nothing else (a JSON length of 0).

    For BYTES the body is the single element itself, without a length before it, as Triton has it.

    Args:
        spec: the declaration of the model's only input.
        body: the whole message.

    Returns:
        An array of shape ``[1, *row]``; one dimension of -1 is deduced from the length.

    Raises:
        BadRequest: the length is not that of a row, or the row's shape cannot be deduced.
    """
    wild = spec.shape.count(-1)
    fixed = prod(dim for dim in spec.shape if dim != -1)
    if spec.datatype is Datatype.BYTES:
        if fixed != 1:
            raise BadRequest(f"input {spec.name!r}: a raw body is one BYTES element, a row has shape {row_shape(spec)}")
        return object_array([bytes(body)], [1, *(1 for _ in spec.shape)])
    if wild > 1:
        raise BadRequest(f"input {spec.name!r}: a raw body leaves no more than one dimension open, not {row_shape(spec)}")
    unit = fixed * spec.dtype.itemsize
    size = len(body)
    if size == 0 or size % unit or (wild == 0 and size != unit):
        wanted = f"a multiple of {unit}" if wild else f"{unit}"
        raise BadRequest(f"input {spec.name!r}: a raw body of one {spec.datatype} row takes {wanted} bytes, got {size}")
    return from_binary(spec, [1, *(size // unit if dim == -1 else dim for dim in spec.shape)], body, 0, size)


def to_binary(spec: TensorSpec, array: Array) -> bytes:
    """Writes a tensor in its binary form: little-endian, row-major; BYTES with a four-byte length before each.

    Args:
        spec: the declaration; the array is converted to its type where it has another.
        array: the tensor.

    Returns:
        The bytes that follow the JSON part.
    """
    if spec.datatype is not Datatype.BYTES:
        return np.asarray(array, dtype=spec.dtype).tobytes()
    return b"".join(len(item).to_bytes(_LENGTH_BYTES, "little") + item for item in array.ravel())
