"""One tensor from the typed contents of a protobuf message and back: a list of elements in row-major order.

Knows the declaration of a tensor and a contents message; nothing of other messages, stages or time. Whatever the contents
are, reading returns an array that fits the declaration or raises BadRequest.
"""

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cascade.errors import BadRequest
from cascade.wire.tensors import Array, Datatype, TensorSpec, brief, object_array

_FIELDS: Final[dict[Datatype, tuple[str, npt.DTypeLike]]] = {
    Datatype.BOOL: ("bool_contents", np.bool_),
    Datatype.UINT8: ("uint_contents", np.uint32),
    Datatype.UINT16: ("uint_contents", np.uint32),
    Datatype.UINT32: ("uint_contents", np.uint32),
    Datatype.UINT64: ("uint64_contents", np.uint64),
    Datatype.INT8: ("int_contents", np.int32),
    Datatype.INT16: ("int_contents", np.int32),
    Datatype.INT32: ("int_contents", np.int32),
    Datatype.INT64: ("int64_contents", np.int64),
    Datatype.FP32: ("fp32_contents", np.float32),
    Datatype.FP64: ("fp64_contents", np.float64),
    Datatype.BYTES: ("bytes_contents", object),
}
"""Which field holds the elements of each datatype, and as what. The 16-bit floats have none: they travel raw."""


def has_typed_form(spec: TensorSpec) -> bool:
    """Whether a tensor can travel as typed contents at all."""
    return spec.datatype in _FIELDS


def from_typed(spec: TensorSpec, shape: list[int], contents: Any) -> Array:
    """Reads a tensor from an ``InferTensorContents``.

    Args:
        spec: the declaration.
        shape: a shape that ``rows_of`` accepted.
        contents: the message.

    Returns:
        An array of ``shape``.

    Raises:
        BadRequest: a datatype without a typed form, elements in another field than the datatype's, miscounted ones, or one
            out of the datatype's range.
    """
    if spec.datatype not in _FIELDS:
        raise BadRequest(f"input {spec.name!r}: {spec.datatype} has no typed contents, send it in raw_input_contents")
    wanted, carrier = _FIELDS[spec.datatype]
    given = [field.name for field, _ in contents.ListFields()]
    if given != [wanted]:
        got = " and ".join(given) or "none"
        raise BadRequest(f"input {spec.name!r}: the contents of {spec.datatype} are {wanted}, got {got}")
    elements = getattr(contents, wanted)
    count = prod(shape)
    if len(elements) != count:
        raise BadRequest(f"input {spec.name!r}: shape {shape} has {count} elements, got {len(elements)} {wanted}")
    if spec.datatype is Datatype.BYTES:
        return object_array(list(elements), shape)
    array: Array = np.fromiter(elements, carrier, count)
    if array.dtype != spec.dtype:  # an integer that travels in a wider one
        bounds = np.iinfo(spec.dtype)
        outside = (array < bounds.min) | (array > bounds.max)
        if outside.any():
            index = int(np.argmax(outside))
            raise BadRequest(
                f"input {spec.name!r}, element {index}: {spec.datatype} takes {bounds.min} to {bounds.max}, "
                f"got {brief(int(array[index]))}"
            )
        array = array.astype(spec.dtype)
    return array.reshape(shape)


def to_typed(spec: TensorSpec, array: Array, contents: Any) -> None:
    """Writes a tensor into an ``InferTensorContents``.

    Args:
        spec: the declaration, of a datatype that has a typed form; the array is converted to it where it has another.
        array: the tensor.
        contents: the message to fill.
    """
    name, _ = _FIELDS[spec.datatype]
    getattr(contents, name).extend(np.asarray(array, dtype=spec.dtype).ravel().tolist())
