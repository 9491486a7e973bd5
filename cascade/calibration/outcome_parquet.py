"""Outcome tables as Parquet files: one column an array, and what holds for the whole table in the schema's metadata.

pyarrow comes with the extra ``parquet`` and is imported when a file is read or written, not before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cascade.calibration.outcome_arrays import Array, text
from cascade.errors import TableError

KEY = b"cascade"
"""Metadata key of a JSON object with ``stages``, ``cost``, ``cost_unit`` and, where a stage does, ``resumes``."""
WHOLE = ("stages", "cost", "cost_unit")


def read_parquet(path: Path) -> dict[str, Array]:
    """Read the arrays of a table, named as in an npz file.

    Raises:
        TableError: pyarrow is missing, the file is none, or its metadata or a column is not of the format.
    """
    pa, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    except pa.ArrowException as error:
        raise TableError(f"{path}: is not a Parquet file: {error}") from error
    try:
        whole = json.loads((table.schema.metadata or {})[KEY])
        arrays: dict[str, Array] = {
            "stages": text(whole["stages"]),
            "cost": np.asarray(whole["cost"]),
            "cost_unit": np.array(whole["cost_unit"]),
            **({"resumes": np.asarray(whole["resumes"])} if "resumes" in whole else {}),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path}: the schema metadata needs a key 'cascade' with a JSON object of {', '.join(WHOLE)}"
        ) from error
    for name in table.column_names:
        arrays[name] = _array(pa, table[name].combine_chunks(), f"{path}: array {name}")
    return arrays


def write_parquet(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write the arrays of a table.

    Raises:
        TableError: pyarrow is missing.
    """
    pa, parquet = _pyarrow()
    of_table = [name for name in (*WHOLE, "resumes") if name in arrays]
    whole = {name: arrays[name].tolist() for name in of_table}
    columns = {}
    for name, array in arrays.items():
        if name not in of_table:
            flat = pa.array(np.ascontiguousarray(array).reshape(-1))
            columns[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(whole)})
    parquet.write_table(table, path)


def _array(pa: Any, column: Any, where: str) -> Array:
    if column.null_count:
        raise TableError(f"{where}: row {int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])} is null")
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False) if not pa.types.is_fixed_size_list(kind) else None
        width = kind.list_size if lengths is None else (int(lengths[0]) if len(lengths) else 0)
        if lengths is not None and (lengths != width).any():
            row = int(np.flatnonzero(lengths != width)[0])
            raise TableError(f"{where}: row {row} has {lengths[row]} values, row 0 has {width}")
        values = column.flatten()
        if values.null_count:
            raise TableError(f"{where}: a list holds a null")
        flat: Array = values.to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), width)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return text(column.to_pylist())
    plain: Array = column.to_numpy(zero_copy_only=False)
    return plain


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TableError("Parquet tables need pyarrow: pip install 'cascade-serve[parquet]'") from error
    return pyarrow, parquet
