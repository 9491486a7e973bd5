"""What happened in a simulated run, row by row and batch by batch. Knows neither why nor what it is worth."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cascade.policy.request import ExitReason
from cascade.simulation.workload import Arrivals

REASONS = tuple(ExitReason)
"""Order of the codes in `Record.reason`."""
ROUNDING_S = 1e-9
"""Instants are sums of floats: an answer this little after its deadline is on time."""


class Ending(IntEnum):
    """How a row ended."""

    NONE = 0
    ANSWERED = 1
    SHED = 2
    EXPIRED = 3
    FAILED = 4
    CANCELLED = 5


@dataclass(frozen=True, eq=False)
class Record:
    """Everything that happened, row by row and batch by batch.

    Attributes:
        arrivals: when rows came.
        row: [N] row of the table that each was.
        ending: [N] code of an `Ending`.
        done_s: [N] instant of the ending.
        deadline_s: [N] instant of the deadline.
        stage: [N] stage of the answer, -1 without one.
        reason: [N] index into `REASONS`, -1 without an answer.
        cost: [N] cost of the stages that it was sent to.
        degraded: [N] whether the unloaded rule would have gone on.
        batch_stage: [B] stage of each batch that occupied a replica.
        batch_rows: [B] rows in it.
        batch_start_s: [B] when its replica began.
        batch_finish_s: [B] when its replica was done with it, or lost.
        replicas: [S] replicas of each stage.
        prices: (instant, prices) of every plan.
        seconds: instant at which nothing was left to happen.
        priority: [N] class of each row, None where all were of one.
        tenant: [N] who asked, None where nobody was told apart.
    """

    arrivals: Arrivals
    row: NDArray[np.intp]
    ending: NDArray[np.int8]
    done_s: NDArray[np.float64]
    deadline_s: NDArray[np.float64]
    stage: NDArray[np.int8]
    reason: NDArray[np.int8]
    cost: NDArray[np.float64]
    degraded: NDArray[np.bool_]
    batch_stage: NDArray[np.intp]
    batch_rows: NDArray[np.intp]
    batch_start_s: NDArray[np.float64]
    batch_finish_s: NDArray[np.float64]
    replicas: NDArray[np.intp]
    prices: list[tuple[float, tuple[float, ...]]]
    seconds: float
    priority: NDArray[np.int64] | None = None
    tenant: NDArray[np.str_] | None = None

    @property
    def on_time(self) -> NDArray[np.bool_]:
        """[N] answered, and not after the deadline."""
        return np.asarray((self.ending == Ending.ANSWERED) & (self.done_s <= self.deadline_s + ROUNDING_S))
