"""How far behind an event loop is: the queue that no queue shows. Knows asyncio and nothing of requests.

Work that is ready waits in the loop itself before anything of this project sees it. A heartbeat that comes late has waited
there as long as a message that came at the same instant.
"""

import asyncio
from collections import deque
from collections.abc import Callable

BEAT_S = 0.02
"""Time between heartbeats. A beat costs microseconds."""
BEATS = 5
"""Beats whose shortest delay counts. One late beat is a pause, after which the loop catches up; a queue that stands shows in
every one of them (the same distinction as in CoDel: Nichols and Jacobson, 2012)."""
TURNS = 2
"""Turns of the loop after the timer: a message, too, is read in one turn, handled in the next and dispatched after it."""


class LoopLag:
    """Measures the running loop's lag from construction until `close`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._recent: deque[float] = deque([0.0] * BEATS, maxlen=BEATS)
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle
        self._next()

    @property
    def seconds(self) -> float:
        """Time that ready work waits in the loop: the least of the last few beats."""
        return min(self._recent)

    def close(self) -> None:
        """Stop measuring."""
        self._timer.cancel()

    def _next(self) -> None:
        self._due_s = self._clock() + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._turn, TURNS)

    def _turn(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._turn, left - 1)
            return
        self._recent.append(max(0.0, self._clock() - self._due_s))
        self._next()
