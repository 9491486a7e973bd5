"""When rows must be looked at again. Knows rows and instants; not what is to be done with them."""

from heapq import heapify, heappop, heappush

from cascade.policy.walk import Walk

TIMER_SLACK = 1024
"""Timers of finished rows that may pile up, beyond those of the live ones, before they are thrown out."""


class Timers:
    """A heap of (instant, row). A row that is done keeps its timer until that is due, or until too many have piled up."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Walk]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, walk: Walk, at_s: float, live: int) -> None:
        """Look at a row at an instant.

        Args:
            walk: the row.
            at_s: the instant.
            live: rows that are not done, of all that were ever armed.
        """
        self._sequence += 1
        heappush(self._heap, (at_s, self._sequence, walk))
        if len(self._heap) > 2 * live + TIMER_SLACK:
            self._heap = [timer for timer in self._heap if not timer[2].done]
            heapify(self._heap)

    def first(self) -> float | None:
        """The first instant at which a row that is not done must be looked at."""
        heap = self._heap
        while heap and heap[0][2].done:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Walk | None:
        """Take the next row, not done, whose instant has come; None if there is none."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            walk = heappop(heap)[2]
            if not walk.done:
                return walk
        return None
