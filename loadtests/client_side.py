"""What a client knows of a ladder, what it sends, and what it reads in an answer. Knows neither Locust nor a clock."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascade.rows import read_rows
from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request
from cascade.wire.tensors import TensorSpec
from loadtests.record import ANSWERED
from loadtests.scenarios import Asker

NO_ANSWER = 0
"""Status of a request that got no answer, or one that could not be read."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Labelled rows to ask about, and what the ladder promises about its answers.

    Attributes:
        model: name of the ladder on the wire.
        inputs: declaration and array [R, *row] of each input.
        labels: [R] the right answers.
        stages: names, cheapest first.
        deadline_s: of a request that names none.
        priority: class of a request that names none.
    """

    model: str
    inputs: tuple[tuple[TensorSpec, NDArray[Any]], ...]
    labels: NDArray[np.int64]
    stages: tuple[str, ...]
    deadline_s: float
    priority: int

    @classmethod
    def read(cls, spec: Path, data: Path | None = None) -> "Sheet":
        """Read a ladder's spec and its test rows.

        Args:
            spec: the YAML file.
            data: other rows than the spec's, in the same format.

        Raises:
            ConfigError: one of the files cannot be used.
        """
        ladder = Ladder.read(spec)
        path = ladder.path(ladder.spec.data.test) if data is None else data
        arrays, labels = read_rows(ladder, path)
        inputs = tuple((field.tensor, arrays[field.name]) for field in ladder.spec.inputs)
        return cls(
            ladder.spec.name,
            inputs,
            labels,
            tuple(stage.name for stage in ladder.spec.stages),
            ladder.spec.deadline.default_s,
            ladder.spec.admission.default_priority,
        )

    @property
    def path(self) -> str:
        """Where requests go, on any host."""
        return f"/v2/models/{self.model}/infer"

    def encode(self, row: int, asker: Asker) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the question about one row, asked by one kind of client."""
        parameters: dict[str, str | float | bool] = {}
        if asker.priority is not None:
            parameters["priority"] = asker.priority
        if asker.tenant:
            parameters["cascade_tenant"] = asker.tenant
        if asker.deadline_s is not None:
            parameters["timeout"] = round(asker.deadline_s * 1e6)
        fields = [(spec, array[row : row + 1]) for spec, array in self.inputs]
        body, headers = encode_request(fields, outputs=["label"], parameters=parameters)
        # Inflating a few hundred bytes would cost the generator more than reading them.
        return body, {**headers, "accept-encoding": "identity"}


class Reading(NamedTuple):
    """What a client understood of an answer.

    Attributes:
        status: HTTP status, `NO_ANSWER` for none or one that could not be read.
        stage: index of the stage that answered.
        reason: why the row stopped there.
        degraded: whether the unloaded rule would have gone on.
        price: present price of the next stage, NaN if it was not told.
        cost: of the answer.
        label: the answer.
        fault: what is wrong, for a person; "" for an answer.
    """

    status: int
    stage: int = -1
    reason: str = ""
    degraded: bool = False
    price: float = math.nan
    cost: float = math.nan
    label: int = -1
    fault: str = ""


def read_answer(status: int, headers: Mapping[str, str] | None, body: bytes | None, stages: Sequence[str]) -> Reading:
    """Read an answer about one row; never fails, whatever came.

    Args:
        status: HTTP status; 0 if nothing came.
        headers: of the answer, names in any case.
        body: as sent.
        stages: names of the stages.
    """
    if status != ANSWERED:
        return Reading(status, fault=f"status {status}" if status else "no answer")
    try:
        answer = decode_answer(body or b"", (headers or {}).get("inference-header-content-length"))
        parameters = answer.parameters
        (label,) = answer.outputs["label"].tolist()
        return Reading(
            status,
            stages.index(str(parameters["cascade_stage"])),
            str(parameters["cascade_exit_reason"]),
            bool(parameters["cascade_degraded"]),
            float(parameters.get("cascade_price", math.nan)),
            float(parameters.get("cascade_cost", math.nan)),
            int(label),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        return Reading(NO_ANSWER, fault=f"an answer that cannot be read: {type(error).__name__}: {error}"[:120])
