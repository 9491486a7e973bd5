"""The rows of a queue by who sent them, for as long as several tenants wait: whose rows go, and whose leave.

A *lane* holds rows that compete with each other alone: those of one class, and protected or not. What a lane gets of a
batch, or loses by eviction, follows from the rank of its rows and is the caller's to say; here it is shared between the
tenants that wait in it. Knows entries; no price, and of time only who has waited since when.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace
from math import inf, nextafter
from operator import attrgetter

from cascade.policy.alarms import Alarms
from cascade.policy.classes import PROTECTED
from cascade.policy.ranking import Entry, Ranking

Lane = tuple[int, bool]
"""Class, and whether protected."""
Turns = dict[Lane, list[str]]
"""The tenants that wait in each lane, the one whose turn is next first."""


def lane_of(entry: Entry) -> Lane:
    """The lane in which a row waits."""
    return entry[2].request.priority, entry[0] >= PROTECTED


class Lanes:
    """The rows that wait, by lane and tenant, and which of them have waited for long.

    Args:
        waiting: the rows that wait, by their place among equals; kept up by whoever owns it, who also reports every change.
    """

    __slots__ = ("_long", "_places_of_long", "_rows", "_since")

    def __init__(self, waiting: Mapping[int, Entry]) -> None:
        self._rows: dict[Lane, dict[str, Ranking]] = {}
        for entry in waiting.values():
            self._put(entry)
        # Rows of which it is known that they have waited for long; the alarms name the others when they have.
        self._since = Alarms(attrgetter("entered_s"), waiting)
        self._long = Ranking()
        self._places_of_long: set[int] = set()

    def add(self, entry: Entry) -> None:
        """A row has come."""
        self._put(entry)
        self._since.add(entry)

    def remove(self, entry: Entry) -> None:
        """A row has left."""
        lane, (_, place, walk) = lane_of(entry), entry
        rows = self._rows[lane][walk.request.tenant]
        rows.remove(walk)
        if not len(rows):
            del self._rows[lane][walk.request.tenant]
        if place in self._places_of_long:
            self._places_of_long.remove(place)
            self._long.remove(walk)

    def by_turns(self, first: Sequence[Entry], turns: Turns, until_s: float = -inf) -> tuple[list[Entry], Turns]:
        """The rows that go next: of each lane as many as its rank gives it, shared between the tenants that wait in it.

        Deficit round robin (Shreedhar and Varghese 1995) on the seconds of the stage. Every row of a batch takes equally
        many, so that a deficit is a whole number of rows and the quantum is one: tenants take turns, each with its most
        valuable row.

        Args:
            first: the rows that would go by rank alone; each lane gets as many as it has among them.
            turns: what the last call left.
            until_s: until when rows must be usable at least; others do not take part.

        Returns:
            The rows, most valuable first, and whose turn is next. They stay.
        """
        chosen: list[Entry] = []
        following: Turns = {}
        for lane, quota in Counter(map(lane_of, first)).items():
            best = {tenant: found[0] for tenant, rows in self._rows[lane].items() if (found := rows.usable(until_s, 1))}
            before = [tenant for tenant in turns.get(lane, ()) if tenant in best]
            order = deque(dict.fromkeys([*before, *sorted(best, key=best.__getitem__, reverse=True)]))
            waiting: dict[str, deque[Entry]] = {}
            for _ in range(quota):
                tenant = order.popleft()
                if tenant not in waiting:  # one more than it can get, to know whether it waits for another turn
                    waiting[tenant] = deque(self._rows[lane][tenant].usable(until_s, quota + 1))
                chosen.append(waiting[tenant].popleft())
                if waiting[tenant]:
                    order.append(tenant)
            following[lane] = list(order)
        chosen.sort(reverse=True)
        return chosen, following

    def least_fair(self, first: Iterable[Entry]) -> list[Entry]:
        """The rows that leave a full queue: of each lane as many as its rank takes from it, from whoever has most waiting.

        Args:
            first: the rows that would leave by rank alone; each lane loses as many as it has among them.

        Returns:
            The rows, of each lane the tenant with most rows first, least valuable first. They stay.
        """
        leaving: list[Entry] = []
        for lane, quota in Counter(map(lane_of, first)).items():
            tenants = sorted((next(iter(rows)), rows) for rows in self._rows[lane].values())
            most = [(-len(rows), place, iter(rows)) for place, (_, rows) in enumerate(tenants)]
            heapify(most)
            for _ in range(quota):
                fewer, place, rows = most[0]
                leaving.append(next(rows))
                heapreplace(most, (fewer + 1, place, rows))
        return leaving

    def below(self, key: float, since_s: float) -> list[Entry]:
        """The rows of a smaller key, none of them protected, that came no later than an instant; least valuable first.

        They have to leave.
        """
        for entry in self._since.before(nextafter(since_s, inf)):
            if entry[0] < PROTECTED and entry[1] not in self._places_of_long:
                self._places_of_long.add(entry[1])
                self._long.add(entry)
        found = []
        for entry in self._long.least(len(self._long), below=key):
            self._places_of_long.remove(entry[1])
            if entry[2].entered_s <= since_s:
                found.append(entry)
            else:  # the instant lies further back than it did before
                self._since.add(entry)
        return found

    def _put(self, entry: Entry) -> None:
        tenants = self._rows.setdefault(lane_of(entry), {})
        tenants.setdefault(entry[2].request.tenant, Ranking()).add(entry)
