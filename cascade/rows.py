"""Labelled rows: the ``.npz`` files beside a spec. Knows the spec's inputs; loads no model and needs no torch."""

import zlib
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
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ConfigError(f"{path}: expected an .npz archive of named arrays, got a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {error}") from error
    for field in ladder.spec.inputs:
        array = arrays.get(field.name)
        if array is None:
            raise ConfigError(f"{path}: no array {field.name!r}, it has {', '.join(arrays) or 'none'}")
        if field.datatype is Datatype.BYTES and array.dtype.kind in "SU":
            # A file may not hold objects, so BYTES lie in it as fixed-width strings.
            as_bytes = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
            array = arrays[field.name] = as_bytes.astype(object)
        if array.shape[1:] != field.shape or array.dtype != field.tensor.dtype:
            raise ConfigError(
                f"{path}: {field.name!r} must be {field.tensor.dtype} [rows, {', '.join(map(str, field.shape))}], "
                f"got {array.dtype} {list(array.shape)}"
            )
    labels = arrays.get("labels")
    classes = len(ladder.spec.labels)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(f"{path}: 'labels' must be whole numbers [rows]")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"{path}: 'labels' must lie in 0..{classes - 1}, and there must be some")
    inputs = {field.name: arrays[field.name] for field in ladder.spec.inputs}
    for name, array in inputs.items():
        if len(array) != len(labels):
            raise ConfigError(f"{path}: {name!r} has {len(array)} rows, 'labels' has {len(labels)}")
    return inputs, labels.astype(np.int64)
