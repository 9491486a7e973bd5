"""One row's way through the ladder: a table-driven state machine. Everything that changes a row's state is in this file.

It does not know why something happens to a row, only what may happen next: an event that the table does not hold for the
present state raises, and nothing changes. That a row with an answer is never shed, expired or failed is a property of the
table: from judged, deferred and escalated, the states that hold an answer, the only ways out are answered and cancelled.

    arrived    ADMIT → waiting     SHED → shed
    waiting    CALL → running      EXPIRE → expired   FAIL → failed       CANCEL → cancelled
    running    RETRY → running     RESULT → judged    EXPIRE → expired    FAIL → failed        CANCEL → cancelled
    judged     DEFER → deferred    EXIT → answered
    deferred   CALL → escalated    BYPASS → deferred  EXIT → answered     CANCEL → cancelled
    escalated  RETRY → escalated   RESULT → judged    EXIT → answered     CANCEL → cancelled

The rows of one request fare alike until a stage has judged them, so until then they walk together, as one walk; whatever
happens to it happens to all of them. Where that ends, rows are parted from it into walks of their own, in its state.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from cascade.policy.gain import Earlier, Floats, Judgement
from cascade.policy.request import Answer, ExitReason, Request, SoFar, Span


class State(StrEnum):
    """Where a row is. The last five are outcomes: a row ends in exactly one of them."""

    __hash__ = str.__hash__  # see `ExitReason`

    ARRIVED = "arrived"
    WAITING = "waiting"
    RUNNING = "running"
    JUDGED = "judged"
    DEFERRED = "deferred"
    ESCALATED = "escalated"
    ANSWERED = "answered"
    SHED = "shed"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to a row."""

    __hash__ = str.__hash__

    ADMIT = "admit"
    SHED = "shed"
    CALL = "call"
    RETRY = "retry"
    RESULT = "result"
    DEFER = "defer"
    BYPASS = "bypass"
    EXIT = "exit"
    EXPIRE = "expire"
    FAIL = "fail"
    CANCEL = "cancel"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.ARRIVED: {Event.ADMIT: State.WAITING, Event.SHED: State.SHED},
    State.WAITING: {
        Event.CALL: State.RUNNING,
        Event.EXPIRE: State.EXPIRED,
        Event.FAIL: State.FAILED,
        Event.CANCEL: State.CANCELLED,
    },
    State.RUNNING: {
        Event.RETRY: State.RUNNING,
        Event.RESULT: State.JUDGED,
        Event.EXPIRE: State.EXPIRED,
        Event.FAIL: State.FAILED,
        Event.CANCEL: State.CANCELLED,
    },
    State.JUDGED: {Event.DEFER: State.DEFERRED, Event.EXIT: State.ANSWERED},
    State.DEFERRED: {
        Event.CALL: State.ESCALATED,
        Event.BYPASS: State.DEFERRED,
        Event.EXIT: State.ANSWERED,
        Event.CANCEL: State.CANCELLED,
    },
    State.ESCALATED: {
        Event.RETRY: State.ESCALATED,
        Event.RESULT: State.JUDGED,
        Event.EXIT: State.ANSWERED,
        Event.CANCEL: State.CANCELLED,
    },
    State.ANSWERED: {},
    State.SHED: {},
    State.EXPIRED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}

OUTCOMES = frozenset(state for state, events in TRANSITIONS.items() if not events)
ALONE: Sequence[int] = (0,)
"""The places of a request's rows where it has one."""


class IllegalTransition(Exception):
    """The driver or the policy let something happen to a row that cannot happen in its state."""


