"""The rows that wait for one stage, most valuable first, and the batches formed from them. Knows keys, deadlines, sizes.

This queue is the fast loop of the whole server: when a slot is free it gives the rows with most to gain that can still
make their deadline; when it is full the least valuable row leaves. No controller sits between load and quality.

A key is a row's surplus, and more for a protected row (see `cascade.policy.classes`). Where several tenants wait they take
turns within what their class gets (see `cascade.policy.lanes`).

Rows that walk together have one entry. They keep it while batches take them in the order of their keys alone, which may part
them where a batch is full; where anything else is to be weighed each gets its own.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from math import inf
from operator import attrgetter

from cascade.policy.alarms import Alarms
from cascade.policy.classes import PROTECTED
from cascade.policy.lanes import Lanes, Turns
from cascade.policy.ranking import Entry, Ranking
from cascade.policy.reach import Reach
from cascade.policy.walk import Walk, rows_of

PATIENCE = 0.5
"""Share of its time to the answer instant that a row may wait for one stage, once the stage has passed it over."""


class StageQueue:
    """Rows ordered by key; among equals the one that came first goes first.

    What happens to one row costs the same however many wait, but for the logarithm: a queue is bounded by work, and before
    a thousand replicas that is tens of thousands of rows.
    """

    __slots__ = (
        "_here",
        "_impatient",
        "_lanes",
        "_late",
        "_protected",
        "_ranking",
        "_reach",
        "_rows",
        "_sequence",
        "_tenant",
        "_together",
        "_turns",
    )

    def __init__(self) -> None:
        self._ranking = Ranking()
        self._here: dict[int, Entry] = {}  # by their place among equals, of which there is one for each row that ever came
        self._rows = 0
        self._together = 0  # entries of several rows
        self._late: Alarms | None = None  # these two are kept from when they are first needed, which may be never
        self._impatient: Alarms | None = None
        self._protected = 0
        self._reach = Reach()
        self._sequence = 0
        # None as long as one tenant alone, this one, has waited since the queue was last empty.
        self._lanes: Lanes | None = None
        self._tenant = ""
        self._turns: Turns = {}

    def __len__(self) -> int:
        return self._rows

    @property
    def protected(self) -> int:
        """How many of the rows are protected."""
        return self._protected

    def push(self, walk: Walk, key: float) -> None:
        """Add a row, or rows that walk together, with the key that each of them has."""
        if not self._here:
            self._tenant = walk.request.tenant
            if self._lanes is not None:
                self._lanes = None
                self._turns = {}
        elif self._lanes is None and walk.request.tenant != self._tenant:
            self._part_all()
            self._lanes = Lanes(self._here)
        self._sequence -= walk.rows  # a place for each row, the first one's before the others'
        self._rows += walk.rows
        self._protected += walk.rows * (key >= PROTECTED)
        entry = self._enter(walk, key, self._sequence + walk.rows - 1)
        if self._lanes is not None and walk.rows > 1:
            self._part_each(entry)

    def _enter(self, walk: Walk, key: float, place: int) -> Entry:
        walk.place = (key, place)
        entry = (key, place, walk)
        self._together += walk.rows > 1
        self._ranking.add(entry)
        self._here[place] = entry
        if self._late is not None:
            self._late.add(entry)
        if self._impatient is not None:
            self._impatient.add(entry)
        if self._lanes is not None:
            self._lanes.add(entry)
        return entry

    def _part_each(self, entry: Entry) -> None:
        """Give each of the rows that wait together here an entry of its own."""
        key, place, walk = entry
        for behind, other in enumerate(walk.part_each(walk.places)[1:], start=1):
            self._enter(other, key, place - behind)
        self._together -= 1

    def _part_all(self) -> None:
        if self._together:
            for entry in [entry for entry in self._here.values() if entry[2].rows > 1]:
                self._part_each(entry)

    def remove(self, walk: Walk) -> None:
        """Take out a row that is in the queue."""
        self._ranking.remove(walk)
        self._left([(*walk.place, walk)])

    def evict(self, limit: int) -> list[Walk]:
        """Take out the least valuable rows, none of them protected, until ``limit`` are left; least valuable first.

        Where several tenants wait, each class's share of these is taken from the tenant with most rows.
        """
        self._part_all()
        excess = min(len(self) - limit, len(self) - self._protected)
        if excess <= 0:
            return []
        if self._lanes is not None:
            return self._without(self._lanes.least_fair(islice(self._ranking, excess)))
        return self._left(self._ranking.least(excess))

    def leave(self, now: float, window_s: float) -> list[Walk]:
        """Take out the rows that are waiting in vain, none of them protected; least valuable first.

        These are the rows below everything that was taken within the window, see `Reach`, and those that have waited for
        `PATIENCE` of the time they had: what is left would hardly do for the stages behind.

        Where several tenants wait, a row leaves for the first reason only when it has waited for the whole window itself:
        until then its turn may have come, whatever its key.

        Args:
            now: present instant.
            window_s: how far back to look.
        """
        self._part_all()
        reached = min(self._reach.key(now, window_s), PROTECTED)
        if self._lanes is not None:
            gone = self._without(self._lanes.below(reached, now - window_s))
        else:
            gone = self._left(self._ranking.least(len(self), below=reached))
        if self._impatient is None:
            self._impatient = Alarms(_out_of_patience_s, self._here)
        impatient = [entry for entry in self._impatient.before(now) if entry[0] < PROTECTED]
        if not impatient:
            return gone
        gone += self._without(impatient)
        return sorted(gone, key=attrgetter("place"))

    def drain(self) -> list[Walk]:
        """Take out everything, most valuable first."""
        return self._left(self._ranking.least(len(self)))[::-1]

    def take(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        """Form the batch that a free slot gets.

        Usually that is the ``size`` most valuable rows. When some of them could not be back in time at that batch's own
        predicted duration, other sizes are weighed: a smaller batch is faster and keeps urgent rows, a larger one leaves
        them behind; the one with the most value per second of the stage wins.

        Args:
            now: present instant.
            size: rows in a batch, at most.
            predict: rows in a batch to the seconds it takes.

        Returns:
            The batch, most valuable first, and the rows that no batch could bring back in time. Both have left the queue.
        """
        batch, late = self._take(now, size, predict)
        if batch:
            self._reach.taken(now, batch[-1].place[0], crowded=self._rows > 0 and rows_of(batch) == size)
        return batch, late

    def _take(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        count = min(size, self._rows)
        if count == 0:
            return [], []
        finish = now + predict(count)
        if self._lanes is not None and count < self._rows:
            chosen, turns = self._lanes.by_turns(self._ranking.usable(-inf, count), self._turns)
            if all(entry[2].usable_until_s >= finish for entry in chosen):
                self._turns = turns
                return self._without(chosen), []
        else:
            most = self._ranking.pop(self._entries(count), finish)
            if most is not None:
                return self._left(most), []
        self._part_all()
        return self._take_feasible(now, size, predict)

    def _entries(self, count: int) -> int:
        """How many entries the most valuable rows have, so many of them. The last entry is cut where it holds more."""
        if not self._together:
            return count
        entries = rows = 0
        for key, place, walk in reversed(self._ranking):
            entries += 1
            rows += walk.rows
            if rows > count:
                rest = walk.part(rows - count)
                self._together -= walk.rows == 1
                self._enter(rest, key, place - walk.rows)
            if rows >= count:
                break
        return entries

    def _take_feasible(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        if self._late is None:
            self._late = Alarms(attrgetter("usable_until_s"), self._here)
        late = self._without(sorted(self._late.before(now + predict(1))))
        size = min(size, len(self))
        best: list[Entry] = []
        best_rate, best_turns = -1.0, self._turns
        while size >= 1:
            finish = now + predict(size)
            turns = self._turns
            chosen = self._ranking.usable(finish, size if self._lanes is None else size + 1)
            if self._lanes is not None and len(chosen) > size:
                chosen, turns = self._lanes.by_turns(chosen[:size], turns, finish)
            if chosen:
                # Keys may be zero (all rows of stage 0 are worth the same): the count breaks the tie.
                rate = sum(entry[0] + 1e-9 for entry in chosen) / predict(len(chosen))
                if rate > best_rate:
                    best, best_rate, best_turns = chosen, rate, turns
            size //= 2
        self._turns = best_turns
        return self._without(best), late

    def _without(self, gone: Sequence[Entry]) -> list[Walk]:
        """Take these rows out."""
        for _, _, walk in gone:
            self._ranking.remove(walk)
        return self._left(gone)

    def _left(self, gone: Sequence[Entry]) -> list[Walk]:
        """These rows have been taken out of the ranking."""
        walks = []
        for key, place, walk in gone:
            del self._here[place]
            self._rows -= walk.rows
            self._together -= walk.rows > 1
            self._protected -= walk.rows * (key >= PROTECTED)
            if self._lanes is not None:
                self._lanes.remove((key, place, walk))
            walks.append(walk)
        return walks


def _out_of_patience_s(walk: Walk) -> float:
    return walk.entered_s + PATIENCE * (walk.usable_until_s - walk.entered_s)
