"""The outcome table: what is read, what is refused and with which words."""

import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from table_cases import STAGES, every_form

from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import TableError

Arrays = dict[str, NDArray[Any]]


def changed(name: str, row: Any, value: Any) -> Callable[[Arrays], None]:
    """Set one entry of one array."""

    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][row] = value

    return change


def replaced(name: str, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: np.asarray(value)})


def removed(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.pop(name)


def test_every_form_of_a_stage_gives_rightness_and_score() -> None:
    arrays = every_form()
    table = OutcomeTable.from_arrays(arrays)
    assert table.stages == STAGES
    assert table.rows == 40
    assert table.classes == 4
    assert [table.has_probs(stage) for stage in STAGES] == [True, False, False]
    np.testing.assert_array_equal(table.prediction("small"), arrays["probs/small"].argmax(axis=1))
    np.testing.assert_array_equal(table.correct("small"), arrays["probs/small"].argmax(axis=1) == arrays["labels"])
    np.testing.assert_array_equal(table.score("small"), arrays["probs/small"].max(axis=1))
    np.testing.assert_array_equal(table.correct("medium"), arrays["prediction/medium"] == arrays["labels"])
    np.testing.assert_array_equal(table.score("medium"), arrays["score/medium"])
    np.testing.assert_array_equal(table.correct("large"), arrays["correct/large"])
    assert table.group is not None
    assert table.group[1] == "south"


def test_what_a_table_does_not_hold_is_said() -> None:
    table = OutcomeTable.from_arrays(every_form())
    with pytest.raises(TableError, match="stage 'large' has no predictions in this table, only correct/large"):
        table.prediction("large")
    with pytest.raises(TableError, match=r"stage 'medium' has no probabilities in this table \(array probs/medium\)"):
        table.probs("medium")
    with pytest.raises(TableError, match="no stage 'huge' in this table; it has small, medium, large"):
        table.correct("huge")


FAULTS: list[tuple[Callable[[Arrays], Any], str]] = [
    (removed("stages"), "array stages is missing"),
    (removed("labels"), "array labels is missing"),
    (removed("cost"), "array cost is missing"),
    (removed("cost_unit"), "array cost_unit is missing"),
    (removed("score/medium"), "stage 'medium' needs probs/medium, or .* it has prediction/medium"),
    (removed("probs/small"), "stage 'small' needs probs/small, or .* it has none"),
    (replaced("score/small", np.ones(40)), "stage 'small' needs .* it has probs/small, score/small"),
    (replaced("correct/medium", np.ones(40, bool)), "stage 'medium' needs .* it has prediction/medium, score/"),
    (replaced("notes", [1]), "array notes: is not part of the format"),
    (replaced("logits/small", [1]), "array logits/small: is not part of the format"),
    (
        replaced("probs/tiny", [[0.5, 0.5]]),
        "array probs/tiny: belongs to no stage; the stages are small, medium, large",
    ),
    (replaced("stages", np.array([], dtype=str)), "array stages: names no stage"),
    (replaced("stages", [1, 2, 3]), r"array stages: expected one name a row, got int64 of shape \(3,\)"),
    (replaced("stages", ["small", "medium", "small"]), "array stages: row 2 is 'small' again"),
    (replaced("stages", ["small", "me/dium", "large"]), "array stages: row 1 is 'me/dium'; a name is printable"),
    (replaced("stages", ["", "medium", "large"]), "array stages: row 0 is ''; a name is printable"),
    (replaced("cost", [1.0, 2.0]), "array cost: has 2 entries, stages has 3"),
    (replaced("cost", [1.0, 2.0, 2.0]), r"array cost: row 2 \(large\) is 2 after 2; stages stand cheapest first"),
    (replaced("cost", [0.0, 1.0, 2.0]), r"array cost: row 0 \(small\) is 0; a cost is finite and above 0"),
    (replaced("cost", [1.0, np.nan, 2.0]), r"array cost: row 1 \(medium\) is nan; a cost is finite"),
    (replaced("cost", [[1.0, 2.0, 3.0]]), "array cost: expected one number a row"),
    (replaced("cost_unit", ["MAC"]), "array cost_unit: expected one text"),
    (replaced("cost_unit", ""), "array cost_unit: expected one text"),
    (replaced("labels", np.array([], dtype=int)), "array labels: the table has no rows"),
    (replaced("labels", np.zeros(40)), r"array labels: expected one integer a row, got float64 of shape \(40,\)"),
    (replaced("labels", np.zeros(39, int)), "array probs/small: has 40 rows, labels has 39"),
    (changed("labels", 7, -1), "array labels: row 7 is -1; classes count from 0"),
    (changed("labels", slice(8, 10), 4), "array labels: row 8 is 4; probs/small has the classes 0 to 3"),
    (replaced("labels", np.full(40, 2**63, np.uint64)), f"array labels: row 0 is {2**63}; classes count from 0"),
    (changed("prediction/medium", 3, -2), "array prediction/medium: row 3 is -2; classes count from 0"),
    (changed("prediction/medium", 3, 9), "array prediction/medium: row 3 is 9; probs/small has the classes 0 to 3"),
    (replaced("prediction/medium", np.zeros(41, int)), "array prediction/medium: has 41 rows, labels has 40"),
    (changed("score/medium", 5, np.nan), "array score/medium: row 5 is nan; scores are finite"),
    (changed("score/large", 0, np.inf), "array score/large: row 0 is inf; scores are finite"),
    (replaced("score/large", np.ones((40, 1))), r"array score/large: expected one number a row, got .* \(40, 1\)"),
    (replaced("correct/large", np.arange(40)), "array correct/large: row 2 is 2; expected 0 or 1"),
    (replaced("correct/large", np.ones(40)), "array correct/large: expected one truth value a row, got float64"),
    (changed("probs/small", (6, 2), np.nan), "array probs/small: row 6 contains NaN"),
    (changed("probs/small", (6, 2), np.inf), r"array probs/small: row 6 reaches from .* to inf; probabilities lie"),
    (changed("probs/small", 4, [-0.1, 0.5, 0.5, 0.1]), "array probs/small: row 4 reaches from -0.1 to 0.5"),
    (changed("probs/small", 4, [1.1, 0, 0, 0]), "array probs/small: row 4 reaches from 0 to 1.1"),
    (changed("probs/small", 9, [0.2, 0.2, 0.2, 0.2]), "array probs/small: row 9 sums to 0.8; probabilities sum to 1"),
    (replaced("probs/small", np.ones((40, 1))), "array probs/small: expected floats .* at least 2 classes"),
    (replaced("probs/small", np.ones((40, 4), int)), r"array probs/small: expected floats \[rows, classes\]"),
    (replaced("group", ["a"]), "array group: has 1 rows, labels has 40"),
    (replaced("split", np.zeros(40)), "array split: expected one text or integer a row, got float64"),
]


@pytest.mark.parametrize(("break_it", "message"), FAULTS, ids=[message[:60] for _, message in FAULTS])
def test_a_bad_table_names_the_array_and_the_row(break_it: Callable[[Arrays], Any], message: str, tmp_path: Path) -> None:
    arrays = every_form()
    break_it(arrays)
    path = tmp_path / "outcomes.npz"
    np.savez(path, **arrays)
    with pytest.raises(TableError, match=message) as raised:
        OutcomeTable.read(path)
    assert raised.value.detail.startswith(str(path))


def test_stages_with_different_numbers_of_classes_are_refused() -> None:
    arrays = every_form()
    del arrays["prediction/medium"], arrays["score/medium"]
    arrays["probs/medium"] = np.full((40, 5), 0.2)
    with pytest.raises(TableError, match="array probs/medium: has 5 classes, probs/small has 4"):
        OutcomeTable.from_arrays(arrays)


def test_half_precision_of_a_thousand_classes_passes_the_sum_check() -> None:
    probs = np.random.default_rng(3).dirichlet(np.full(1000, 0.3), size=200).astype(np.float16)
    arrays = every_form() | {"labels": np.zeros(200, int), "probs/small": probs}
    arrays |= {"prediction/medium": np.zeros(200, int), "correct/large": np.ones(200, bool)}
    arrays |= {"score/medium": np.ones(200), "score/large": np.ones(200)}
    del arrays["group"], arrays["split"]
    assert OutcomeTable.from_arrays(arrays).probs("small").dtype == np.float32


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.npz"
    np.savez(path, **(every_form() | {"group": np.array([{"a": 1}] * 40, dtype=object)}))
    with pytest.raises(TableError, match=r"array group: cannot be read: .*pickle"):
        OutcomeTable.read(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.npz"
    path.write_bytes(content)
    with pytest.raises(TableError, match="is not an npz archive"):
        OutcomeTable.read(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.npz"
    with path.open("wb") as stream:
        np.save(stream, np.arange(3))
    with pytest.raises(TableError, match="expected an npz archive of named arrays, got a single array"):
        OutcomeTable.read(path)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.npz"
    OutcomeTable.from_arrays(every_form()).write(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README", "hello")
    with pytest.raises(TableError, match="member README is not a numpy array"):
        OutcomeTable.read(path)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.npz: cannot be read: No such file"):
        OutcomeTable.read(tmp_path / "none.npz")
    with pytest.raises(TableError, match=r"expected a file that ends in \.npz or \.parquet, got '\.csv'"):
        OutcomeTable.read(tmp_path / "table.csv")


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, where: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "outcomes.npz"
    OutcomeTable.from_arrays(every_form()).write(path)
    content = bytearray(path.read_bytes())
    content[where % len(content)] = value
    path.write_bytes(content)
    with suppress(TableError):
        OutcomeTable.read(path)


@settings(deadline=None)
@given(
    data=st.data(),
    rows=st.integers(1, 12),
    classes=st.integers(2, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_table_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int, classes: int, dtype: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array(["a", "b"]),
            "cost": np.array([1, 2]),
            "cost_unit": np.array("s"),
            "labels": random.integers(0, classes, rows),
            "probs/a": random.dirichlet(np.ones(classes), size=rows).astype(dtype),
            "correct/b": data.draw(hnp.arrays(np.bool_, rows)),
            "score/b": data.draw(hnp.arrays(np.float64, rows, elements=st.floats(allow_nan=False, allow_infinity=False))),
            "group": np.array(data.draw(st.lists(texts, min_size=rows, max_size=rows)), dtype=np.str_),
        }
    )
    folder = tmp_path_factory.mktemp("written")
    table.write(folder / "first.npz")
    read = OutcomeTable.read(folder / "first.npz")
    assert read.digest() == table.digest()
    assert read.arrays().keys() == table.arrays().keys()
    for name, array in table.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)
        assert read.arrays()[name].dtype == array.dtype
    read.write(folder / "second.npz")
    assert (folder / "first.npz").read_bytes() == (folder / "second.npz").read_bytes()


def test_the_digest_is_of_the_contents_and_not_of_the_packing(tmp_path: Path) -> None:
    arrays = every_form()
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    table = OutcomeTable.from_arrays(arrays)
    assert OutcomeTable.read(tmp_path / "packed.npz").digest() == table.digest()
    wide = arrays | {"group": arrays["group"].astype("<U40"), "labels": arrays["labels"].astype(np.uint8)}
    assert OutcomeTable.from_arrays(wide).digest() == table.digest()


@pytest.mark.parametrize("name", ["labels", "probs/small", "score/medium", "correct/large", "group", "cost"])
def test_a_different_value_gives_a_different_digest(name: str) -> None:
    arrays = every_form()
    before = OutcomeTable.from_arrays(arrays).digest()
    other = arrays[name].copy()
    other[[0, 1]] = other[[1, 0]] if name != "cost" else (0.5, 2.0)
    if name == "correct/large":
        other[0] = not arrays[name][0]
    assert OutcomeTable.from_arrays(arrays | {name: other}).digest() != before


def test_selecting_by_split_mask_and_index_agree() -> None:
    table = OutcomeTable.from_arrays(every_form())
    half = table.select("calibration")
    assert half.rows == 20
    assert half.split is not None
    assert set(half.split) == {"calibration"}
    assert table.split is not None
    assert table.select(table.split == "calibration").digest() == half.digest()
    assert table.select(np.arange(20)).digest() == half.digest()
    for stage in STAGES:
        np.testing.assert_array_equal(half.correct(stage), table.correct(stage)[:20])


def test_a_selection_that_makes_no_sense_is_refused() -> None:
    table = OutcomeTable.from_arrays(every_form())
    with pytest.raises(TableError, match="split 'train' has no rows; the table has calibration, test"):
        table.select("train")
    with pytest.raises(TableError, match="the selection has no rows"):
        table.select(np.zeros(40, dtype=bool))
    with pytest.raises(TableError, match=re.escape("the mask has shape (3,), the table has 40 rows")):
        table.select(np.ones(3, dtype=bool))
    arrays = every_form()
    del arrays["split"]
    with pytest.raises(TableError, match="this table has no split array"):
        OutcomeTable.from_arrays(arrays).select("test")


def test_the_arrays_of_a_table_cannot_be_written() -> None:
    table = OutcomeTable.from_arrays(every_form())
    with pytest.raises(ValueError, match="read-only"):
        table.labels[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        table.select("test").score("medium")[0] = 1


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    weights=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    left_out=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_split_rows_are_disjoint_and_give_each_label_its_share(
    labels: list[int], weights: list[int], left_out: int, seed: int
) -> None:
    rows = len(labels)
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array(["a"]),
            "cost": np.array([1.0]),
            "cost_unit": np.array("s"),
            "labels": np.array(labels),
            "correct/a": np.ones(rows, bool),
            "score/a": np.ones(rows),
        }
    )
    total = sum(weights) + left_out
    fractions = {f"part{k}": weight / total for k, weight in enumerate(weights)}
    parts = table.split_rows(fractions, seed)
    together = np.concatenate(list(parts.values()))
    assert len(np.unique(together)) == len(together)
    if left_out == 0:
        assert len(together) == rows
    for name, share in fractions.items():
        for label in set(labels):
            count = int((table.labels[parts[name]] == label).sum())
            assert abs(count - share * labels.count(label)) < 1 + 1e-9
    again = table.split_rows(fractions, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in fractions)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.0}, {"a": 0.6, "b": 0.5}, {"a": -0.1}])
def test_fractions_that_are_none_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(TableError, match="fractions must be above 0 and at most 1 in sum"):
        OutcomeTable.from_arrays(every_form()).split_rows(fractions, seed=0)
