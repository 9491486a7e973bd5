"""Fairness between tenants of a class: one that floods degrades only itself. Knows arrivals by tenant.

Three places where it is kept. *Queue*: the rows that a class gets of a batch, or loses by eviction, are shared between the
tenants that wait (`cascade.policy.lanes`). *Price*: a tenant within its fair rate pays no surcharge for the others' load.
*Door*: such a tenant is let in for longer. With one tenant none of it does anything.

The fair rate f of a capacity C is the max-min fair share of the tenants' arrival rates r_t (Bertsekas and Gallager 1992):

    sum over t of min(r_t, f) = C,    infinite where the rates' sum is at most C
"""

from collections.abc import Sequence
from math import exp, inf

TAU_S = 1.0
"""Memory of a tenant's arrival rate: a flood of ten times the fair rate is noticed within a tenth of it."""
REFRESH_S = 0.1
"""A fair rate is computed anew this often, at most."""
MOST_TENANTS = 1024
"""Of more than these, the ones not seen for longest are forgotten."""


class Tenants:
    """Arrival rates of tenants, exponentially weighted: r decays as exp(-t / TAU_S) and each row adds 1 / TAU_S.

    As long as there has been one tenant only, nothing is counted: fairness is between several.
    """

    __slots__ = ("_only", "_rates")

    def __init__(self) -> None:
        self._only: str | None = None
        self._rates: dict[str, tuple[float, float]] = {}

    @property
    def several(self) -> bool:
        """Whether more than one tenant has been seen."""
        return bool(self._rates)

    def arrived(self, now: float, tenant: str, rows: int) -> None:
        """A tenant's rows came to the door, whether they are let in or not."""
        if tenant == self._only:
            return
        rates = self._rates
        if not rates:
            if self._only is None:
                self._only = tenant
                return
            rates[self._only] = (0.0, now)
            self._only = None
        rate, seen_s = rates.pop(tenant, (0.0, now))
        if len(rates) >= MOST_TENANTS:
            del rates[next(iter(rates))]
        rates[tenant] = (rate * exp((seen_s - now) / TAU_S) + rows / TAU_S, now)

    def rate(self, now: float, tenant: str) -> float:
        """Rows/s of a tenant; 0 for one that is not known."""
        rate, seen_s = self._rates.get(tenant, (0.0, now))
        return rate * exp((seen_s - now) / TAU_S)

    def rates(self, now: float) -> list[float]:
        """Rows/s of every tenant that is known."""
        return [rate * exp((seen_s - now) / TAU_S) for rate, seen_s in self._rates.values()]


class FairShare:
    """Which tenants are within the fair rate of some capacity."""

    __slots__ = ("_rate", "_tenants", "_until_s")

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._rate = inf
        self._until_s = -inf

    def holds(self, now: float, tenant: str, capacity: float) -> bool:
        """Whether a tenant's own rate is at most the fair rate of ``capacity`` rows/s; never so with one tenant alone."""
        if not self._tenants.several:
            return False
        if now >= self._until_s:
            self._rate = fair_rate(self._tenants.rates(now), capacity)
            self._until_s = now + REFRESH_S
        return self._tenants.rate(now, tenant) <= self._rate


def fair_rate(rates: Sequence[float], capacity: float) -> float:
    """Max-min fair rate, see the module.

    Args:
        rates: of each tenant, none negative.
        capacity: what they share.
    """
    left = capacity
    for served, rate in enumerate(sorted(rates)):
        share = left / (len(rates) - served)
        if rate > share:
            return share
        left -= rate
    return inf
