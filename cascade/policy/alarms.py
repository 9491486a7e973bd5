"""Which rows of a queue an instant has come for, without a look at the others. Knows entries; not what the instant means."""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush

from cascade.policy.ranking import Entry
from cascade.policy.walk import Walk

ALARM_SLACK = 256
"""Alarms of rows that have left that may pile up, beyond those of the rows that wait, before they are thrown out."""


class Alarms:
    """A heap of (instant, place among equals). A row that has left keeps its alarm until that is due, or too many pile up.

    Args:
        at_s: the instant of a row, the same for as long as it waits.
        waiting: the rows that wait, by their place among equals, which no other row ever has; kept up by whoever owns it.
    """

    __slots__ = ("_at_s", "_heap", "_waiting")

    def __init__(self, at_s: Callable[[Walk], float], waiting: Mapping[int, Entry]) -> None:
        self._at_s = at_s
        self._waiting = waiting
        self._set_all()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, entry: Entry) -> None:
        """A row has come; it is among those that wait already."""
        if len(self._heap) > 2 * len(self._waiting) + ALARM_SLACK:
            self._set_all()
        else:
            heappush(self._heap, (self._at_s(entry[2]), entry[1]))

    def before(self, instant: float) -> list[Entry]:
        """The rows whose instant lies before this one. They are not named again, unless all alarms are set anew."""
        due, heap = [], self._heap
        while heap and heap[0][0] < instant:
            entry = self._waiting.get(heappop(heap)[1])
            if entry is not None:
                due.append(entry)
        return due

    def _set_all(self) -> None:
        self._heap = [(self._at_s(entry[2]), place) for place, entry in self._waiting.items()]
        heapify(self._heap)
