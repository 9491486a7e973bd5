"""How a row ends: with an answer, or as expired or failed; counted. Decides nothing about when."""

from cascade.policy.classes import Classes
from cascade.policy.commands import Command, Expire, Fail, Reply
from cascade.policy.request import ExitReason
from cascade.policy.stats import Counts
from cascade.policy.walk import Walk


class Endings:
    """Ends rows.

    Attributes:
        counts: where it is counted.

    Args:
        counts: see above.
        classes: the classes of rows.
    """

    __slots__ = ("_classes", "counts")

    def __init__(self, counts: Counts, classes: Classes) -> None:
        self.counts = counts
        self._classes = classes

    def reply(self, walk: Walk, reason: ExitReason, *, deferred: bool) -> Reply:
        """Answer a row with the best answer that it has; see `Walk.exit`."""
        answer = walk.exit(reason, deferred=deferred)
        place = self._classes.index(walk.request.priority)
        self.counts.count_answer(answer, place, below_floor=walk.protected and answer.degraded, rows=walk.rows)
        return Reply(walk.request.tag, answer, walk.places)

    def give_up(self, walk: Walk, reason: ExitReason, poisons: int | None = None) -> Command:
        """End a row, or rows that walk together, now: with its best answer if it has one, else as expired or failed.

        Args:
            walk: the row.
            reason: why.
            poisons: the stage that fails on it, where it is the row's own doing.
        """
        if poisons is not None:
            self.counts.stages[poisons].poisoned += walk.rows
        if walk.has_answer:
            return self.reply(walk, reason, deferred=False)
        if reason is ExitReason.FAILURE:
            walk.fail()
            self.counts.failed += walk.rows
            return Fail(walk.request.tag, walk.places, poisons is not None)
        walk.expire()
        self.counts.expired += walk.rows
        return Expire(walk.request.tag, walk.places)
