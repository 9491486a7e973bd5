"""Where a row goes next and where it stands in that stage's queue. Knows ways, prices, budgets and which stages are open.

It has no queue and changes no row's state but whether it is protected; the policy does what it says.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf

from cascade.policy.capacity import StageCapacity
from cascade.policy.chains import behind
from cascade.policy.classes import PROTECTED, Classes
from cascade.policy.gain import Floats
from cascade.policy.routing import Routing, Ways
from cascade.policy.stage_config import StageConfig
from cascade.policy.tariff import Tariff
from cascade.policy.walk import Walk


class Onward:
    """The next steps of a ladder's rows.

    Args:
        routing: whether rows may skip stages; not where stages resume others.
        stages: cheapest first.
        capacities: of the stages.
        classes: the classes of rows.
        tariff: what a visit costs whom.
    """

    __slots__ = ("_capacities", "_classes", "_resumes", "_routing", "_stages", "_tariff")

    def __init__(
        self,
        routing: Routing,
        stages: Sequence[StageConfig],
        capacities: Sequence[StageCapacity],
        classes: Classes,
        tariff: Tariff,
    ) -> None:
        self._routing = routing
        self._stages = stages
        self._resumes = tuple(stage.resumes for stage in stages)
        self._capacities = capacities
        self._classes = classes
        self._tariff = tariff

    def open_behind(self, stage: int, *, answered: bool = True) -> list[int]:
        """Dearer stages that a row at a stage can get to; see `cascade.policy.chains.behind`."""
        return behind(stage, [capacity.slots > 0 for capacity in self._capacities], self._resumes, answered=answered)

    def affordable(self, walk: Walk, stage: int) -> bool:
        """Whether the row's budget allows a visit."""
        # Costs are sums of floats: a budget of exactly the sum must be enough.
        return walk.cost + self._stages[stage].cost <= walk.request.budget * (1.0 + 1e-9)

    def ways(self, gains: Floats, stage: int, open_stages: Sequence[int]) -> Ways:
        """The ways of rows [n, stages behind] that a stage has judged."""
        return Ways.behind(self._routing, gains, stage, open_stages, self._tariff.base_prices)

    def worth(self, unloaded: Ways) -> tuple[Sequence[float], float]:
        """What going on is worth to rows, [n], and what it must exceed when nothing is scarce."""
        return unloaded.worth(self._tariff.base_prices)

    def soonest(self, now: float, ways: Ways) -> dict[int, float]:
        """When each of the next stages could answer a row at the earliest."""
        return {target: now + self._capacities[target].service.predict(1) for target in ways.targets}

    def choose(self, now: float, ways: Ways, row: int, walk: Walk, soonest: Mapping[int, float]) -> tuple[int, float | None]:
        """Where a row that was just judged goes, and its key in that queue; no key if the present price stops it.

        Notes whether its class's floor sends it on: such a row waits before all that are not, wherever it goes.
        """
        if ways.only is not None:
            target = ways.targets[0]
            key = self._tariff.key(now, walk.request, ways.only[row], target)
            walk.protected = key is not None and key >= PROTECTED
            return target, key
        pays = partial(self._tariff.pays, now, walk.request)
        target, value = ways.best(row, pays, partial(self.barred, walk, soonest))
        return target, self.protect(ways, row, walk, self._tariff.key(now, walk.request, value, target))

    def protect(self, ways: Ways, row: int, walk: Walk, key: float | None = None) -> float | None:
        """Note whether a row's class promises it some way at its floor's prices; returns its key with that in it."""
        walk.protected = ways.any_above(row, partial(self._classes.protects, walk.request.priority))
        return key + PROTECTED if walk.protected and key is not None and key < PROTECTED else key

    def instead(self, walk: Walk) -> tuple[int, float | None] | None:
        """Where a row goes whose stage went out while it waited, and its key there.

        Returns:
            The stage and the key, None if the price stops it there; None if no stage is open to it.
        """
        answered_by, gains = walk.best
        if self._routing == "cascade":
            open_stages = self.open_behind(walk.stage, answered=False)
        else:
            open_stages = self.open_behind(answered_by)
        if not open_stages:
            return None
        ways = self.ways(gains, answered_by, open_stages)
        pays = partial(self._tariff.pays_anyone, walk.request)
        target, value = ways.best(0, pays, partial(self.barred, walk, {}))
        return target, self.protect(ways, 0, walk, self._tariff.key_of_anyone(walk.request, value, target))

    def detour(self, now: float, walk: Walk) -> tuple[int, float] | None:
        """A cheaper stage for a row that a full one will not take, and its key there; None if none is worth it in time.

        With a cascade there is none: a row has been at all the cheaper ones. Only cheaper ones, so that it comes to an end.
        """
        if self._routing == "cascade":
            return None
        answered_by, gains = walk.best
        cheaper = [j for j in self.open_behind(answered_by) if j < walk.stage]
        if not cheaper:
            return None
        ways = self.ways(gains, answered_by, cheaper)
        barred = partial(self.barred, walk, self.soonest(now, ways))
        target, value = ways.best(0, partial(self._tariff.pays, now, walk.request), barred)
        key = None if barred(target) else self._tariff.key(now, walk.request, value, target)
        return None if key is None else (target, key)

    def barred(self, walk: Walk, soonest: Mapping[int, float], stage: int) -> bool:
        """Whether a stage is none for a row, being too dear for its budget or too slow for its deadline."""
        return not self.affordable(walk, stage) or soonest.get(stage, -inf) > walk.usable_until_s
