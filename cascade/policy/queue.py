"""The rows that wait for one stage, most valuable first, and the batches formed from them. Knows values, deadlines, sizes.

This queue is the fast loop of the whole server: when a slot is free it gives the rows with most to gain that can still
make their deadline; when it is full the least valuable row leaves. No controller sits between load and quality.
"""

from bisect import bisect_left, insort
from collections.abc import Callable

from cascade.policy.walk import Walk

_Entry = tuple[float, int, Walk]


class StageQueue:
    """Rows ordered by value; among equals the one that came first goes first.

    A list kept sorted by bisection: the queue is bounded by work, so it holds at most some hundreds of rows, where moving
    pointers in one block is faster than any tree.
    """

    __slots__ = ("_entries", "_sequence")

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, walk: Walk, value: float) -> None:
        """Add a row with its value."""
        self._sequence -= 1
        walk.place = (value, self._sequence)
        insort(self._entries, (value, self._sequence, walk))

    def remove(self, walk: Walk) -> None:
        """Take out a row that is in the queue."""
        index = bisect_left(self._entries, walk.place)
        assert self._entries[index][2] is walk
        del self._entries[index]

    def evict(self, limit: int) -> list[Walk]:
        """Take out the least valuable rows until ``limit`` are left; least valuable first."""
        excess = len(self._entries) - limit
        if excess <= 0:
            return []
        evicted = [entry[2] for entry in self._entries[:excess]]
        del self._entries[:excess]
        return evicted

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
        entries = self._entries
        count = min(size, len(entries))
        if count == 0:
            return [], []
        finish = now + predict(count)
        if all(entry[2].usable_until_s >= finish for entry in entries[-count:]):
            batch = [entry[2] for entry in reversed(entries[-count:])]
            del entries[-count:]
            return batch, []
        return self._take_feasible(now, size, predict)

    def _take_feasible(self, now: float, size: int, predict: Callable[[int], float]) -> tuple[list[Walk], list[Walk]]:
        soonest = now + predict(1)
        late = [entry[2] for entry in self._entries if entry[2].usable_until_s < soonest]
        live = [entry for entry in self._entries if entry[2].usable_until_s >= soonest]
        size = min(size, len(live))
        best: list[_Entry] = []
        best_rate = -1.0
        while size >= 1 and live:
            finish = now + predict(size)
            chosen = [entry for entry in reversed(live) if entry[2].usable_until_s >= finish][:size]
            if chosen:
                # Values may be zero (all rows of stage 0 are worth the same): the count breaks the tie.
                rate = sum(entry[0] + 1e-9 for entry in chosen) / predict(len(chosen))
                if rate > best_rate:
                    best, best_rate = chosen, rate
            size //= 2
        taken = {entry[1] for entry in best}
        self._entries = [entry for entry in live if entry[1] not in taken]
        return [entry[2] for entry in best], late
