"""What the policy tells a driver to do. Plain values; they know neither why nor how.

A driver matches on them exhaustively: `Run` and `Abandon` speak of batches, `Preliminary` of a row that goes on, the other
three end a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cascade.policy.request import Answer, SoFar
from cascade.policy.walk import ALONE, Walk, rows_of


@dataclass(eq=False, slots=True)
class Trial:
    """A batch that failed, and all that became of it; see `cascade.policy.again`.

    Attributes:
        returned: batches that the stage had given back when it failed.
        parts: parts of it that are with the stage or wait for it.
    """

    returned: int
    parts: int = 0


@dataclass(eq=False, slots=True)
class Batch:
    """Rows that are with a stage together.

    Attributes:
        stage: index of the stage.
        walks: the rows, in the order of the batch; rows that walk together lie side by side.
        attempt: how often its rows have been sent to the stage, with this time.
        started_s: when it was sent.
        give_up_s: when it counts as failed.
        trial: the trial that it is a part of; None at the first attempt.
        done: whether it came back, failed or was given up.
        rows: how many rows (derived).
    """

    stage: int
    walks: Sequence[Walk]
    attempt: int
    started_s: float
    give_up_s: float
    trial: Trial | None = None
    done: bool = False
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = rows_of(self.walks)


@dataclass(frozen=True, slots=True)
class Run:
    """Command: send this batch to its stage, then report `completed` or `failed`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Abandon:
    """Command: this batch was given up; whatever it still returns will be ignored."""

    batch: Batch


class Reply(NamedTuple):
    """Command: answer these rows of a request, which leave together.

    Attributes:
        tag: of the request.
        answer: the answer of the first of them. Those of the others differ from it in the row of the judgement alone.
        places: which rows of the request these are, ascending; they lie as far from each other in the judgement.
    """

    tag: Any
    answer: Answer
    places: Sequence[int] = ALONE

    @property
    def rows(self) -> list[int]:
        """The rows of the judgement that are theirs."""
        shift = self.answer.row - self.places[0]
        return [place + shift for place in self.places]


class Preliminary(NamedTuple):
    """Command: show this answer to the row's client, who asked for that; the row goes on, and its end is still to come."""

    tag: Any
    answer: SoFar
    place: int = 0


@dataclass(frozen=True, slots=True)
class Expire:
    """Command: tell the client of these rows that their deadline passed before there was an answer."""

    tag: Any
    places: Sequence[int] = ALONE


@dataclass(frozen=True, slots=True)
class Fail:
    """Command: tell the client of these rows that the first stage failed on them.

    Attributes:
        tag: of the request.
        places: which of its rows.
        poisoned: whether it is the rows' own doing: they failed alone while the stage gave others back.
    """

    tag: Any
    places: Sequence[int] = ALONE
    poisoned: bool = False


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
