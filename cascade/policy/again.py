"""Rows whose batch failed, and in which parts they are tried again. Knows batches; sends none, and has no clock.

One row on which a network fails takes its whole batch along. Whose fault it was cannot be seen from outside, so the batch
is halved until the rows that fail are alone: with p of them among B that is at most 2 p log2(B) calls more, and every other
row gets its answer. A *trial* is all that became of one failed batch.

Where a stage fails on everything, halving would only multiply calls that fail. So once a stage has failed `OUT_OF_ORDER`
times without giving anything back, batches are tried once more as they are, and only one trial at a time still halves: if it
was the rows after all, that one finds the others, and what it gets back opens the way for the rest.

A row is *poisoned* if it failed again and again, at last alone, while the stage gave others back, be it others of its batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cascade.policy.commands import Batch, Trial
from cascade.policy.walk import Walk, rows_of

OUT_OF_ORDER = 32
"""Failures in a row, with nothing given back between them, after which a stage is taken to fail on everything. More than one
poisoned row in every batch brings a few in a row, because the smaller parts come back."""

BLAMED_AFTER = 3
"""Failures after which it may have been the row. A stage that fails on one call of ten by chance fails twice on one row of a
hundred."""


class Part(NamedTuple):
    """Rows that are to be sent once more, together.

    Attributes:
        walks: the rows; some may have got their outcome meanwhile.
        attempt: how often they will have been sent then.
        trial: what they are a part of.
    """

    walks: Sequence[Walk]
    attempt: int
    trial: Trial


class Again:
    """What failed at one stage and is to be tried again."""

    __slots__ = ("_failing", "_returned", "_trying", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Part] = deque()
        self._failing = 0
        self._returned = 0
        self._trying: Trial | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def rows(self) -> int:
        """Rows that wait to be sent again."""
        return sum([rows_of([walk for walk in part.walks if not walk.done]) for part in self._waiting])

    def came_back(self, batch: Batch) -> None:
        """The stage gave a batch back."""
        self._failing = 0
        self._returned += 1
        if batch.trial is not None:
            batch.trial.parts -= 1

    def failed(self, batch: Batch, live: Sequence[Walk], *, hung: bool, out: bool = False) -> bool:
        """A batch failed: let what is worth it wait to be sent again.

        Args:
            batch: the batch.
            live: its rows that have no outcome yet.
            hung: whether it never came back. What hangs is tried once more elsewhere but not halved: its parts would hang
                too, and each takes a replica.
            out: whether the stage has no place left, so that nothing is tried again.

        Returns:
            Whether they wait now. If not, they have been tried often enough.
        """
        self._failing += 1
        trial = batch.trial
        if trial is None:
            trial = Trial(self._returned)
        else:
            trial.parts -= 1
        if not live or out:
            return False
        if batch.rows > 1 and not hung and self._may_halve(trial):
            parts: Sequence[Sequence[Walk]] = halves(live)
        elif batch.attempt == 1:
            parts = [live]
        else:
            return False
        trial.parts += len(parts)
        self._waiting.extend(Part(part, batch.attempt + 1, trial) for part in parts)
        return True

    def _may_halve(self, trial: Trial) -> bool:
        if self._failing < OUT_OF_ORDER:
            return True
        if self._trying is None or not self._trying.parts:
            self._trying = trial
        return self._trying is trial

    def poisoned(self, batch: Batch) -> bool:
        """Whether a batch that failed for the last time was a poisoned row."""
        surely = batch.rows == 1 and batch.attempt >= BLAMED_AFTER
        return surely and batch.trial is not None and self._returned > batch.trial.returned

    def next(self) -> Part | None:
        """Take the part that waits for longest, None if none does."""
        return self._waiting.popleft() if self._waiting else None

    def drop(self, part: Part) -> None:
        """A part that was taken will not be sent."""
        part.trial.parts -= 1

    def drain(self) -> Iterator[Walk]:
        """Take the rows of all parts that wait, those without an outcome."""
        while (part := self.next()) is not None:
            self.drop(part)
            yield from (walk for walk in part.walks if not walk.done)


def halves(walks: Sequence[Walk]) -> list[list[Walk]]:
    """Rows as two parts of equal size, or as one if it is a single row; rows that walk together are parted where they must.

    Args:
        walks: at least one.
    """
    room = (rows_of(walks) + 1) // 2
    parts: list[list[Walk]] = [[], []]
    for walk in walks:
        if 0 < room < walk.rows:
            rest = walk.part(walk.rows - room)
            parts[0].append(walk)
            parts[1].append(rest)
            room = 0
        else:
            parts[room <= 0].append(walk)
            room -= walk.rows
    return [part for part in parts if part]
