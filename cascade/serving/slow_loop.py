"""The slow loop of one router: twice a second it looks at load and replicas, and sets prices. Decides by the market alone.

Nothing waits for it. Every router has its own, and what it tells the policy holds until the next round: a slow or dead loop
leaves the queues in charge, at prices that `Policy` forgets after a while.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from cascade.calibration.certificate import Certificate
from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Command
from cascade.policy.market import Clearing, Group, Market
from cascade.policy.meter import RateMeter
from cascade.policy.policy import Policy
from cascade.policy.scaling import Reading

logger = logging.getLogger("cascade.router")

PERIOD_S = 0.5
"""Time between rounds. Up to 2 s is harmless, since prices only spare rows a queue that they would leave unserved."""
PRICES_LAST_S = 5.0
"""Prices that the slow loop has not renewed for so long are forgotten: at base prices the queues alone do nearly as well,
while prices of a peak that is over would spare idle stages the work."""
QUIET_RATE = 1.0
"""Rows a second below which a router does not call itself loaded: the estimate of so few is mostly noise."""


@dataclass(frozen=True, slots=True)
class StagePlaces:
    """How a router's share of a stage follows from its replicas.

    Attributes:
        replicas: replicas at the start.
        slots: batches that this router may have with so many replicas; 0 for none.
        share: this router's part of the stage: 1 over the number of routers.
        running: healthy replicas now, None if that is not known; None in place of the function where it cannot change.
        owner: index of the stage whose replicas these are; None if they are its own.
    """

    replicas: int
    slots: Callable[[int], int]
    share: float = 1.0
    running: Callable[[], int | None] | None = None
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """What the slow loop of a ladder works with.

    Attributes:
        classes: the classes, priority 1 first.
        places: one for each stage.
        market: demand by price; None leaves prices as they are.
        certificate: bounds the loss at any prices; None if the ladder has none.
    """

    classes: Sequence[ClassConfig]
    places: Sequence[StagePlaces]
    market: Market | None = None
    certificate: Certificate | None = None


class SlowLoop:
    """Rate, capacities and replicas in; prices and slots out.

    Attributes:
        clearing: what the last round found; None before the first, or without a market.
        replicas: healthy replicas of each stage, as of the last round.
        at_s: when the last round was; the start before the first.

    Args:
        policy: the policy that it informs.
        control: what it works with.
        carry_out: what to do with the commands that a change of slots brings.
        now: present instant.
    """

    def __init__(
        self,
        policy: Policy,
        control: Control,
        carry_out: Callable[[Sequence[Command]], None],
        now: float,
    ) -> None:
        self._policy = policy
        self._base_prices = policy.prices  # nobody has set any yet
        self._market = control.market
        self._classes = tuple(control.classes)
        self._places = places = tuple(control.places)
        self._carry_out = carry_out
        self._certificate = control.certificate
        self._meters = [RateMeter(now) for _ in self._classes]
        self.replicas = [place.replicas for place in places]
        self.clearing: Clearing | None = None
        self.at_s = now
        self._priced_s = now
        self._least_weight = 1.0
        self._seen = (0, 0)
        self._turned_away = 0.0

    def take_over(self, before: "SlowLoop") -> None:
        """Go on with what another one has measured, of the same stages and classes."""
        self._meters = before._meters
        self.replicas = list(before.replicas)
        self._seen = before._seen
        self._turned_away = before._turned_away

    def arrived(self, now: float, priority: int, rows: int) -> None:
        """Rows came to the door, whether they were let in or not."""
        self._meters[min(priority, len(self._meters)) - 1].add(now, rows)

    def forget_stale(self, now: float) -> None:
        """Go back to base prices where nobody has set any for `PRICES_LAST_S`."""
        if now > self._priced_s + PRICES_LAST_S and self._policy.prices != self._base_prices:
            self._policy.set_prices(self._base_prices)

    def rate(self, now: float) -> float:
        """Estimated rows a second that come to the door."""
        return sum(meter.at(now) for meter in self._meters)

    def rows_per_s(self, stage: int) -> float:
        """Rows a second that this router may ask of a stage, at full batches: what was learned, times what is there."""
        place = self._places[stage]
        return self._policy.capacities[stage].full_rows_per_s(self.replicas[stage]) * place.share

    def certified_loss(self, early: float) -> float | None:
        """Bound of the accuracy lost now against the whole ladder; None without a certificate.

        Rows that walk by the present prices lose at most what the certificate says of these. Of rows that left earlier,
        because a queue was full, their time was up, or a stage failed, each may be lost; but no row loses more than by
        stopping at the first stage. Rows that skip a stage that is out are covered by nothing, and neither are rows that
        think less than they did when their losses were counted: None then, too.

        Args:
            early: share of the rows answered lately that left earlier than prices say.
        """
        seen = self._seen_prices()
        if self._certificate is None or seen is None:
            return None
        return min(self._certificate.path[-1].bound_below, self._certificate.bound_at(seen) + early)

    def certified_stops(self, early: float) -> tuple[float, ...] | None:
        """The same where, besides, every row stops at a stage at the latest, [S]: the loss of who takes what is there then.

        Args:
            early: see `certified_loss`.
        """
        certificate, seen = self._certificate, self._seen_prices()
        if certificate is None or seen is None:
            return None
        most, stages = certificate.path[-1].bound_below, range(len(certificate.stages))
        return tuple(min(most, certificate.bound_stopping(seen, stage) + early) for stage in stages)

    def _seen_prices(self) -> list[float] | None:
        """The highest prices that any row walks at now; None where a stage is out."""
        if not all(capacity.slots for capacity in self._policy.capacities):
            return None
        if self._policy.thinks_less:
            return None
        # A class of a small weight sees more of a surcharge: none has walked at higher prices than these.
        base, prices = self._base_prices, self._policy.prices
        return [low + (price - low) / self._least_weight for low, price in zip(base, prices, strict=True)]

    def readings(self, stages: Mapping[str, int]) -> dict[str, Reading]:
        """What this router knows of stages that scale, by name.

        Args:
            stages: index of each.
        """
        if self.clearing is None:
            return {}
        base, prices, visits = self._base_prices, self._policy.prices, self.clearing.unloaded_visits
        rate = sum(meter.at(self.at_s) for meter in self._meters)
        each = [capacity.full_rows_per_s(1) for capacity in self._policy.capacities]
        # Nothing is charged for the first stage; what it cannot run is turned away.
        surcharges = [
            price - low if stage else self._turned_away for stage, (price, low) in enumerate(zip(prices, base, strict=True))
        ]
        found = {}
        for name, stage in stages.items():
            together = [stage, *(other for other, place in enumerate(self._places) if place.owner == stage != other)]
            found[name] = Reading(
                surcharge=max(surcharges[other] for other in together),
                # In rows of this stage: those of the others take more of a replica's time, or less.
                demand=sum(rate * visits[other] * each[stage] / each[other] for other in together),
                rate=each[stage],
            )
        return found

    def step(self, now: float) -> None:
        """One round."""
        for stage, place in enumerate(self._places):
            count = None if place.running is None else place.running()
            if count is not None and count != self.replicas[stage]:
                self._set_replicas(stage, count)
        self.at_s = now
        counts = self._policy.counts
        arrived, shed = counts.arrived - self._seen[0], counts.shed - self._seen[1]
        self._seen = counts.arrived, counts.shed
        self._turned_away = shed / arrived if arrived else 0.0
        if self._market is None:
            return
        groups = [
            Group(meter.at(now), config.weight, config.cap)
            for meter, config in zip(self._meters, self._classes, strict=True)
        ]
        rows_per_s = [self.rows_per_s(stage) if open_ else 0.0 for stage, open_ in enumerate(self._policy.reachable)]
        self.clearing = clearing = self._market.clear(groups, rows_per_s)
        self._least_weight = min([1.0, *(group.weight for group in groups if group.rate > 0)])
        if sum(group.rate for group in groups) < QUIET_RATE:
            self._policy.set_prices([0.0] * len(rows_per_s))
        else:
            # A stage that is out has no price; the policy passes it by its slots.
            prices = [price if isfinite(price) else 0.0 for price in clearing.prices]
            self._policy.set_prices(prices, clearing.uncongested_rate)
        self._priced_s = now  # not before: a round that fails renews no price

    async def run(self, clock: Callable[[], float]) -> None:
        """Rounds without end; one that fails is logged, and the next one tries again."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.step(clock())
            except Exception:
                logger.exception("the slow loop failed; prices stay as they are until they expire")

    def _set_replicas(self, stage: int, count: int) -> None:
        logger.debug("stage %d has %d replicas, had %d", stage, count, self.replicas[stage])
        self.replicas[stage] = count
        # Also where the places are as many already: another policy may share them, and each has a queue of its own.
        slots = self._places[stage].slots(count) if count else 0
        self._carry_out(self._policy.set_slots(stage, slots))
