"""The rows of one client's message on their way: who waits for them, and what they have been answered with so far.

Two kinds: a client that wants the answers when all of them are there, and one that watches them get better. Knows asyncio
and the policy's values; no stage, no wire.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import NamedTuple, NotRequired, TypedDict

from cascade.errors import Overloaded
from cascade.models.stage import Arrays
from cascade.policy.anytime import Rule, Shown
from cascade.policy.commands import Shed
from cascade.policy.explain import Trail
from cascade.policy.request import Answer, SoFar
from cascade.serving.states import Kept

GAP_S_PER_ROW = 1e-4
"""A message of n rows is shown again no sooner than n times this after it was shown: the rows of a large message come back
in many batches, and to show all of them after each would cost in proportion to the square of their number. The last showing
waits for nothing."""


class Asked(TypedDict):
    """On which terms a message asks for its answer."""

    budget_s: float
    """Seconds until its deadline."""
    priority: NotRequired[int]
    """Its class, 1 is the most important; 1 by default."""
    max_cost: NotRequired[float]
    """Most that a row's stages may cost together; no limit by default."""
    tenant: NotRequired[str]
    """For whom it is, empty if nobody is named."""
    min_confidence: NotRequired[float]
    """Probability of being right with which the client is content; above 1, as by default, for no such wish."""
    trail: NotRequired[Trail | None]
    """Where to write down how its rows go; None, by default, for nowhere."""


class Message:
    """One message whose client waits for the end.

    Attributes:
        inputs: one array [rows, *row] for each input of the ladder; empty once it has ended.
        missing: rows without an answer that is final.
        done: all answers, in order, or why there are none.
        kept: what a stage left of each row to resume from; None if none ever did.
        trail: where it is written down how its rows leave; None for nearly all messages.

    Args:
        inputs: see above.
        rows: rows in it.
        done: see above.
    """

    __slots__ = ("answers", "done", "inputs", "kept", "missing", "trail")

    def __init__(self, inputs: Arrays, rows: int, done: asyncio.Future[list[Answer]]) -> None:
        self.inputs = inputs
        self.answers: list[Answer | None] = [None] * rows
        self.missing = rows
        self.done = done
        self.kept: list[Kept | None] | None = None  # most ladders have nothing to keep
        self.trail: Trail | None = None

    def reply(self, places: Sequence[int], answers: Sequence[Answer]) -> None:
        """These rows have their answers."""
        for place, answer in zip(places, answers, strict=True):
            self.answers[place] = answer
        self.missing -= len(places)
        if not self.missing and not self.done.done():
            self.done.set_result(self.answers)  # type: ignore[arg-type]  # none is missing

    def preliminary(self, row: int, answer: SoFar) -> None:
        """A row has an answer and goes on."""

    def refuse(self, error: Exception) -> None:
        """A row will have no answer, so the message has none."""
        if not self.done.done():
            self.done.set_exception(error)


class RowState(NamedTuple):
    """A row as it is shown.

    Attributes:
        answer: how it left the ladder, or where it is.
        shown: what the client is to see.
    """

    answer: Answer | SoFar
    shown: Shown


class Refined(NamedTuple):
    """All rows of a message as they are shown together.

    Attributes:
        rows: in order.
        waiting: how many of them may still change; 0 makes it the last showing.
    """

    rows: list[RowState]
    waiting: int


class StreamedMessage(Message):
    """One message whose client watches. It holds one state of each row, the newest, however slowly the client looks.

    Args:
        inputs: see `Message`.
        rows: rows in it.
        done: see `Message`.
        rule: what is shown of a row as its answers come.
        clock: seconds, the event loop's own clock.
    """

    __slots__ = ("_clock", "_gap_s", "_news", "_rule", "_shown_s", "_states", "_unanswered")

    def __init__(
        self, inputs: Arrays, rows: int, done: asyncio.Future[list[Answer]], rule: Rule, clock: Callable[[], float]
    ) -> None:
        super().__init__(inputs, rows, done)
        self._rule = rule
        self._clock = clock
        self._states: list[RowState | None] = [None] * rows
        self._unanswered = rows
        self._news = asyncio.Event()
        self._gap_s = rows * GAP_S_PER_ROW
        self._shown_s = -inf
        done.add_done_callback(lambda _: self._news.set())

    def reply(self, places: Sequence[int], answers: Sequence[Answer]) -> None:
        """These rows have their answers, which are shown as the rule says."""
        for place, answer in zip(places, answers, strict=True):
            self._take(place, answer, answer.stage)
        super().reply(places, answers)

    def preliminary(self, row: int, answer: SoFar) -> None:
        """A row has an answer that is to be shown while it goes on."""
        self._take(row, answer, answer.stage)

    def _take(self, row: int, answer: Answer | SoFar, stage: int) -> None:
        before = self._states[row]
        if before is None:
            self._unanswered -= 1
        if before is not None and stage == before.answer.stage:
            shown = before.shown  # it leaves with the answer that it had
        else:
            shown = self._rule(None if before is None else before.shown, stage, answer.judgement, answer.row)
        self._states[row] = RowState(answer, shown)
        if not self._unanswered:
            self._news.set()

    async def refined(self, patience_s: float) -> Refined | None:
        """All rows, once every one of them has an answer and something is new since the last time.

        Args:
            patience_s: how long to wait for news. The first showing is waited for without end, which the deadline brings.

        Returns:
            The rows; None if there was no news in that time.

        Raises:
            CascadeError: a row will have no answer.
        """
        if self._shown_s == -inf:
            await self._news.wait()
        else:
            if not await self._news_within(patience_s):
                return None
            await self._gap()
        self._news.clear()
        if self.done.done():
            self.done.result()
        self._shown_s = self._clock()
        return Refined([state for state in self._states if state is not None], self.missing)

    async def _news_within(self, patience_s: float) -> bool:
        if not self._news.is_set():
            try:
                async with asyncio.timeout(patience_s if patience_s < inf else None):
                    await self._news.wait()
            except TimeoutError:
                return False
        return True

    async def _gap(self) -> None:
        """Let the gap pass, or the message end."""
        left_s = self._shown_s + self._gap_s - self._clock()
        if left_s > 0 and not self.done.done():
            await asyncio.wait([self.done], timeout=left_s)


def overloaded(shed: Shed) -> Overloaded:
    """The error that tells a client to come back later. Its sentence is one of few, so that it can be encoded once."""
    if isfinite(shed.wait_s):
        return Overloaded("the first stage would begin too late for the request's deadline", shed.retry_after_s, shed.hold_s)
    return Overloaded("the first stage is out", shed.retry_after_s, shed.hold_s)
