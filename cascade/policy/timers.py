"""When rows and batches must be looked at again. Knows instants, and what is done; not what is to be done with the rest."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Generic, TypeVar

TIMER_SLACK = 1024
"""Timers of what is done that may pile up, beyond those of the rest, before they are thrown out."""


Timed = TypeVar("Timed")


class Timers(Generic[Timed]):
    """A heap of (instant, item). An item that is done keeps its timer until that is due, or until too many have piled up.

    Args:
        done: whether nothing will happen to an item any more.
    """

    __slots__ = ("_done", "_heap", "_sequence")

    def __init__(self, done: Callable[[Timed], bool] = attrgetter("done")) -> None:
        self._done = done
        self._heap: list[tuple[float, int, Timed]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, item: Timed, at_s: float, live: int) -> None:
        """Look at an item at an instant.

        Args:
            item: the item.
            at_s: the instant.
            live: items that are not done, of all that were ever armed.
        """
        self._sequence += 1
        heappush(self._heap, (at_s, self._sequence, item))
        if len(self._heap) > 2 * live + TIMER_SLACK:
            self._heap = [timer for timer in self._heap if not self._done(timer[2])]
            heapify(self._heap)

    def first(self) -> float | None:
        """The first instant at which an item that is not done must be looked at."""
        heap, done = self._heap, self._done
        while heap and done(heap[0][2]):
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Timed | None:
        """Take the next item, not done, whose instant has come; None if there is none. Of one instant, first armed first."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            item = heappop(heap)[2]
            if not self._done(item):
                return item
        return None
