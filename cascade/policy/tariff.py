"""What the next stage costs whom, and where a row that pays stands in its queue. Knows prices, classes, tenants' rates."""

from collections.abc import Sequence
from math import inf

from cascade.policy.classes import Classes
from cascade.policy.fairness import FairShare, Tenants
from cascade.policy.request import Request


class Tariff:
    """Present prices, and who pays them.

    Args:
        base_prices: [S] base price of a visit to each stage.
        classes: the classes of rows.
        tenants: how much each tenant sends.

    Attributes:
        base_prices: see above.
        prices: [S] present prices.
    """

    __slots__ = ("_classes", "_share", "_tenants", "_uncongested_rate", "base_prices", "prices")

    def __init__(self, base_prices: Sequence[float], classes: Classes, tenants: Tenants) -> None:
        self.base_prices = tuple(base_prices)
        self.prices = self.base_prices
        self._classes = classes
        self._tenants = tenants
        self._share = FairShare(tenants)
        self._uncongested_rate = inf

    def set(self, prices: Sequence[float], uncongested_rate: float) -> None:
        """Take over a plan's prices, see `Policy.set_prices`."""
        self.prices = tuple(map(max, zip(self.base_prices, prices, strict=True)))
        self._uncongested_rate = uncongested_rate
        self._share = FairShare(self._tenants)

    def pays(self, now: float, request: Request, stage: int) -> float:
        """The value above which a row goes on to ``stage``."""
        base_price = self.base_prices[stage]
        price = self.prices[stage]
        if price > base_price and self._spared(now, request):
            price = base_price
        return self._classes.pays(request.priority, stage, base_price, price)

    def pays_anyone(self, request: Request, stage: int) -> float:
        """The same where every tenant pays the present price."""
        return self._classes.pays(request.priority, stage, self.base_prices[stage], self.prices[stage])

    def key(self, now: float, request: Request, value: float, stage: int) -> float | None:
        """The row's key in the queue of ``stage``, None if the price that it sees there stops it.

        Args:
            now: present instant.
            request: the row.
            value: its value of going on.
            stage: the stage that it would go to.
        """
        base_price = self.base_prices[stage]
        if self.prices[stage] > base_price and self._spared(now, request):
            return self._classes.key(request.priority, stage, value, base_price, base_price)
        return self.key_of_anyone(request, value, stage)

    def pressure(self, now: float, request: Request, stage: int) -> float:
        """How much less a row shall think at a stage whose network chooses its depth, as a probability.

        Doubt that is worth less than this is no reason for another step, as a gain that is worth less than the surcharge is
        none for a visit: the surcharge over the weight of the row's class. Who pays no surcharge thinks as without load, and
        so does a class with a floor, whose certificate is of rows that did.

        Args:
            now: present instant.
            request: the row.
            stage: the stage that it is sent to.
        """
        surcharge = self.prices[stage] - self.base_prices[stage]
        if surcharge <= 0 or self._spared(now, request):
            return 0.0
        return self._classes.pressure(request.priority, surcharge)

    def _spared(self, now: float, request: Request) -> bool:
        """Whether the row's tenant is within its fair rate, and so pays no surcharge."""
        return self._uncongested_rate < inf and self._share.holds(now, request.tenant, self._uncongested_rate)

    def key_of_anyone(self, request: Request, value: float, stage: int) -> float | None:
        """The same where every tenant pays the present price."""
        return self._classes.key(request.priority, stage, value, self.base_prices[stage], self.prices[stage])