class Walk:
    """The state of one row, or of rows that walk together; its best answer so far, and what each of them has spent.

    Attributes:
        request: the facts it came with.
        places: which rows of the request these are, ascending.
        rows: how many.
        parted: the walks parted from it that may not have their outcome yet. They have this list in common.
        state: where it is.
        stage: the stage that it waits for or runs on.
        place: its key in the queue of that stage, while it waits.
        entered_s: when it came to the queue of that stage, and once its batch was sent, when that was.
        protected: whether its class's floor goes on to the stage that was found to be next; set by whoever decides that.
        queued_s: seconds it waited for the stage that it was last sent to.
        usable_until_s: until when a result is of use: the answer instant once there is an answer, else the deadline.
        answer: what it was answered with, once it was.
    """

    __slots__ = (
        "_best_row",
        "_best_stage",
        "_judgement",
        "_spans",
        "answer",
        "cost",
        "deferrals",
        "entered_s",
        "escalations",
        "parted",
        "place",
        "places",
        "protected",
        "queued_s",
        "request",
        "rows",
        "stage",
        "state",
        "usable_until_s",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.rows = request.rows
        self.places: Sequence[int] = ALONE if request.rows == 1 else range(request.rows)
        self.parted: list[Walk] = []
        self.state = State.ARRIVED
        self.stage = 0
        self.place: tuple[float, int] = (0.0, 0)
        self.protected = False
        self.usable_until_s = request.deadline_s
        self.answer: Answer | None = None
        self.cost = 0.0
        self.deferrals = 0
        self.escalations = 0
        self._spans: list[Span] = []
        self.entered_s = request.arrived_s
        self.queued_s = 0.0
        self._judgement: Judgement | None = None
        self._best_stage = -1
        self._best_row = -1

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return self.state in OUTCOMES

    @property
    def ended(self) -> bool:
        """Whether it and every walk parted from it have their outcome."""
        if self.state not in OUTCOMES:
            return False
        while self.parted and self.parted[-1].done:
            self.parted.pop()
        return not self.parted

    @property
    def has_answer(self) -> bool:
        """Whether a stage has answered it."""
        return self._judgement is not None

    @property
    def best(self) -> tuple[int, Floats]:
        """The stage of the best answer so far, and the gains that its evidence promises, [1, stages behind it]."""
        if self._judgement is None:
            raise IllegalTransition(f"no answer in state {self.state}")
        return self._best_stage, self._judgement.gains[self._best_row : self._best_row + 1]

    @property
    def so_far(self) -> SoFar:
        """The best answer so far, for a client that wants to see it."""
        if self._judgement is None:
            raise IllegalTransition(f"no answer in state {self.state}")
        return SoFar(self._best_stage, self._judgement, self._best_row, self.cost, tuple(self._spans))

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(f"{event} in state {self.state}") from None

    def part(self, rows: int) -> "Walk":
        """Let the last of its rows, so many but not all, walk without it; returns their walk."""
        kept = self.rows - rows
        other = self._other(self.places[kept:])
        self.places, self.rows = self.places[:kept], kept
        return other

    def part_each(self, places: Sequence[int]) -> list["Walk"]:
        """Let each of these rows walk alone.

        Args:
            places: which of its rows, ascending. If these are all of them, it is itself the walk of the first.

        Returns:
            It, then the walks of the others, in this order.
        """
        if len(places) == self.rows:
            places = places[1:]
        others = [self._other((place,)) for place in places]
        if others:
            alone = set(places)
            left = [place for place in self.places if place not in alone]
            self._best_row += left[0] - self.places[0]
            self.places, self.rows = left, len(left)
        return [self, *others]

    def _other(self, places: Sequence[int]) -> "Walk":
        """A walk of some of its rows, in its state."""
        other = Walk(self.request)
        other.places, other.rows = places, len(places)
        self.parted.append(other)
        other.parted = self.parted
        other.state = self.state
        other.stage = self.stage
        other.place = self.place
        other.usable_until_s = self.usable_until_s
        other.cost = self.cost
        other.deferrals = self.deferrals
        other.escalations = self.escalations
        other._spans = self._spans[:]
        other.entered_s = self.entered_s
        other.queued_s = self.queued_s
        other._judgement = self._judgement
        other._best_stage = self._best_stage
        other._best_row = self._best_row + places[0] - self.places[0]
        return other

    def admit(self) -> None:
        """It was let in and waits for stage 0."""
        self._move(Event.ADMIT)

    def shed(self) -> None:
        """It was turned away at the door."""
        self._move(Event.SHED)

    def called(self, now: float, cost: float) -> None:
        """Its batch was sent to the stage it waited for, which costs ``cost`` whatever becomes of it."""
        self._move(Event.CALL)
        self.cost += cost
        self.queued_s = now - self.entered_s
        self.entered_s = now

    def retried(self) -> None:
        """Its batch failed and was sent once more."""
        self._move(Event.RETRY)

    def result(self, now: float, judgement: Judgement, row: int) -> None:
        """Its stage answered, the first of its rows in row ``row``: this is the best answer now.

        Must be followed by `defer` or `exit`.
        """
        escalated = self.state is State.ESCALATED
        self._move(Event.RESULT)
        self.escalations += escalated
        self._spans.append(Span(self.stage, self.queued_s, now - self.entered_s))
        self._judgement = judgement
        self._best_stage = self.stage
        self._best_row = row
        self.protected = False
        self.usable_until_s = self.request.answer_by_s

    def defer(self, now: float, stage: int) -> None:
        """The rule asks for a dearer stage, and it waits for that one."""
        self._move(Event.DEFER)
        self.deferrals += 1
        self.stage = stage
        self.entered_s = now

    def bypass(self, stage: int) -> None:
        """The stage it waits for is out, or too full to come to it; it waits for another one instead."""
        self._move(Event.BYPASS)
        self.stage = stage

    def exit(self, reason: ExitReason, *, deferred: bool) -> Answer:
        """It is answered with the best answer so far.

        Args:
            reason: why it stops here.
            deferred: whether the rule asked for a dearer stage just now, without a `defer` having been recorded.
        """
        judgement = self._judgement
        if judgement is None:
            raise IllegalTransition(f"exit without an answer in state {self.state}")
        self._move(Event.EXIT)
        self.deferrals += deferred
        self.answer = Answer(
            stage=self._best_stage,
            reason=reason,
            judgement=judgement,
            row=self._best_row,
            cost=self.cost,
            deferrals=self.deferrals,
            escalations=self.escalations,
            spans=tuple(self._spans),
        )
        self._judgement = None
        return self.answer

    def expire(self) -> None:
        """Its deadline passed before any stage had answered."""
        self._move(Event.EXPIRE)

    def fail(self) -> None:
        """The first stage failed for good."""
        self._move(Event.FAIL)

    def cancel(self) -> None:
        """Its client has gone."""
        self._move(Event.CANCEL)
        self._judgement = None

    def write_best(self, into: Earlier, place: int) -> None:
        """Copy the best answer so far into row ``place`` of ``into``; a row without one, or done, leaves it as it is."""
        if self._judgement is not None:
            into.probabilities[place] = self._judgement.probabilities[self._best_row]
            into.p_correct[place] = self._judgement.p_correct[self._best_row]


def answers_so_far(walks: Sequence[Walk], classes: int) -> Earlier:
    """What the rows of a batch have been answered with before it, for a judge that looks back.

    Rows that have got their outcome meanwhile hold a uniform guess, which nobody will read.

    Args:
        walks: the batch's rows, behind the first stage, where each walks alone.
        classes: number of classes.
    """
    earlier = Earlier(np.full((len(walks), classes), 1.0 / classes), np.zeros(len(walks)))
    for place, walk in enumerate(walks):
        walk.write_best(earlier, place)
    return earlier


def rows_of(walks: Sequence[Walk]) -> int:
    """How many rows these are."""
    return sum([walk.rows for walk in walks])
