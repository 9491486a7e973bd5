"""Which rows of a queue an instant has come for, without looking at the others. Knows entries; not what the instant means."""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush

from cascade.policy.ranking import Entry
from cascade.policy.walk import Walk

ALARM_SLACK = 256
"""Alarms of rows that have left that may pile up, beyond those of the rows that wait, before all are thrown out."""


class Alarms:
    """A heap of (instant, place) that is made when somebody asks, and kept up while somebody does.

    A row that has left keeps its alarm until that is due. Where too many pile up because nobody asks, the heap is thrown out:
    many queues never need to be asked.

    Args:
        at_s: the instant of a row, the same for as long as it waits.
    """

    __slots__ = ("_at_s", "_heap")

    def __init__(self, at_s: Callable[[Walk], float]) -> None:
        self._at_s = at_s
        self._heap: list[tuple[float, int]] | None = None

    def add(self, entry: Entry, waiting: int) -> None:
        """A row has come.

        Args:
            entry: its entry.
            waiting: rows that wait.
        """
        if self._heap is None:
            return
        if len(self._heap) > 2 * waiting + ALARM_SLACK:
            self._heap = None
        else:
            heappush(self._heap, (self._at_s(entry[2]), entry[1]))

    def before(self, instant: float, waiting: Mapping[int, Entry]) -> list[Entry]:
        """The rows whose instant lies before this one; each of them once, unless the heap is made anew.

        Args:
            instant: see above.
            waiting: the rows that wait, by place.
        """
        heap = self._heap
        if heap is None:
            heap = self._heap = [(self._at_s(entry[2]), place) for place, entry in waiting.items()]
            heapify(heap)
        due = []
        while heap and heap[0][0] < instant:
            entry = waiting.get(heappop(heap)[1])
            if entry is not None:
                due.append(entry)
        return due
