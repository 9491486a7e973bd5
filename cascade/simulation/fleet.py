"""Several routers before one cluster, as one thing that the simulator can drive. Knows policies; not what they decide.

Each router has its own policy, of the very class that the server runs, with its own queues; none knows of the others. They
meet only at the replicas. Messages are spread as HAProxy spreads connections for Serve, to the router with the fewest rows
under way (``leastconn``, in turn among equals), or in turn (``roundrobin``).
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Literal

from cascade.errors import ConfigError
from cascade.policy.commands import Abandon, Batch, Command, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy
from cascade.policy.request import Request
from cascade.policy.walk import Walk
from cascade.simulation.simulator import Planner

Balance = Literal["leastconn", "roundrobin"]


class Fleet:
    """Routers beside each other, with the face of one (`cascade.simulation.simulator.Driven`).

    Args:
        routers: their policies, fresh, each with its own part of the replicas, see `cascade.assembly.stage_configs`. For a
            stage that is placed in the router the cluster needs one replica a router.
        balance: how messages are spread.

    Raises:
        ConfigError: there is no router.
    """

    def __init__(self, routers: Sequence[Policy], balance: Balance = "leastconn") -> None:
        if not routers:
            raise ConfigError("a fleet needs at least one router, got none")
        self.routers = tuple(routers)
        self._least = balance == "leastconn" and len(routers) > 1
        self._turn = len(routers) - 1
        self._owner: dict[Batch, int] = {}
        self._slots = tuple(tuple(capacity.slots for capacity in router.capacities) for router in routers)
        # Nothing is new in a router that nothing has happened to: of many routers only those are asked to which it has.
        self._touched = set(range(len(routers)))
        self._timer: list[float | None] = [None] * len(routers)
        self._timers: list[tuple[float, int]] = []  # a heap; one that is not its router's present timer is passed over

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        """A message came in, and goes to one router."""
        index = self._next()
        self._touched.add(index)
        return self.routers[index].arrived(now, requests)

    def completed(self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None) -> list[Command]:
        """A batch came back to the router that sent it."""
        index = self._owner.pop(batch)
        return self._noted(index, self.routers[index].completed(now, batch, judgement, run_s))

    def failed(self, now: float, batch: Batch) -> list[Command]:
        """A batch was lost, and the router that sent it hears of it."""
        index = self._owner.pop(batch)
        return self._noted(index, self.routers[index].failed(now, batch))

    def tick(self, now: float) -> list[Command]:
        """Time has passed, for those whose timer has come."""
        self._set_timers()
        due = set()
        while self._timers and self._timers[0][0] <= now:
            at_s, index = heappop(self._timers)
            if self._timer[index] == at_s:
                self._timer[index] = None
                due.add(index)
        return [command for index in sorted(due) for command in self._noted(index, self.routers[index].tick(now))]

    def dispatch(self, now: float) -> list[Command]:
        """The routers fill their free slots; a slot is a router's own, so that their order makes no difference."""
        commands: list[Command] = []
        for index in sorted(self._touched):
            commands += self._noted(index, self.routers[index].dispatch(now))
        self._set_timers()
        self._touched.clear()
        return commands

    def next_timer(self) -> float | None:
        """The first timer of any."""
        self._set_timers()
        while self._timers and self._timers[0][0] != self._timer[self._timers[0][1]]:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage is out, with 0 slots, or back, with each router's own."""
        return [
            command
            for index, (router, own) in enumerate(zip(self.routers, self._slots, strict=True))
            for command in self._noted(index, router.set_slots(stage, own[stage] if slots else 0))
        ]

    def set_prices(self, prices: Sequence[float]) -> None:
        """The same prices for all."""
        for router in self.routers:
            router.set_prices(prices)

    def planned_by(self, planner: Planner) -> Planner:
        """A planner that plans for each router from what that router knows: its own arrivals and its own capacities.

        Args:
            planner: what each of them runs; told an equal share of the arrivals, which is what balancing gives.
        """

        def plan(now: float, rate: float, _driven: object) -> None:
            for router in self.routers:
                prices = planner(now, rate / len(self.routers), router)
                if prices is not None:
                    router.set_prices(prices)

        return plan

    def _next(self) -> int:
        count = len(self.routers)
        order = [(self._turn + step) % count for step in range(1, count + 1)]
        self._turn = min(order, key=lambda index: self.routers[index].counts.live) if self._least else order[0]
        return self._turn

    def _noted(self, index: int, commands: list[Command]) -> list[Command]:
        """Something happened to a router: remember that, and whose the batches are."""
        self._touched.add(index)
        for command in commands:
            if isinstance(command, Run):
                self._owner[command.batch] = index
            elif isinstance(command, Abandon):
                del self._owner[command.batch]
        return commands

    def _set_timers(self) -> None:
        """Note the timers of the routers that something has happened to."""
        for index in self._touched:
            at_s = self.routers[index].next_timer()
            if at_s != self._timer[index]:
                self._timer[index] = at_s
                if at_s is not None:
                    heappush(self._timers, (at_s, index))
