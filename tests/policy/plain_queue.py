"""The queue of a stage as one sorted list that is looked through: plain to read, the oracle for the queue that scales."""

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heapreplace
from math import inf

from cascade.policy.classes import PROTECTED
from cascade.policy.lanes import Lane, Turns
from cascade.policy.queue import PATIENCE
from cascade.policy.ranking import Entry
from cascade.policy.reach import Reach
from cascade.policy.walk import Walk


class PlainQueue:
    """Rows ordered by key; among equals the one that came first goes first.

    A list kept sorted by bisection: the queue is bounded by work, so it holds at most some hundreds of rows, where moving
    pointers in one block is faster than any tree.
    """

    __slots__ = ("_entries", "_reach", "_sequence", "_several", "_tenant", "_turns")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._reach = Reach()
        self._sequence = 0
        # Whether several tenants have waited since the queue was last empty; if not, this one.
        self._several = False
        self._tenant = ""
        self._turns: Turns = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def protected(self) -> int:
        """How many of the rows are protected."""
        return len(self._entries) - bisect_left(self._entries, (PROTECTED,))

    def push(self, walk: Walk, key: float) -> None:
        """Add a row with its key."""
        if not self._entries:
            self._tenant = walk.request.tenant
            if self._several:
                self._several = False
                self._turns = {}
        elif walk.request.tenant != self._tenant:
            self._several = True
        self._sequence -= 1
        walk.place = (key, self._sequence)
        insort(self._entries, (key, self._sequence, walk))

    def remove(self, walk: Walk) -> None:
        """Take out a row that is in the queue."""
        index = bisect_left(self._entries, walk.place)
        assert self._entries[index][2] is walk
        del self._entries[index]

    def evict(self, limit: int) -> list[Walk]:
        """Take out the least valuable rows, none of them protected, until ``limit`` are left; least valuable first.

        Where several tenants wait, each class's share of these is taken from the tenant with most rows.
        """
        excess = min(len(self._entries) - limit, len(self._entries) - self.protected)
        if excess <= 0:
            return []
        if self._several:
            return self._without(least_fair(self._entries[: len(self._entries) - self.protected], excess))
        evicted = [entry[2] for entry in self._entries[:excess]]
        del self._entries[:excess]
        return evicted

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
        unprotected = self._entries[: len(self._entries) - self.protected]
        below = bisect_left(unprotected, (self._reach.key(now, window_s),))
        since_s = now - window_s if self._several else inf
        leaving = [
            entry
            for place, entry in enumerate(unprotected)
            if (place < below and entry[2].entered_s <= since_s)
            or now - entry[2].entered_s > PATIENCE * (entry[2].usable_until_s - entry[2].entered_s)
        ]
        return self._without(leaving) if leaving else []

    def drain(self) -> list[Walk]:
        """Take out everything, most valuable first."""
        walks = [entry[2] for entry in reversed(self._entries)]
        self._entries.clear()
        return walks

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
            self._reach.taken(now, batch[-1].place[0], crowded=len(self._entries) > 0 and len(batch) == size)
        return batch, late

    def _take(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        entries = self._entries
        count = min(size, len(entries))
        if count == 0:
            return [], []
        finish = now + predict(count)
        if self._several and count < len(entries):
            chosen, turns = by_turns(entries[::-1], count, self._turns)
            if all(entry[2].usable_until_s >= finish for entry in chosen):
                self._turns = turns
                return self._without(chosen), []
        elif all(entry[2].usable_until_s >= finish for entry in entries[-count:]):
            batch = [entry[2] for entry in reversed(entries[-count:])]
            del entries[-count:]
            return batch, []
        return self._take_feasible(now, size, predict)

    def _take_feasible(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        soonest = now + predict(1)
        late = [entry[2] for entry in self._entries if entry[2].usable_until_s < soonest]
        live = [entry for entry in self._entries if entry[2].usable_until_s >= soonest]
        size = min(size, len(live))
        best: list[Entry] = []
        best_rate, best_turns = -1.0, self._turns
        while size >= 1 and live:
            finish = now + predict(size)
            chosen = [entry for entry in reversed(live) if entry[2].usable_until_s >= finish]
            turns = self._turns
            if self._several and len(chosen) > size:
                chosen, turns = by_turns(chosen, size, turns)
            del chosen[size:]
            if chosen:
                # Keys may be zero (all rows of stage 0 are worth the same): the count breaks the tie.
                rate = sum(entry[0] + 1e-9 for entry in chosen) / predict(len(chosen))
                if rate > best_rate:
                    best, best_rate, best_turns = chosen, rate, turns
            size //= 2
        self._turns = best_turns
        self._entries = live
        return self._without(best), late

    def _without(self, gone: Sequence[Entry]) -> list[Walk]:
        """Take these rows out."""
        places = {entry[1] for entry in gone}
        self._entries = [entry for entry in self._entries if entry[1] not in places]
        return [entry[2] for entry in gone]


def by_turns(ranked: Sequence[Entry], count: int, turns: Mapping[Lane, Sequence[str]]) -> tuple[list[Entry], Turns]:
    """The rows that go next: of each lane as many as its rank gives it, shared between the tenants that wait in it.

    Deficit round robin (Shreedhar and Varghese 1995) on the seconds of the stage. Every row of a batch takes equally many,
    so that a deficit is a whole number of rows and the quantum is one: tenants take turns, each with its most valuable row.

    Args:
        ranked: the rows to choose from, most valuable first.
        count: how many go, at most.
        turns: what the last call left.

    Returns:
        The rows, most valuable first, and whose turn is next.
    """
    quotas, waiting = _shared(ranked, count)
    chosen: list[Entry] = []
    following: Turns = {}
    for lane, quota in quotas.items():
        tenants = waiting[lane]
        before = [tenant for tenant in turns.get(lane, ()) if tenant in tenants]
        order = deque(dict.fromkeys([*before, *tenants]))
        for _ in range(quota):
            tenant = order.popleft()
            chosen.append(tenants[tenant].popleft())
            if tenants[tenant]:
                order.append(tenant)
        following[lane] = list(order)
    chosen.sort(reverse=True)
    return chosen, following


def least_fair(ranked: Sequence[Entry], count: int) -> list[Entry]:
    """The rows that leave a full queue: of each class as many as its rank takes from it, from whoever has most waiting.

    Args:
        ranked: the rows to choose from, least valuable first.
        count: how many leave, at most.

    Returns:
        The rows, of each class the tenant with most rows first, least valuable first.
    """
    quotas, waiting = _shared(ranked, count)
    leaving: list[Entry] = []
    for lane, quota in quotas.items():
        most = [(-len(rows), place, rows) for place, rows in enumerate(waiting[lane].values())]
        heapify(most)
        for _ in range(quota):
            _, place, rows = most[0]
            leaving.append(rows.popleft())
            heapreplace(most, (-len(rows), place, rows))
    return leaving


def _shared(ranked: Sequence[Entry], count: int) -> tuple[Counter[Lane], dict[Lane, dict[str, deque[Entry]]]]:
    """How many of the first ``count`` rows are of each lane, and the rows of these lanes by tenant, in their order."""
    quotas = Counter(map(_lane, ranked[:count]))
    waiting: dict[Lane, dict[str, deque[Entry]]] = {lane: {} for lane in quotas}
    for entry in ranked:
        tenants = waiting.get(_lane(entry))
        if tenants is not None:
            tenants.setdefault(entry[2].request.tenant, deque()).append(entry)
    return quotas, waiting


def _lane(entry: Entry) -> Lane:
    return entry[2].request.priority, entry[0] >= PROTECTED
