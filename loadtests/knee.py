"""What stage 0 can do when the load generator of the tests asks: the highest open-loop rate at which it refuses nobody.

A closed loop finds the most that comes back; in an open loop, with the generator's own share of the machine, the server is
full before that. Knows rates and what came of them; sends nothing itself.
"""

from collections.abc import Callable
from math import sqrt

PROBES = 6
"""Rates tried; each halves, on a logarithmic scale, the span in which the rate may lie."""
SPAN = 8.0
"""The rate is looked for between this part of the closed loop's and all of it."""
GOOD = 0.99
"""Share of the requests that must be answered on time."""


def knee(good_share: Callable[[float], float], closed_loop_rate: float) -> float:
    """The highest rate tried at which nearly everything was answered on time; by bisection.

    A rate is too high when it was so twice: whatever else disturbs a machine can only make it look worse than it is.

    Args:
        good_share: offers a rate, requests/s; the share of the requests answered on time.
        closed_loop_rate: what a closed loop measured, requests/s.

    Returns:
        The rate; the lower end of the span if none was good.
    """
    low, high = closed_loop_rate / SPAN, closed_loop_rate
    for _ in range(PROBES):
        rate = sqrt(low * high)
        if good_share(rate) >= GOOD or good_share(rate) >= GOOD:
            low = rate
        else:
            high = rate
    return low
