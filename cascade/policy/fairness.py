"""Fairness between tenants of a class: one that floods degrades only itself. Knows arrivals by tenant, and rows that wait.

Three places where it is kept. *Queue*: the rows that a class gets of a batch, or loses by eviction, are shared between the
tenants that wait. *Price*: a tenant within its fair rate pays no surcharge for the others' load. *Door*: such a tenant is
let in for longer. With one tenant none of it does anything.

The fair rate f of a capacity C is the max-min fair share of the tenants' arrival rates r_t (Bertsekas and Gallager 1992):

    sum over t of min(r_t, f) = C,    infinite where the rates' sum is at most C
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from heapq import heapify, heapreplace
from math import exp, inf

from cascade.policy.classes import PROTECTED
from cascade.policy.ranking import Entry

TAU_S = 1.0
"""Memory of a tenant's arrival rate: a flood of ten times the fair rate is noticed within a tenth of it."""
REFRESH_S = 0.1
"""A fair rate is computed anew this often, at most."""
MOST_TENANTS = 1024
"""Of more than these, the ones not seen for longest are forgotten."""

Lane = tuple[int, bool]
"""Rows that compete with each other alone: of one class, and protected or not."""
Turns = dict[Lane, list[str]]
"""The tenants that wait in each lane, the one whose turn is next first."""


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


def by_turns(ranked: Sequence[Entry], count: int, turns: Mapping[Lane, Sequence[str]]) -> tuple[list[Entry], Turns]:
    """The rows that go next: of each lane as many as its rank gives it, shared between the tenants that wait in it.

    Deficit round robin (Shreedhar and Varghese 1995) on the seconds of the stage. Every row of a batch takes equally many,
    so that a deficit is a whole number of rows and the quantum is one: tenants take turns, each with its most valuable row.

    Args:
        ranked: the rows to choose from, most valuable first.
        count: how many go, at most.
        turns: what the last call left.

    Returns:
        The rows, most valuable first, and whose turn is next.
    """
    quotas, waiting = _shared(ranked, count)
    chosen: list[Entry] = []
    following: Turns = {}
    for lane, quota in quotas.items():
        tenants = waiting[lane]
        before = [tenant for tenant in turns.get(lane, ()) if tenant in tenants]
        order = deque(dict.fromkeys([*before, *tenants]))
        for _ in range(quota):
            tenant = order.popleft()
            chosen.append(tenants[tenant].popleft())
            if tenants[tenant]:
                order.append(tenant)
        following[lane] = list(order)
    chosen.sort(reverse=True)
    return chosen, following


def least_fair(ranked: Sequence[Entry], count: int) -> list[Entry]:
    """The rows that leave a full queue: of each class as many as its rank takes from it, from whoever has most waiting.

    Args:
        ranked: the rows to choose from, least valuable first.
        count: how many leave, at most.

    Returns:
        The rows, of each class the tenant with most rows first, least valuable first.
    """
    quotas, waiting = _shared(ranked, count)
    leaving: list[Entry] = []
    for lane, quota in quotas.items():
        most = [(-len(rows), place, rows) for place, rows in enumerate(waiting[lane].values())]
        heapify(most)
        for _ in range(quota):
            _, place, rows = most[0]
            leaving.append(rows.popleft())
            heapreplace(most, (-len(rows), place, rows))
    return leaving


def _shared(ranked: Sequence[Entry], count: int) -> tuple[Counter[Lane], dict[Lane, dict[str, deque[Entry]]]]:
    """How many of the first ``count`` rows are of each lane, and the rows of these lanes by tenant, in their order."""
    quotas = Counter(map(_lane, ranked[:count]))
    waiting: dict[Lane, dict[str, deque[Entry]]] = {lane: {} for lane in quotas}
    for entry in ranked:
        tenants = waiting.get(_lane(entry))
        if tenants is not None:
            tenants.setdefault(entry[2].request.tenant, deque()).append(entry)
    return quotas, waiting


def _lane(entry: Entry) -> Lane:
    return entry[2].request.priority, entry[0] >= PROTECTED
