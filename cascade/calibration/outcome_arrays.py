"""Checks the raw arrays of an outcome table, one rule and one message at a time.

Knows the rules of docs/outcome-table.md and nothing of files; `cascade.calibration.outcomes` is the table itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cascade.errors import TableError

SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may be from 1 in sum: half precision of a thousand classes stays within 5e-4."""

Array = NDArray[Any]
FORMS = ("probs", "prediction", "score", "correct")
"""The first part of a stage array's name, in the order in which the file has them."""


def frozen(array: Array) -> Array:
    """Return a contiguous array that cannot be written through."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def text(values: Iterable[object]) -> NDArray[np.str_]:
    """Return texts in the narrowest little-endian dtype, so that equal texts are equal bytes."""
    array = np.array([str(value) for value in values], dtype=np.str_)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def alone_of(cost: NDArray[np.float64], resumes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[S] what a row costs that is run to each stage's answer alone: a stage that resumes needs those before it.

    Args:
        cost: [S] what each stage itself costs.
        resumes: [S] whether it goes on from the stage before.
    """
    total = np.cumsum(cost)
    starts = np.flatnonzero(~resumes)
    # What was spent before the stage that begins at the inputs.
    before = (total - cost)[starts[np.searchsorted(starts, np.arange(len(cost)), side="right") - 1]]
    alone: NDArray[np.float64] = total - before if resumes.any() else cost
    return alone


def listed(names: Iterable[object]) -> str:
    """Return names as a message shows them."""
    return ", ".join(str(name) for name in names)


@dataclass(frozen=True, eq=False)
class StageOutputs:
    """What one stage said, in exactly one of the three forms of the file; the members of the other forms are None."""

    probs: NDArray[np.floating[Any]] | None = None
    """[N, C] class probabilities, float32 or float64."""
    prediction: NDArray[np.int64] | None = None
    """[N] predicted class; comes with a score."""
    correct: NDArray[np.bool_] | None = None
    """[N] whether the stage was right; comes with a score."""
    score: NDArray[np.float64] | None = None
    """[N] how sure the stage is, larger is surer."""

    def take(self, rows: Array) -> "StageOutputs":
        """Return the same form with only ``rows`` (indices or mask)."""

        def of(array: Array | None) -> Any:
            return None if array is None else frozen(array[rows])

        return StageOutputs(of(self.probs), of(self.prediction), of(self.correct), of(self.score))


class Fields(TypedDict):
    """The checked contents of a table, named as the members of `OutcomeTable`."""

    stages: tuple[str, ...]
    cost: NDArray[np.float64]
    resumes: NDArray[np.bool_]
    cost_unit: str
    labels: NDArray[np.int64]
    outputs: Mapping[str, StageOutputs]
    group: NDArray[np.str_] | None
    split: NDArray[np.str_] | None


def check(arrays: Mapping[str, Array], source: str) -> Fields:
    """Check arrays named as in the file and return them in their canonical dtypes, read-only.

    Raises:
        TableError: naming the array and, where there is one, the first offending row.
    """
    return _Check(arrays, source).fields()


