"""The facts a decision needs about one row, and the answer it ends with. Knows no model, no clock and no transport.

A client's message may hold many rows; each row walks the ladder on its own, so the unit of every decision is a row.
All instants are seconds on whatever clock the driver uses; only their differences matter.

Values of which every row has one are named tuples: a frozen dataclass takes four times as long to make.
"""

from collections.abc import Iterable
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from cascade.policy.gain import Judgement

if TYPE_CHECKING:
    from cascade.policy.explain import Trail


class ExitReason(StrEnum):
    """Why a row left the ladder at the stage that answered it."""

    __hash__ = str.__hash__  # an enum's own is a Python function, and tables are looked into several times for each row

    CONFIDENT = "confident"
    """No dearer stage promises more than its base price: the unloaded rule stops here."""
    LAST_STAGE = "last_stage"
    """There is no dearer stage."""
    PRICE = "price"
    """The unloaded rule would have escalated; the present price was above the gain."""
    EVICTED = "evicted"
    """It waited for a dearer stage and rows with more to gain took its place."""
    DEADLINE = "deadline"
    """The dearer stage could not have answered, or did not answer, in time."""
    BUDGET = "budget"
    """The dearer stage would have cost more than the client allowed."""
    FAILURE = "failure"
    """The dearer stage failed or is out."""
    SATISFIED = "satisfied"
    """A dearer stage would have been worth its base price, but the client is content with an answer this probably right."""


DEGRADING = frozenset({ExitReason.PRICE, ExitReason.EVICTED, ExitReason.DEADLINE, ExitReason.BUDGET, ExitReason.FAILURE})
"""The reasons that make an answer *degraded*: the unloaded rule deferred, yet the answer was given here."""


class Request(NamedTuple):
    """One row that asks for an answer, or several that ask on the same terms, as the rows of a client's message do.

    Attributes:
        tag: the driver's own handle; the policy never looks at it.
        arrived_s: instant of arrival.
        answer_by_s: the instant at which the best answer so far leaves, the deadline less the driver's own overhead.
        deadline_s: the instant after which an answer is worth nothing.
        priority: class of the row, 1 is the most important.
        budget: most that the stages it runs on may cost together, in the ladder's cost unit; of several rows, each one's.
        tenant: who asks; empty if nobody said so. Tenants of a class share what it gets.
        min_confidence: probability of being right with which the client is content; above 1 if nothing less than the
            ladder's own rule will do.
        refine: whether the client wants to see the answers that it has while it goes on.
        rows: how many rows; each gets an answer of its own.
        trail: where to write down why it goes the way it goes; None for nearly all requests.
    """

    tag: Any
    arrived_s: float
    answer_by_s: float
    deadline_s: float
    priority: int = 1
    budget: float = inf
    tenant: str = ""
    min_confidence: float = inf
    refine: bool = False
    rows: int = 1
    trail: "Trail | None" = None


class Span(NamedTuple):
    """One visit to a stage: seconds in its queue, then seconds until its batch came back."""

    stage: int
    queued_s: float
    run_s: float


class SoFar(NamedTuple):
    """The best answer so far of a row that goes on: a preliminary answer.

    Attributes:
        stage: index of the stage that has answered last.
        judgement: evidence of the batch that the row was part of there.
        row: the row's place in that batch.
        cost: cost of every stage the row was sent to, in the ladder's cost unit.
        spans: the visits, in order.
    """

    stage: int
    judgement: Judgement
    row: int
    cost: float
    spans: tuple[Span, ...]

    @property
    def confidence(self) -> float:
        """Calibrated probability that this answer is right."""
        return float(self.judgement.p_correct[self.row])


class Answer(NamedTuple):
    """What a row is answered with, and where that came from.

    Attributes:
        stage: index of the stage where it stopped.
        reason: why the row stopped there.
        judgement: evidence of the batch that the row was part of.
        row: the row's place in that batch.
        cost: cost of every stage the row was sent to, in the ladder's cost unit, whether it came back in time or not.
        deferrals: how often the unloaded rule asked for a dearer stage.
        escalations: how often a dearer stage then answered; ``deferrals - escalations`` is 1 if degraded, else 0.
        spans: the visits, in order.
    """

    stage: int
    reason: ExitReason
    judgement: Judgement
    row: int
    cost: float
    deferrals: int
    escalations: int
    spans: tuple[Span, ...]

    def of_rows(self, rows: Iterable[int]) -> list["Answer"]:
        """The same answer for other rows of that batch."""
        stage, reason, judgement, _, cost, deferrals, escalations, spans = self
        return [Answer(stage, reason, judgement, row, cost, deferrals, escalations, spans) for row in rows]

    @property
    def degraded(self) -> bool:
        """Whether the unloaded rule would have gone on from here."""
        return self.deferrals > self.escalations

    @property
    def confidence(self) -> float:
        """Calibrated probability that this answer is right."""
        return float(self.judgement.p_correct[self.row])

    @property
    def recalled(self) -> bool:
        """Whether a stage before the one it stopped at gave this answer, and that one did not change it."""
        recalled = self.judgement.recalled
        return recalled is not None and bool(recalled[self.row])
