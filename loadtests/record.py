"""What one load test saw, request by request, as the client saw it. Knows no HTTP, no Locust, no server.

Everything that is said about a run is computed from these columns: Locust's own percentiles are rounded to two digits.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cascade.errors import ConfigError
from cascade.simulation.workload import Arrivals

COLUMNS: dict[str, type[np.generic] | str] = {
    "scheduled_s": np.float64,
    "lag_s": np.float64,
    "latency_s": np.float64,
    "status": np.int16,
    "stage": np.int8,
    "reason": "U16",
    "degraded": np.bool_,
    "price": np.float64,
    "cost": np.float64,
    "correct": np.bool_,
    "row": np.int32,
    "priority": np.int8,
    "tenant": "U16",
    "deadline_s": np.float64,
    "attempts": np.int8,
    "phase": np.int16,
}
"""Name and type of each column, all of one length."""
ANSWERED = 200
"""Status of an answer."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One run of one scenario against one system.

    The columns have one item for each logical request, in order of the scheduled instant; a retry makes no row of its own.

    Attributes:
        scheduled_s: [N] when it should be sent, seconds since the beginning of the run.
        lag_s: [N] how much later the first attempt was sent; the generator's own fault.
        latency_s: [N] from the *scheduled* instant to the end of the last attempt; NaN if that got no answer at all.
        status: [N] HTTP status of the last attempt; 0 for no answer, or one that could not be read.
        stage: [N] index of the stage that answered, -1 without an answer.
        reason: [N] why the row stopped there, "" without an answer.
        degraded: [N] whether the unloaded rule would have gone on.
        price: [N] present price of a visit to the next stage as the answer tells it, NaN if it does not.
        cost: [N] cost of the answer, NaN if unknown.
        correct: [N] answered with the label of the file.
        row: [N] row of the test data.
        priority: [N] class, 1 is the most important.
        tenant: [N] who asked, "" for nobody in particular.
        deadline_s: [N] time that it had.
        attempts: [N] 1 and the retries.
        phase: [N] index into ``arrivals.phases``.
        arrivals: when requests should come, and the phases.
        meta: plain values: ``system``, ``scenario``, ``seed``, ``workload``, ``unit_rate`` and ``stage0_rate`` (requests/s),
            ``stages`` (names), ``host``, ``started_utc``, ``generator`` and what else describes the run.
    """

    scheduled_s: NDArray[np.float64]
    lag_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    status: NDArray[np.int16]
    stage: NDArray[np.int8]
    reason: NDArray[np.str_]
    degraded: NDArray[np.bool_]
    price: NDArray[np.float64]
    cost: NDArray[np.float64]
    correct: NDArray[np.bool_]
    row: NDArray[np.int32]
    priority: NDArray[np.int8]
    tenant: NDArray[np.str_]
    deadline_s: NDArray[np.float64]
    attempts: NDArray[np.int8]
    phase: NDArray[np.int16]
    arrivals: Arrivals
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.shape != self.scheduled_s.shape or column.ndim != 1:
                raise ConfigError(
                    f"{name!r} must be [{len(self.scheduled_s)}] as 'scheduled_s' is, got {list(column.shape)}"
                )
            if not np.can_cast(column.dtype, np.dtype(dtype)):
                raise ConfigError(f"{name!r} must be {np.dtype(dtype)}, got {column.dtype}")

    @property
    def answered(self) -> NDArray[np.bool_]:
        """[N] whether there is an answer, late or not."""
        return np.asarray(self.status == ANSWERED)

    @property
    def on_time(self) -> NDArray[np.bool_]:
        """[N] whether there is an answer, and not after the deadline."""
        return np.asarray(self.answered & (self.latency_s <= self.deadline_s))

    def to_bytes(self) -> bytes:
        """The file's content, for a recording that travels."""
        stream = io.BytesIO()
        self._write(stream)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Recording":
        """Undo `to_bytes`."""
        return cls._read(io.BytesIO(content))

    def save(self, path: Path) -> None:
        """Write it to one ``.npz``: the columns, ``arrivals.*``, and ``meta`` as JSON.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first, so that nobody reads half a recording.
            partial = path.with_name(f"{path.name}.partial")
            with partial.open("wb") as stream:
                self._write(stream)
            partial.replace(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what `save` wrote.

        Raises:
            ConfigError: it is no recording.
        """
        try:
            with path.open("rb") as stream:
                return cls._read(stream)
        except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise ConfigError(f"{path}: not a recording of a load test: {error}") from error

    def _write(self, stream: BinaryIO) -> None:
        arrivals = {f"arrivals.{field.name}": np.asarray(getattr(self.arrivals, field.name)) for field in fields(Arrivals)}
        columns = {name: getattr(self, name) for name in COLUMNS}
        np.savez_compressed(stream, **columns, **arrivals, meta=np.array(json.dumps(self.meta)))

    @classmethod
    def _read(cls, stream: BinaryIO) -> "Recording":
        with np.load(stream, allow_pickle=False) as archive:
            arrivals = Arrivals(
                instants=archive["arrivals.instants"],
                seconds=float(archive["arrivals.seconds"]),
                phases=tuple(archive["arrivals.phases"].tolist()),
                edges=archive["arrivals.edges"],
                labels=archive["arrivals.labels"],
            )
            columns = {name: archive[name] for name in COLUMNS}
            return cls(**columns, arrivals=arrivals, meta=json.loads(str(archive["meta"])))


def merge(recordings: Sequence[Recording]) -> Recording:
    """Join what several generator processes saw of one run.

    Args:
        recordings: of the same arrivals, each with some of the requests; the description is taken from the first.

    Raises:
        ConfigError: there are none, they are of different arrivals, or together they do not hold each arrival once.
    """
    if not recordings:
        raise ConfigError("there is nothing to merge")
    arrivals = recordings[0].arrivals
    if any(not np.array_equal(recording.arrivals.instants, arrivals.instants) for recording in recordings):
        raise ConfigError("recordings of different arrivals cannot be merged")
    joined = {name: np.concatenate([getattr(recording, name) for recording in recordings]) for name in COLUMNS}
    order = np.argsort(joined["scheduled_s"], kind="stable")
    columns = {name: column[order] for name, column in joined.items()}
    if not np.array_equal(columns["scheduled_s"], arrivals.instants):
        raise ConfigError(
            f"the recordings hold {len(order)} requests, and do not make up the {len(arrivals.instants)} arrivals one by one"
        )
    return Recording(**columns, arrivals=arrivals, meta=recordings[0].meta)
