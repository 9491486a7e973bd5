"""Prices at which rows ask for just what the stages can run: what a loaded ladder should charge for a visit.

Complementary slackness of the fluid optimum, solved on the policy's own rule: a surcharge is 0 where capacity is to spare
and otherwise as high as it takes for demand to fit. Knows no queue, no deadline and no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from cascade.calibration.fluid import Capacity, OperatingPoint, gear, solve, unloaded_prices
from cascade.calibration.judged import Floats, JudgedTable

MAX_SWEEPS = 6
"""Rounds over all stages; two or three are usual."""
PRECISION = 2e-3
"""Relative width to which a surcharge is found; demand hardly moves within it."""
NEAR = 0.05
"""First guess about a surcharge at the next rate: within this share of the last one."""
BOLDER = (1.05, 1.2, 1.5)
"""Multiples of the surcharges among whose gears the mix may choose."""
FULL = 1.0 + 1e-9
"""Load up to which a stage counts as not overloaded."""


@dataclass(frozen=True, eq=False)
class Cleared:
    """Market-clearing prices at one rate, and what comes of them."""

    point: OperatingPoint
    """Its prices err low, by `PRECISION` or down to the next row that would take up what is left; where many rows promise
    the same gain they then ask for more than fits. Its mix is what capacity lets through, the best of the gears around
    those prices: the server's queue, ordered by gain, does that rationing."""
    surcharges: Floats
    """[M] of each limit of the capacity: of each stage that has one, then of the shared cores. Start of the next search."""


def clear(
    judged: JudgedTable,
    capacity: Capacity,
    rate: float,
    base_prices: Sequence[float] | Floats | None = None,
    near: Cleared | None = None,
) -> Cleared:
    """Find the surcharges at which demand fits: y >= 0, one for each limit, with these properties.

        load_m(p) <= 1,   y_m > 0 only where load_m(p) = 1,   p_k = base_k + sum_m y_m use_mk
        load_m(p) = rate theta sum_k use_mk visits_k(p) / limit_m

    theta being the share that stage 0 admits. Coordinate by coordinate, dearest stage first: demand falls as its own price
    rises, so each is a bisection; others' demand hardly changes, so a few sweeps settle it.

    Unlike the duals of the LP over gears this needs no labels, so label noise does not move prices, and rows that walk at
    the prices do fill the stages. It loses little: on the ladder that ships with this project, without base prices, 0.02
    points of accuracy on average over the rates, 0.12 at most, against an LP optimum that is fitted to the same labels.

    Args:
        judged: rows like those that will come.
        capacity: the limits, times whatever part of them is to be planned with.
        rate: requests a second.
        base_prices: [S] price of a visit when nothing is scarce; 0 where left out.
        near: the result at a rate near by, with the same capacity's limits.

    Raises:
        ConfigError: there is not one base price for each stage, or one is below 0.
    """
    base = unloaded_prices(judged, base_prices)
    use, limit = capacity.rows()
    admitted = capacity.admitted(rate)
    charged = use.copy()
    charged[:, 0] = 0.0  # a price of stage 0 would change no row's way

    def loads(surcharges: Floats) -> Floats:
        visits = judged.walk(base + surcharges @ charged, lookahead=base).visits
        return np.asarray(rate * admitted * (use @ visits) / limit)

    high = np.zeros(len(limit)) if near is None else near.surcharges.copy()
    low = high.copy()
    chargeable = [m for m in range(len(limit)) if charged[m].any()]
    for sweep in range(MAX_SWEEPS):
        before = high.copy()
        for m in reversed(chargeable):

            def over(surcharge: float, m: int = m) -> bool:
                trial = high.copy()
                trial[m] = surcharge
                return bool(loads(trial)[m] > FULL)

            most = 1.0 / float(charged[m][charged[m] > 0].min())  # makes every visit cost 1, more than any gain
            low[m], high[m] = _bracket(over, most, float(high[m]), NEAR if sweep == 0 else 2 * PRECISION)
        if (np.abs(high - before) <= 2 * PRECISION * high).all():
            break
    # Corners of the price box that was closed in on, and bolder prices for where the sweeps did not quite settle.
    corners = [low, high, *(np.where(np.arange(len(high)) == m, low, high) for m in chargeable)]
    gears = [gear(judged, base + corner @ charged, base) for corner in (*corners, *(more * high for more in BOLDER))]
    gears += [gear(judged, base + np.append(0.0, np.ones(len(base) - 1)), base)]
    if near is not None:
        gears += [used for used, _ in near.point.mix]
    value = np.array([used.accuracy - float(used.visits @ base) for used in gears])
    found = solve(value, np.array([used.visits for used in gears]), capacity, rate)
    mix = tuple((used, float(share)) for used, share in zip(gears, found.mix, strict=True) if share > 1e-9)
    return Cleared(OperatingPoint(rate, base + low @ charged, mix, found.shed), high)


def _bracket(over: Callable[[float], bool], most: float, near: float, width: float) -> tuple[float, float]:
    """The smallest surcharge that is enough, between two values: too low, and enough; both 0 if none is needed.

    Args:
        over: whether demand at a surcharge does not fit.
        most: a surcharge that is enough for sure.
        near: a guess, 0 if there is none.
        width: how far off the guess may be, as a share of it; where it is further, the search widens.
    """
    low, high = 0.0, most
    guess = near * (1 - width)
    if 0.0 < guess < most and over(guess):
        low = guess
        while low < high == most:
            guess = near * (1 + width)
            width *= 4
            if guess >= most:
                break
            low, high = (guess, high) if over(guess) else (low, guess)
    elif not over(0.0):
        return 0.0, 0.0
    elif 0.0 < guess < most:
        high = guess
    while high - low > PRECISION * high and high > 1e-9 * most:
        if low == 0.0:
            guess = high / (2 if high < most else 16)
        else:
            guess = sqrt(low * high) if high > 4 * low else (low + high) / 2
        low, high = (guess, high) if over(guess) else (low, guess)
    return low, high
