"""How long things took, as a histogram that only grows. Knows bounds and counts; not what took so long."""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import inf

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of the buckets, seconds; the last bucket has none. Those of OpenTelemetry's HTTP conventions (semconv,
``http.server.request.duration``), and three below them: a stage inside the router answers within a millisecond."""
LE = (*BOUNDS_S, inf)
"""Upper bound of every bucket."""


@dataclass(slots=True)
class Durations:
    """A histogram of seconds.

    Attributes:
        counts: of each bucket of `LE`, not cumulated.
        seconds: the sum of all.
    """

    counts: list[int] = field(default_factory=lambda: [0] * len(LE))
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Something took so long, so many times."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += times
        self.seconds += times * seconds
