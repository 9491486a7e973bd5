"""What the policy tells a driver to do. Plain values; they know neither why nor how.

A driver matches on them exhaustively: `Run` and `Abandon` speak of batches, `Preliminary` of a row that goes on, the other
three end a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cascade.policy.request import Answer, SoFar
from cascade.policy.walk import Walk


@dataclass(eq=False, slots=True)
class Batch:
    """Rows that are with a stage together.

    Attributes:
        stage: index of the stage.
        walks: the rows, in the order of the batch.
        attempt: 1, or 2 when it is the one retry.
        started_s: when it was sent.
        give_up_s: when it counts as failed.
        done: whether it came back, failed or was given up.
    """

    stage: int
    walks: Sequence[Walk]
    attempt: int
    started_s: float
    give_up_s: float
    done: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Command: send this batch to its stage, then report `completed` or `failed`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Abandon:
    """Command: this batch was given up; whatever it still returns will be ignored."""

    batch: Batch


class Reply(NamedTuple):
    """Command: give this answer to the row's client."""

    tag: Any
    answer: Answer


class Preliminary(NamedTuple):
    """Command: show this answer to the row's client, who asked for that; the row goes on, and its end is still to come."""

    tag: Any
    answer: SoFar


@dataclass(frozen=True, slots=True)
class Expire:
    """Command: tell the row's client that its deadline passed before there was an answer."""

    tag: Any


@dataclass(frozen=True, slots=True)
class Fail:
    """Command: tell the row's client that the first stage failed."""

    tag: Any


Command = Run | Abandon | Reply | Preliminary | Expire | Fail


@dataclass(frozen=True, slots=True)
class Shed:
    """The whole message was turned away at the door.

    Attributes:
        retry_after_s: whole seconds to stay away, jittered.
        wait_s: the predicted wait that was too long.
        hold_s: seconds for which the refusal itself is to be held back.
    """

    retry_after_s: int
    wait_s: float
    hold_s: float = 0.0
