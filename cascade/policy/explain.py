"""What was known when a row's way was decided, for whoever asks why. Knows the values of a decision; decides nothing.

Only requests that bring a `Trail` are written down, so that all others pay one look at a field. The notes are taken right
after the decision, from the same gains, prices and capacities, at the same instant.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from cascade.policy.capacity import StageCapacity
from cascade.policy.classes import Classes
from cascade.policy.commands import Batch, Command, Reply
from cascade.policy.gain import Judgement
from cascade.policy.onward import Onward
from cascade.policy.queue import StageQueue
from cascade.policy.request import Answer, ExitReason, Request
from cascade.policy.stage_config import StageConfig
from cascade.policy.tariff import Tariff
from cascade.policy.walk import Walk

MOST_ROWS = 16
"""Rows of a request that are written down, its first ones; a message of a thousand is answered like its first few."""


class BatchFacts:
    """One batch that explained rows were part of.

    Attributes:
        stage: index of the stage.
        rows: rows in it, all of them.
        attempt: 1, or 2 where the first one failed.
        sent_s: when it was sent.
        back_s: when it came back.
        handles: the handles of the trails whose rows were in it.
        handle: the driver's own, for the batch itself.
    """

    __slots__ = ("attempt", "back_s", "handle", "handles", "rows", "sent_s", "stage")

    def __init__(self, batch: Batch, back_s: float, handles: list[Any]) -> None:
        self.stage = batch.stage
        self.rows = batch.rows
        self.attempt = batch.attempt
        self.sent_s = batch.started_s
        self.back_s = back_s
        self.handles = handles
        self.handle: Any = None


class Onwards(NamedTuple):
    """Going on, as it looked to one row.

    Attributes:
        stage: the stage that the row would go to.
        value: what going there is worth to the row: a gain, less what stages between cost at base prices.
        price: what that had to exceed for a row of its class and tenant.
        base_price: the same when nothing is scarce.
        protected: whether the row's class is promised the visit by its floor.
        soonest_s: when the stage could have answered it at the earliest.
        waiting: rows in the stage's queue, with this row if it went on.
        affordable: whether the row's budget allowed it.
        out: whether no dearer stage had a replica; then this is about the next one, and no value or price counted.
    """

    stage: int
    value: float
    price: float
    base_price: float
    protected: bool
    soonest_s: float
    waiting: int
    affordable: bool
    out: bool


class Note(NamedTuple):
    """One row, judged by one stage.

    Attributes:
        place: which row of the request.
        batch: the batch that it was part of.
        queued_s: how long it had waited for the stage.
        at_s: when this was decided.
        usable_until_s: until when a dearer answer would be of use.
        confidence: how sure the answer is.
        p_correct: probability that it is right.
        recalled: whether it is an earlier stage's.
        gains: of each dearer stage over it, in order.
        prices: present price of each dearer stage.
        onward: going on, None at the last stage.
        reason: why it left here; None if it went on.
    """

    place: int
    batch: BatchFacts
    queued_s: float
    at_s: float
    usable_until_s: float
    confidence: float
    p_correct: float
    recalled: bool
    gains: tuple[float, ...]
    prices: tuple[float, ...]
    onward: Onwards | None
    reason: ExitReason | None


class End(NamedTuple):
    """How a row left.

    Attributes:
        at_s: when.
        answer: what it was answered with.
    """

    at_s: float
    answer: Answer


class Trail:
    """What is written down of one request.

    Attributes:
        request: its terms; set by the driver, who hands it to the policy.
        notes: of its rows, in order of time.
        ends: how each row left, by place; written by the driver, who answers it.
        handle: the driver's own.

    Args:
        handle: see above.
    """

    __slots__ = ("ends", "handle", "notes", "request")

    def __init__(self, handle: Any = None) -> None:
        self.request: Request | None = None
        self.notes: list[Note] = []
        self.ends: dict[int, End] = {}
        self.handle = handle

    def left(self, at_s: float, places: Sequence[int], answers: Sequence[Answer]) -> None:
        """These rows are answered."""
        for place, answer in zip(places, answers, strict=True):
            if place < MOST_ROWS:
                self.ends[place] = End(at_s, answer)


class Explained(NamedTuple):
    """Rows of a batch to be written down, as they were before it was decided about.

    Attributes:
        row: place in the batch of the first of them.
        walk: their walk.
        places: which rows of the request they are.
    """

    row: int
    walk: Walk
    places: Sequence[int]


def explained(walks: Sequence[Walk]) -> list[Explained]:
    """Those rows of a batch that bring a trail; to be called before anything is decided about them."""
    if not [True for walk in walks if walk.request.trail is not None]:
        return []
    found, row = [], 0
    for walk in walks:
        if walk.request.trail is not None and not walk.done:
            found.append(Explained(row, walk, walk.places))
        row += walk.rows
    return found


class Notes:
    """Writes into the trails.

    Args:
        stages: cheapest first.
        capacities: of the stages.
        queues: of the stages.
        classes: the classes of rows.
        tariff: what a visit costs whom.
        onward: where rows go.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        capacities: Sequence[StageCapacity],
        queues: Sequence[StageQueue],
        classes: Classes,
        tariff: Tariff,
        onward: Onward,
    ) -> None:
        self._stages = stages
        self._capacities = capacities
        self._queues = queues
        self._classes = classes
        self._tariff = tariff
        self._onward = onward

    def take(
        self, now: float, batch: Batch, judgement: Judgement, rows: Sequence[Explained], commands: Sequence[Command]
    ) -> None:
        """Write down what was just decided about a batch.

        Args:
            now: the instant of the decision.
            batch: the batch.
            judgement: what its evidence says.
            rows: what `explained` found.
            commands: what was decided.
        """
        trails = {id(each.walk.request.trail): each.walk.request.trail for each in rows}
        handles = [trail.handle for trail in trails.values() if trail is not None and trail.handle is not None]
        facts = BatchFacts(batch, now, handles)
        prices = self._tariff.prices[batch.stage + 1 :]
        for first, walk, places in rows:
            request, trail = walk.request, walk.request.trail
            assert trail is not None
            replies = [each for each in commands if isinstance(each, Reply) and each.tag is request.tag]
            reasons = {place: reply.answer.reason for reply in replies for place in reply.places}
            for place in places:
                row = first + place - places[0]
                if place >= MOST_ROWS:
                    break
                trail.notes.append(
                    Note(
                        place=place,
                        batch=facts,
                        queued_s=walk.queued_s,
                        at_s=now,
                        usable_until_s=request.answer_by_s,
                        confidence=float(judgement.confidence[row]),
                        p_correct=float(judgement.p_correct[row]),
                        recalled=judgement.recalled is not None and bool(judgement.recalled[row]),
                        gains=tuple(judgement.gains[row].tolist()),
                        prices=prices,
                        onward=self._going_on(now, batch.stage, judgement, row, walk),
                        reason=reasons.get(place),
                    )
                )

    def _going_on(self, now: float, stage: int, judgement: Judgement, row: int, walk: Walk) -> Onwards | None:
        everywhere = range(stage + 1, len(self._stages))
        if not everywhere:
            return None
        request: Request = walk.request
        open_stages = self._onward.open_behind(stage)
        ways = self._onward.ways(judgement.gains, stage, open_stages or everywhere)
        soonest = self._onward.soonest(now, ways)
        pays = partial(self._tariff.pays, now, request)
        target, value = ways.best(row, pays, partial(self._onward.barred, walk, soonest))
        return Onwards(
            stage=target,
            value=value,
            price=pays(target),
            base_price=self._tariff.base_prices[target],
            protected=self._classes.protects(request.priority, target, value),
            soonest_s=soonest[target],
            waiting=len(self._queues[target]),
            affordable=self._onward.affordable(walk, target),
            out=not open_stages,
        )
