"""Tensors of the Open Inference Protocol: what a model declares, and whether a client's shape and values fit it.

Knows nothing of how elements travel, of messages, HTTP, stages or time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cascade.errors import BadRequest, SpecError

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview


class Datatype(StrEnum):
    """Element types of the protocol.

    BYTES are numpy object arrays of ``bytes``. BF16 has no numpy type: it travels as the uint16 that holds its bits, and
    a client can send it as binary data only.
    """

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"


DTYPES: Final[dict[Datatype, np.dtype[Any]]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BF16: np.dtype("<u2"),
    Datatype.BYTES: np.dtype(object),
}
"""The numpy type of each datatype. Little-endian, because the wire is."""

FLOATS: Final = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64, Datatype.BF16})

_BF16_EXPONENT: Final = 0x7F80
_BRIEF_CHARS: Final = 60
_MAX_ROW_RANK: Final = 31


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One declared tensor of a model.

    Attributes:
        name: what clients call it.
        datatype: type of its elements; a plain string such as ``"FP32"`` is taken too.
        shape: dimensions of one row, without the batch dimension; -1 where a client may choose, at least 1.
        text: whether its BYTES are UTF-8.
        dtype: numpy type of the arrays (derived).
        fixed_dims: ``shape`` as the list that JSON decodes to, None if a client may choose any of it (derived).
        row_bytes: bytes of one row, or None where that depends on the data (derived).
        is_float: whether NaN and infinities exist for it (derived).

    Raises:
        SpecError: an unknown datatype, an empty name, a dimension that is neither positive nor -1, more dimensions than
            numpy holds, or text that is not BYTES.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    text: bool = False
    dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    fixed_dims: list[int] | None = field(init=False, repr=False, compare=False)
    row_bytes: int | None = field(init=False, repr=False, compare=False)
    is_float: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise SpecError("a tensor needs a name, got an empty one")
        if self.datatype not in DTYPES:
            raise SpecError(f"tensor {self.name!r}: datatype must be one of {', '.join(Datatype)}, got {self.datatype!r}")
        if len(self.shape) > _MAX_ROW_RANK:
            raise SpecError(f"tensor {self.name!r}: a row has at most {_MAX_ROW_RANK} dimensions, got {len(self.shape)}")
        if any(dim < 1 and dim != -1 for dim in self.shape):
            raise SpecError(f"tensor {self.name!r}: dimensions must be positive or -1, got {list(self.shape)}")
        if self.text and self.datatype != Datatype.BYTES:
            raise SpecError(f"tensor {self.name!r}: text travels as BYTES, not as {self.datatype}")
        datatype = Datatype(self.datatype)
        dtype = DTYPES[datatype]
        sized = datatype is not Datatype.BYTES and -1 not in self.shape
        derive = object.__setattr__
        derive(self, "datatype", datatype)
        derive(self, "shape", tuple(self.shape))
        derive(self, "dtype", dtype)
        derive(self, "fixed_dims", None if -1 in self.shape else list(self.shape))
        derive(self, "row_bytes", prod(self.shape) * dtype.itemsize if sized else None)
        derive(self, "is_float", datatype in FLOATS)


def brief(value: object) -> str:
    """Describes a value out of a client's JSON in a few words, however large or deep it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str) and len(value) > _BRIEF_CHARS:
        return repr(value[:_BRIEF_CHARS]) + "..."
    return repr(value)


def names(given: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, given))


def declared(name: str, role: str, specs: Mapping[str, TensorSpec], taken: Iterable[str]) -> TensorSpec:
    """The declaration that a tensor of a request refers to.

    Args:
        name: what the client calls it.
        role: ``input`` or ``output``.
        specs: the model's declarations of that role.
        taken: names that the request has used already.

    Raises:
        BadRequest: there is none of that name, or it is given twice.
    """
    spec = specs.get(name)
    if spec is None:
        raise BadRequest(f"{role} {brief(name)} is unknown, the model's {role}s are {names(specs)}")
    if name in taken:
        raise BadRequest(f"{role} {name!r} is given twice")
    return spec


