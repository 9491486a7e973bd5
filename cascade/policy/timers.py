"""When rows and batches must be looked at again. Knows instants, and what is done; not what is to be done with the rest."""

from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

TIMER_SLACK = 1024
"""Timers of what is done that may pile up, beyond those of the rest, before they are thrown out."""


class Finite(Protocol):
    """What comes to an end."""

    @property
    def done(self) -> bool:
        """Whether it has."""
        ...


Timed = TypeVar("Timed", bound=Finite)


class Timers(Generic[Timed]):
    """A heap of (instant, item). An item that is done keeps its timer until that is due, or until too many have piled up."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
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
            self._heap = [timer for timer in self._heap if not timer[2].done]
            heapify(self._heap)

    def first(self) -> float | None:
        """The first instant at which an item that is not done must be looked at."""
        heap = self._heap
        while heap and heap[0][2].done:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Timed | None:
        """Take the next item, not done, whose instant has come; None if there is none. Of one instant, first armed first."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            item = heappop(heap)[2]
            if not item.done:
                return item
        return None
