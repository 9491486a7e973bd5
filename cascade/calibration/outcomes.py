"""The outcome table: what every stage of a ladder said about every row of a labelled set.

The one interface between models and decisions. It reads and writes a file and answers questions about rows; it knows
no model, no policy and no fitting, and it never unpickles anything. The format is described in docs/outcome-table.md.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.outcome_arrays import FORMS, Array, StageOutputs, alone_of, check, frozen, listed, text
from cascade.calibration.outcome_parquet import read_parquet, write_parquet
from cascade.errors import TableError

_BROKEN = (ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise on a damaged archive; RuntimeError covers encrypted and unsupported members."""


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """A validated outcome table; build one with `read` or `from_arrays`. Its arrays are read-only."""

    stages: tuple[str, ...]
    """Names, cheapest first."""
    cost: NDArray[np.float64]
    """[S] cost of one row at each stage, in ``cost_unit``; positive, and `alone` strictly rising."""
    resumes: NDArray[np.bool_]
    """[S] whether each stage goes on from what the one before computed, as a later exit of its network."""
    cost_unit: str
    """What ``cost`` counts, such as ``"seconds"`` or ``"MFLOP"``."""
    labels: NDArray[np.int64]
    """[N] the true class of each row, from 0."""
    outputs: Mapping[str, StageOutputs]
    """What each stage said, by name."""
    group: NDArray[np.str_] | None = None
    """[N] the slice a row belongs to, for reports by group."""
    split: NDArray[np.str_] | None = None
    """[N] the part of the data a row belongs to, such as ``"calibration"`` or ``"test"``."""

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and validate a table file.

        Raises:
            TableError: the file is missing, neither npz nor Parquet, holds pickled objects, or breaks a rule of the format.
        """
        path = Path(path)
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise TableError(f"{path}: expected a file that ends in {' or '.join(_READERS)}, got {path.suffix!r}")
        return cls.from_arrays(reader(path), source=str(path))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], source: str = "outcome table") -> Self:
        """Validate arrays named as in the file.

        Args:
            arrays: ``stages``, ``cost``, ``cost_unit``, ``labels``, ``form/stage`` arrays and so on; see the file format.
            source: how error messages call the table.

        Raises:
            TableError: naming the array and, where there is one, the first offending row.
        """
        return cls(**check(arrays, source))

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.labels)

    @property
    def alone(self) -> NDArray[np.float64]:
        """[S] cost of running a row to each stage's answer and asking no other: all segments of a network up to there."""
        return alone_of(self.cost, self.resumes)

    @property
    def classes(self) -> int | None:
        """Number of classes C, or None where no stage gives probabilities."""
        return next((o.probs.shape[1] for o in self.outputs.values() if o.probs is not None), None)

    def has_probs(self, stage: str) -> bool:
        """Whether ``stage`` comes with class probabilities."""
        return self._of(stage).probs is not None

    def probs(self, stage: str) -> NDArray[np.floating[Any]]:
        """Class probabilities [N, C].

        Raises:
            TableError: the table has only scores for this stage.
        """
        probs = self._of(stage).probs
        if probs is None:
            raise TableError(f"stage {stage!r} has no probabilities in this table (array probs/{stage})")
        return probs

    def prediction(self, stage: str) -> NDArray[np.int64]:
        """Predicted class [N]; the most probable one, the lowest index on ties.

        Raises:
            TableError: the table says only whether this stage was right.
        """
        outputs = self._of(stage)
        if outputs.probs is not None:
            return np.asarray(outputs.probs.argmax(axis=1), dtype=np.int64)
        if outputs.prediction is None:
            raise TableError(f"stage {stage!r} has no predictions in this table, only correct/{stage}")
        return outputs.prediction

    def correct(self, stage: str) -> NDArray[np.bool_]:
        """Whether the stage is right about each row [N]."""
        outputs = self._of(stage)
        return outputs.correct if outputs.correct is not None else self.prediction(stage) == self.labels

    def score(self, stage: str) -> NDArray[np.float64]:
        """How sure the stage is of each row [N]: the given score, or the largest probability."""
        outputs = self._of(stage)
        if outputs.probs is not None:
            return np.asarray(outputs.probs.max(axis=1), dtype=np.float64)
        assert outputs.score is not None
        return outputs.score

    def select(self, which: str | Array) -> "OutcomeTable":
        """Return the table of only some rows.

        Args:
            which: the name of a split, a mask [N] or row indices.

        Raises:
            TableError: there is no such split, or no row is left.
        """
        if isinstance(which, str):
            if self.split is None:
                raise TableError(f"this table has no split array, so split {which!r} cannot be selected")
            rows: Array = np.flatnonzero(self.split == which)
            if not len(rows):
                raise TableError(f"split {which!r} has no rows; the table has {listed(np.unique(self.split))}")
        else:
            rows = np.flatnonzero(which) if which.dtype == np.bool_ else which
            if which.dtype == np.bool_ and which.shape != (self.rows,):
                raise TableError(f"the mask has shape {which.shape}, the table has {self.rows} rows")
            if not len(rows):
                raise TableError("the selection has no rows")
        return OutcomeTable(
            self.stages,
            self.cost,
            self.resumes,
            self.cost_unit,
            frozen(self.labels[rows]),
            MappingProxyType({stage: outputs.take(rows) for stage, outputs in self.outputs.items()}),
            None if self.group is None else frozen(self.group[rows]),
            None if self.split is None else frozen(self.split[rows]),
        )

    def split_rows(self, fractions: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
        """Divide the rows at random into disjoint parts, each with every label's share.

        A label with n rows gives each part its fraction of n, rounded up or down at random with the right mean.

        Args:
            fractions: share of each part, each above 0, at most 1 in sum; what is missing to 1 goes to no part.
            seed: of the random order.

        Returns:
            Ascending row indices of each part, for `select`.
        """
        shares = np.array(list(fractions.values()), dtype=np.float64)
        if not len(shares) or not np.all(shares > 0) or shares.sum() > 1 + 1e-9:
            raise TableError(f"fractions must be above 0 and at most 1 in sum, got {dict(fractions)}")
        ends = np.minimum(np.cumsum(shares), 1.0)
        if ends[-1] > 1 - 1e-9:
            ends[-1] = 1.0
        random = np.random.default_rng(seed)
        part = np.full(self.rows, len(shares))
        for label in np.unique(self.labels):
            rows = random.permutation(np.flatnonzero(self.labels == label))
            # One offset for all cuts of a label keeps them in order, so no part can come out negative.
            cuts = np.floor(ends * len(rows) + random.random()).astype(np.int64)
            part[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        return {name: np.flatnonzero(part == index) for index, name in enumerate(fractions)}

    def arrays(self) -> dict[str, Array]:
        """Return the arrays as they stand in the file, in the file's order."""
        named: dict[str, Array] = {
            "stages": text(self.stages),
            "cost": self.cost,
            # Left out where it says nothing, so that tables made before there was such a thing keep their digests.
            **({"resumes": self.resumes} if self.resumes.any() else {}),
            "cost_unit": np.array(self.cost_unit),
            "labels": self.labels,
        }
        for stage in self.stages:
            outputs = self.outputs[stage]
            for form in FORMS:
                array = getattr(outputs, form)
                if array is not None:
                    named[f"{form}/{stage}"] = array
        for name, texts in (("group", self.group), ("split", self.split)):
            if texts is not None:
                named[name] = text(texts)
        return named

    def write(self, path: Path | str) -> None:
        """Write the table, as Parquet if the name ends so, else as npz: equal tables give equal bytes (no time stamps).

        Raises:
            TableError: Parquet was asked for and pyarrow is not installed.
        """
        if Path(path).suffix == ".parquet":
            write_parquet(Path(path), self.arrays())
            return
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, array in self.arrays().items():
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                member.create_system = 3
                member.external_attr = 0o644 << 16
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)

    def digest(self) -> str:
        """SHA-256 (hex) of the contents: the same for a table however often it is written and read again."""
        sha = hashlib.sha256()
        for name, array in self.arrays().items():
            sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return sha.hexdigest()

    def _of(self, stage: str) -> StageOutputs:
        if stage not in self.outputs:
            raise TableError(f"no stage {stage!r} in this table; it has {listed(self.stages)}")
        return self.outputs[stage]


def _read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an npz without unpickling."""
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TableError(f"{path}: expected an npz archive of named arrays, got a single array")
            return dict(_members(path, archive))
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        raise TableError(f"{path}: is not an npz archive: {error}") from error


def _members(path: Path, archive: "np.lib.npyio.NpzFile") -> Iterator[tuple[str, Array]]:
    for name in archive.files:
        try:
            array = archive[name]
        except (*_BROKEN, OSError) as error:
            raise TableError(f"{path}: array {name}: cannot be read: {error}") from error
        if not isinstance(array, np.ndarray):
            raise TableError(f"{path}: member {name} is not a numpy array")
        yield name, array


_READERS: Mapping[str, Callable[[Path], dict[str, Array]]] = MappingProxyType({".npz": _read_npz, ".parquet": read_parquet})
