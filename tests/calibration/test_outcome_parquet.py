"""Outcome tables as Parquet: the same table, and one clear error for what is none."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from table_cases import every_form

from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import TableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "outcomes.parquet"
    OutcomeTable.from_arrays(every_form()).write(path)
    return path


def rewrite(path: Path, name: str, column: pa.Array) -> None:
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(table.column_names.index(name), name, column), path)


def test_a_table_read_back_is_the_same_table(path: Path) -> None:
    assert OutcomeTable.read(path).digest() == OutcomeTable.from_arrays(every_form()).digest()


def test_lists_of_any_kind_and_dictionary_texts_are_read(path: Path) -> None:
    probs = every_form()["probs/small"]
    rewrite(path, "probs/small", pa.array([row.tolist() for row in probs], type=pa.list_(pa.float32())))
    rewrite(path, "group", pa.array(every_form()["group"].tolist()).dictionary_encode())
    assert OutcomeTable.read(path).digest() == OutcomeTable.from_arrays(every_form()).digest()


def test_a_ragged_list_names_its_row(path: Path) -> None:
    lists = [row.tolist() for row in every_form()["probs/small"]]
    lists[7] = lists[7][:2]
    rewrite(path, "probs/small", pa.array(lists, type=pa.list_(pa.float32())))
    with pytest.raises(TableError, match="array probs/small: row 7 has 2 values, row 0 has 4"):
        OutcomeTable.read(path)


def test_a_null_names_its_row(path: Path) -> None:
    rewrite(path, "labels", pa.array([None if row == 3 else 0 for row in range(40)], type=pa.int64()))
    with pytest.raises(TableError, match="array labels: row 3 is null"):
        OutcomeTable.read(path)


def test_the_rules_of_the_format_hold_here_too(path: Path) -> None:
    rewrite(path, "score/medium", pa.array(np.full(40, np.nan)))
    with pytest.raises(TableError, match="score/medium"):
        OutcomeTable.read(path)


@pytest.mark.parametrize(
    "metadata", [None, {}, {b"cascade": b"no json"}, {b"cascade": json.dumps({"stages": ["a"]}).encode()}]
)
def test_missing_metadata_say_what_is_expected(path: Path, metadata: dict[bytes, bytes] | None) -> None:
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(TableError, match="needs a key 'cascade' with a JSON object of stages, cost, cost_unit"):
        OutcomeTable.read(path)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.parquet"
    with pytest.raises(TableError, match="cannot be read"):
        OutcomeTable.read(path)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(TableError, match="is not a Parquet file"):
        OutcomeTable.read(path)
