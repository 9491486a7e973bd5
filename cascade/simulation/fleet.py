"""Several routers before one cluster, as one thing that the simulator can drive. Knows policies; not what they decide.

Each router has its own policy, of the very class that the server runs, with its own queues; none knows of the others. They
meet only at the replicas. Messages are spread as HAProxy spreads connections for Serve, to the router with the fewest rows
under way (``leastconn``, in turn among equals), or in turn (``roundrobin``).
"""

from collections.abc import Sequence
from itertools import chain
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
        self._owner: dict[Batch, Policy] = {}
        self._slots = tuple(tuple(capacity.slots for capacity in router.capacities) for router in routers)

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        """A message came in, and goes to one router."""
        return self._next().arrived(now, requests)

    def completed(self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None) -> list[Command]:
        """A batch came back to the router that sent it."""
        router = self._owner.pop(batch)
        return self._noted(router, router.completed(now, batch, judgement, run_s))

    def failed(self, now: float, batch: Batch) -> list[Command]:
        """A batch was lost, and the router that sent it hears of it."""
        router = self._owner.pop(batch)
        return self._noted(router, router.failed(now, batch))

    def tick(self, now: float) -> list[Command]:
        """Time has passed, for all of them."""
        return [command for router in self.routers for command in self._noted(router, router.tick(now))]

    def dispatch(self, now: float) -> list[Command]:
        """Every router fills its free slots; a slot is its own, so that their order makes no difference."""
        return [command for router in self.routers for command in self._noted(router, router.dispatch(now))]

    def next_timer(self) -> float | None:
        """The first timer of any."""
        return min((at_s for router in self.routers if (at_s := router.next_timer()) is not None), default=None)

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage is out, with 0 slots, or back, with each router's own."""
        return list(
            chain.from_iterable(
                self._noted(router, router.set_slots(stage, own[stage] if slots else 0))
                for router, own in zip(self.routers, self._slots, strict=True)
            )
        )

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

    def _next(self) -> Policy:
        count = len(self.routers)
        order = [(self._turn + step) % count for step in range(1, count + 1)]
        self._turn = min(order, key=lambda index: self.routers[index].counts.live) if self._least else order[0]
        return self.routers[self._turn]

    def _noted(self, router: Policy, commands: list[Command]) -> list[Command]:
        """Remember whose the batches are."""
        for command in commands:
            if isinstance(command, Run):
                self._owner[command.batch] = router
            elif isinstance(command, Abandon):
                del self._owner[command.batch]
        return commands