def rows_of_input(spec: TensorSpec, datatype: object, shape: object, max_rows: int, rows: int) -> int:
    """Checks datatype and shape of an input, and that it has as many rows as those before it.

    Args:
        spec: the declaration.
        datatype: as the client gives it.
        shape: the same.
        max_rows: most rows that one request may hold.
        rows: rows of the inputs before it, 0 if it is the first.

    Returns:
        Its rows.

    Raises:
        BadRequest: something else than was declared, or another number of rows.
    """
    if datatype != spec.datatype:
        raise BadRequest(f"input {spec.name!r}: datatype must be {spec.datatype}, got {brief(datatype)}")
    tensor_rows = rows_of(spec, shape, max_rows)
    if rows and tensor_rows != rows:
        raise BadRequest(f"input {spec.name!r}: all inputs hold the same number of rows, {rows}, got {tensor_rows}")
    return tensor_rows


def all_inputs(arrays: dict[str, Array], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """The inputs of a request in the order of the model's declarations.

    Raises:
        BadRequest: one is missing.
    """
    if len(arrays) != len(specs):
        missing = [name for name in specs if name not in arrays]
        raise BadRequest(f"the model's inputs are {names(specs)}, missing {names(missing)}")
    return {name: arrays[name] for name in specs} if len(arrays) > 1 else arrays


def rows_of(spec: TensorSpec, shape: object, max_rows: int) -> int:
    """Checks the shape that a client gives for a tensor.

    Args:
        spec: the declaration.
        shape: the member ``shape`` as JSON gave it.
        max_rows: most rows that one request may hold.

    Returns:
        The batch dimension.

    Raises:
        BadRequest: not a list of integers, another rank, another dimension, no rows or too many.
    """
    if type(shape) is not list or set(map(type, shape)) != {int}:
        raise BadRequest(f"input {spec.name!r}: shape must be a list of integers, {row_shape(spec)}, got {_shown(shape)}")
    if shape[1:] != spec.fixed_dims and not _fits(spec, shape):
        raise BadRequest(f"input {spec.name!r}: shape must be {row_shape(spec)}, got {_shown(shape)}")
    rows: int = shape[0]
    if not 1 <= rows <= max_rows:
        raise BadRequest(f"input {spec.name!r}: a request holds 1 to {max_rows} rows, got {rows}")
    return rows


def _fits(spec: TensorSpec, shape: list[int]) -> bool:
    return len(shape) == 1 + len(spec.shape) and all(
        got >= 1 and dim in (got, -1) for got, dim in zip(shape[1:], spec.shape, strict=True)
    )


def row_shape(spec: TensorSpec) -> str:
    """The declared shape for a message, the batch dimension written as ``rows``."""
    return "[" + ", ".join(["rows", *map(str, spec.shape)]) + "]"


def _shown(shape: object) -> str:
    """A shape for a message: spelled out while short enough to read."""
    if type(shape) is list and len(shape) <= 8:
        return "[" + ", ".join(map(brief, shape)) + "]"
    return brief(shape)


def require_finite(spec: TensorSpec, array: Array) -> None:
    """Refuses NaN and infinities, which would reach a calibrated confidence as nonsense.

    Args:
        spec: the declaration; only float datatypes are looked at.
        array: the tensor, shape ``[n, *row]``.

    Raises:
        BadRequest: names the first row that holds a value which is not finite.
    """
    if not spec.is_float:
        return
    if spec.datatype is Datatype.BF16:
        finite = (array & _BF16_EXPONENT) != _BF16_EXPONENT
    else:
        finite = np.isfinite(array)
    if not finite.all():
        raise BadRequest(f"input {spec.name!r}, row {first_row(~finite)}: values must be finite, got NaN or infinity")


def require_text(spec: TensorSpec, array: Array) -> None:
    """Refuses bytes that are not UTF-8 where text was declared: a stage would fail on them, and on whoever shares the batch.

    Args:
        spec: the declaration; only text is looked at.
        array: the tensor, shape ``[n, *row]``.

    Raises:
        BadRequest: names the first row that is not UTF-8, and where.
    """
    if not spec.text:
        return
    for index, element in enumerate(array.flat):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            row = index * len(array) // array.size
            raise BadRequest(
                f"input {spec.name!r}, row {row}: text must be UTF-8, got {error.reason} at byte {error.start}"
            ) from None


def first_row(bad: npt.NDArray[np.bool_]) -> int:
    """Index of the first row of ``[n, *row]`` in which anything is true."""
    return int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))


def object_array(elements: list[bytes], shape: list[int]) -> Array:
    """An array of BYTES elements; numpy would guess another type from the list alone."""
    array: Array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
