"""The batches that are with the stages: which of them hang, and when stage 0 gets one back. Knows instants and sizes only.

How long a batch takes is learned while it runs, so what is due first changes without anything being sent or coming back. But
batches of one size are due in the order in which they were sent, at any prediction: one list for each size is enough.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import inf

from cascade.policy.commands import Batch
from cascade.policy.timers import Timers


class UnderWay:
    """The batches that have neither come back nor been given up."""

    __slots__ = ("_count", "_give_ups", "_stage0_sent_s")

    def __init__(self) -> None:
        self._count = 0
        self._give_ups = Timers[Batch]()
        self._stage0_sent_s: dict[int, list[float]] = {}

    def __len__(self) -> int:
        return self._count

    def sent(self, batch: Batch) -> None:
        """A batch was sent, none before it later."""
        self._count += 1
        self._give_ups.arm(batch, batch.give_up_s, self._count)
        if batch.stage == 0:
            self._stage0_sent_s.setdefault(batch.rows, []).append(batch.started_s)

    def ended(self, batch: Batch) -> None:
        """It came back, failed or is given up."""
        batch.done = True
        self._count -= 1
        if batch.stage == 0:
            sent_s = self._stage0_sent_s[batch.rows]
            del sent_s[bisect_left(sent_s, batch.started_s)]
            if not sent_s:
                del self._stage0_sent_s[batch.rows]

    def first_give_up_s(self) -> float | None:
        """The first instant at which one of them is to be given up."""
        return self._give_ups.first()

    def hanging(self, now: float) -> list[Batch]:
        """Those that are to be given up by now and have not been handed out before, in the order of their instants."""
        batches = []
        while (batch := self._give_ups.due(now)) is not None:
            batches.append(batch)
        return batches

    def stage0_next_s(self, now: float, predict: Callable[[int], float], enough_s: float = -inf) -> float:
        """Seconds until stage 0 is expected to give the next of its batches back; 0 if it has none.

        A batch that is overdue is expected to need as long again as it is overdue already.

        Args:
            now: present instant.
            predict: rows in a batch to the seconds it takes.
            enough_s: if one of them is expected within this time, that is all the caller needs to know: the time of any
                such batch is given then.
        """
        next_s = inf
        for rows, sent_s in self._stage0_sent_s.items():
            takes_s = predict(rows)
            # From this place on they are not overdue, the first is due first; before it they are, the last by least.
            place = bisect_left(sent_s, now, key=takes_s.__add__)
            for at_s in sent_s[max(place - 1, 0) : place + 1]:
                next_s = min(next_s, abs(at_s + takes_s - now))
            if next_s <= enough_s:
                break
        return next_s if next_s < inf else 0.0
