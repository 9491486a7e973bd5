"""Labelled rows: the ``.npz`` files beside a spec. Knows the spec's inputs; loads no model and needs no torch."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cascade.errors import ConfigError
from cascade.spec import Ladder
from cascade.wire.tensors import Datatype


def read_rows(ladder: Ladder, path: Path) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Read labelled rows.

    Args:
        ladder: says which inputs there are.
        path: ``.npz`` with one array [N, *row] for each input (BYTES as fixed-width strings), and ``labels`` [N].

    Returns:
        The inputs by name, and the labels, int64.

    Raises:
        ConfigError: the file or an array in it is not as the spec says.
    """
    arrays = _archive(path)
    for field in ladder.spec.inputs:
        array = arrays.get(field.name)
        if array is None:
            raise ConfigError(f"{path}: no array {field.name!r}, it has {', '.join(arrays) or 'none'}")
        if field.datatype is Datatype.BYTES:
            array = arrays[field.name] = _as_objects(array)
        if array.shape[1:] != field.shape or array.dtype != field.tensor.dtype:
            raise ConfigError(
                f"{path}: {field.name!r} must be {field.tensor.dtype} [rows, {', '.join(map(str, field.shape))}], "
                f"got {array.dtype} {list(array.shape)}"
            )
    inputs = {field.name: arrays[field.name] for field in ladder.spec.inputs}
    return inputs, _labels(path, arrays, inputs, len(ladder.spec.labels))


def read_unspecified_rows(
    path: Path, names: Sequence[str] | None = None
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Read labelled rows of which no spec says what is in them.

    Args:
        path: ``.npz`` as for `read_rows`.
        names: the inputs, in the order in which the network takes them; by default all arrays but ``labels``, in the file's.

    Returns:
        The inputs by name, BYTES as arrays of objects, and the labels, int64.

    Raises:
        ConfigError: the file or an array in it cannot be used.
    """
    arrays = _archive(path)
    names = [name for name in arrays if name != "labels"] if names is None else names
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: an input is named twice: {', '.join(names)}")
    if not names:
        raise ConfigError(f"{path}: no inputs, it has {', '.join(arrays) or 'nothing'}")
    for name in names:
        if name not in arrays:
            raise ConfigError(f"{path}: no array {name!r}, it has {', '.join(arrays) or 'none'}")
    inputs = {name: _as_objects(arrays[name]) for name in names}
    return inputs, _labels(path, arrays, inputs, None)


def _archive(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ConfigError(f"{path}: expected an .npz archive of named arrays, got a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {error}") from error


def _as_objects(array: NDArray[Any]) -> NDArray[Any]:
    """An array of BYTES as networks take it. A file may not hold objects, so BYTES lie in it as fixed-width strings."""
    if array.dtype.kind not in "SU":
        return array
    as_bytes = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
    return as_bytes.astype(object)


def _labels(
    path: Path, arrays: dict[str, NDArray[Any]], inputs: dict[str, NDArray[Any]], classes: int | None
) -> NDArray[np.int64]:
    labels = arrays.get("labels")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(f"{path}: 'labels' must be whole numbers [rows]")
    if len(labels) == 0 or labels.min() < 0 or (classes is not None and labels.max() >= classes):
        limits = "must not be negative" if classes is None else f"must lie in 0..{classes - 1}"
        raise ConfigError(f"{path}: 'labels' {limits}, and there must be some")
    for name, array in inputs.items():
        if array.ndim == 0 or len(array) != len(labels):
            rows = "no" if array.ndim == 0 else len(array)
            raise ConfigError(f"{path}: {name!r} has {rows} rows, 'labels' has {len(labels)}")
    return labels.astype(np.int64)