class _Check:
    """Checks raw arrays one rule at a time and hands back the fields of an `OutcomeTable`."""

    def __init__(self, arrays: Mapping[str, Array], source: str) -> None:
        self._arrays = arrays
        self._source = source

    def fields(self) -> Fields:
        stages = self._stages()
        resumes = self._resumes(stages)
        cost = self._cost(stages, resumes)
        cost_unit = self._needed("cost_unit")
        if cost_unit.shape != () or cost_unit.dtype.kind != "U" or not cost_unit.item():
            raise self._error("cost_unit", "expected one text that is not empty")
        labels = self._integers("labels", None)
        if not len(labels):
            raise self._error("labels", "the table has no rows")
        self._only_known_names(stages)
        outputs = {stage: self._outputs(stage, len(labels)) for stage in stages}
        self._classes_agree(labels, outputs)
        return {
            "stages": stages,
            "cost": cost,
            "resumes": resumes,
            "cost_unit": str(cost_unit.item()),
            "labels": labels,
            "outputs": MappingProxyType(outputs),
            "group": self._texts("group", len(labels)),
            "split": self._texts("split", len(labels)),
        }

    def _error(self, name: str, problem: str) -> TableError:
        return TableError(f"{self._source}: array {name}: {problem}")

    def _needed(self, name: str) -> Array:
        if name not in self._arrays:
            raise TableError(f"{self._source}: array {name} is missing")
        return np.asarray(self._arrays[name])

    def _column(self, name: str, rows: int | None, kinds: str, expected: str) -> Array:
        """Fetch a one-dimensional array whose dtype kind is one of ``kinds``."""
        array = self._needed(name)
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise self._error(name, f"expected one {expected} a row, got {array.dtype} of shape {array.shape}")
        return self._as_long_as_labels(name, array, rows)

    def _as_long_as_labels(self, name: str, array: Array, rows: int | None) -> Array:
        if rows is not None and len(array) != rows:
            raise self._error(name, f"has {len(array)} rows, labels has {rows}")
        return array

    def _integers(self, name: str, rows: int | None) -> NDArray[np.int64]:
        array = self._column(name, rows, "iu", "integer")
        classes = array.astype("<i8", copy=False)
        if (row := _first(classes < 0)) is not None:
            raise self._error(name, f"row {row} is {array[row]}; classes count from 0")
        return frozen(classes)

    def _texts(self, name: str, rows: int) -> NDArray[np.str_] | None:
        if name not in self._arrays:
            return None
        return frozen(text(self._column(name, rows, "Uiu", "text or integer").astype(str)))

    def _stages(self) -> tuple[str, ...]:
        array = self._column("stages", None, "U", "name")
        stages = tuple(str(name) for name in array)
        if not stages:
            raise self._error("stages", "names no stage")
        for row, stage in enumerate(stages):
            if not stage or not stage.isprintable() or "/" in stage or "\\" in stage:
                raise self._error("stages", f"row {row} is {stage!r}; a name is printable text without slashes")
            if stage in stages[:row]:
                raise self._error("stages", f"row {row} is {stage!r} again; each stage has its own name")
        return stages

    def _resumes(self, stages: tuple[str, ...]) -> NDArray[np.bool_]:
        if "resumes" not in self._arrays:
            return frozen(np.zeros(len(stages), dtype=np.bool_))
        array = self._column("resumes", None, "biu", "truth value")
        if len(array) != len(stages):
            raise self._error("resumes", f"has {len(array)} entries, stages has {len(stages)}")
        if (row := _first((array != 0) & (array != 1))) is not None:
            raise self._error("resumes", f"row {row} is {array[row]}; expected 0 or 1")
        if array[0]:
            raise self._error("resumes", f"row 0 ({stages[0]}) is 1; there is no stage before it")
        return frozen(array.astype(np.bool_, copy=False))

    def _cost(self, stages: tuple[str, ...], resumes: NDArray[np.bool_]) -> NDArray[np.float64]:
        array = self._column("cost", None, "fiu", "number").astype("<f8")
        if len(array) != len(stages):
            raise self._error("cost", f"has {len(array)} entries, stages has {len(stages)}")
        if (row := _first(~(np.isfinite(array) & (array > 0)))) is not None:
            raise self._error("cost", f"row {row} ({stages[row]}) is {array[row]:g}; a cost is finite and above 0")
        alone = alone_of(array, resumes)
        if (row := _first(np.diff(alone) <= 0)) is not None:
            raise self._error(
                "cost",
                f"row {row + 1} ({stages[row + 1]}) is {alone[row + 1]:g} after {alone[row]:g}; "
                "stages stand cheapest first and their costs rise",
            )
        return frozen(array)

    def _only_known_names(self, stages: tuple[str, ...]) -> None:
        for name in self._arrays:
            if name in ("stages", "cost", "resumes", "cost_unit", "labels", "group", "split"):
                continue
            form, _, stage = name.partition("/")
            if form not in FORMS or not stage:
                raise self._error(name, "is not part of the format")
            if stage not in stages:
                raise self._error(name, f"belongs to no stage; the stages are {listed(stages)}")

    def _outputs(self, stage: str, rows: int) -> StageOutputs:
        forms = tuple(form for form in FORMS if f"{form}/{stage}" in self._arrays)
        if forms == ("probs",):
            return StageOutputs(probs=self._probs(f"probs/{stage}", rows))
        if forms == ("prediction", "score"):
            prediction = self._integers(f"prediction/{stage}", rows)
            return StageOutputs(prediction=prediction, score=self._score(f"score/{stage}", rows))
        if forms == ("score", "correct"):
            return StageOutputs(correct=self._correct(f"correct/{stage}", rows), score=self._score(f"score/{stage}", rows))
        raise TableError(
            f"{self._source}: stage {stage!r} needs probs/{stage}, or prediction/{stage} and score/{stage}, or "
            f"correct/{stage} and score/{stage}; it has {listed(f'{form}/{stage}' for form in forms) or 'none'}"
        )

    def _score(self, name: str, rows: int) -> NDArray[np.float64]:
        score = self._column(name, rows, "fiu", "number").astype("<f8", copy=False)
        if (row := _first(~np.isfinite(score))) is not None:
            raise self._error(name, f"row {row} is {score[row]}; scores are finite")
        return frozen(score)

    def _correct(self, name: str, rows: int) -> NDArray[np.bool_]:
        correct = self._column(name, rows, "biu", "truth value")
        if (row := _first((correct != 0) & (correct != 1))) is not None:
            raise self._error(name, f"row {row} is {correct[row]}; expected 0 or 1")
        return frozen(correct.astype(np.bool_, copy=False))

    def _probs(self, name: str, rows: int) -> NDArray[np.floating[Any]]:
        probs = self._needed(name)
        if probs.ndim != 2 or probs.dtype.kind != "f" or probs.shape[1] < 2:
            raise self._error(name, f"expected floats [rows, classes], at least 2 classes, got {probs.dtype} {probs.shape}")
        self._as_long_as_labels(name, probs, rows)
        # Row extremes carry a NaN through, so no second array of the table's size is ever made.
        low, high = probs.min(axis=1), probs.max(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            total = probs.sum(axis=1, dtype=np.float64)
        if (row := _first(np.isnan(low))) is not None:
            raise self._error(name, f"row {row} contains NaN")
        if (row := _first((low < 0) | (high > 1 + 1e-6))) is not None:
            raise self._error(
                name, f"row {row} reaches from {low[row]:g} to {high[row]:g}; probabilities lie between 0 and 1"
            )
        if (row := _first(np.abs(total - 1) > SUM_TOLERANCE)) is not None:
            raise self._error(name, f"row {row} sums to {total[row]:.6g}; probabilities sum to 1 within {SUM_TOLERANCE:g}")
        return frozen(probs.astype("<f8" if probs.dtype.itemsize >= 8 else "<f4", copy=False))

    def _classes_agree(self, labels: NDArray[np.int64], outputs: Mapping[str, StageOutputs]) -> None:
        widths = {stage: o.probs.shape[1] for stage, o in outputs.items() if o.probs is not None}
        if not widths:
            return
        first, classes = next(iter(widths.items()))
        for stage, width in widths.items():
            if width != classes:
                raise self._error(f"probs/{stage}", f"has {width} classes, probs/{first} has {classes}")
        predictions = {f"prediction/{s}": o.prediction for s, o in outputs.items() if o.prediction is not None}
        for name, column in {"labels": labels, **predictions}.items():
            if (row := _first(column >= classes)) is not None:
                raise self._error(name, f"row {row} is {column[row]}; probs/{first} has the classes 0 to {classes - 1}")


def _first(bad: NDArray[np.bool_]) -> int | None:
    """Return the first row that is bad, or None."""
    row = int(bad.argmax()) if len(bad) else 0
    return row if len(bad) and bad[row] else None
