"""What classes of requests are worth to each other and what each is promised. Knows values and prices; no queue, no time.

A row of class c with value v of going on, before a stage of base price b and present price p >= b, is worth its *surplus*

    weight_c * (v - b)

there, and goes on while that is more than the *surcharge* p - b that load puts on the stage. So under load a class of half
the weight gives way at half the gain, and without load, where p = b, all classes are treated alike.

A class may have a certified *floor*: prices that it never sees exceeded. A row that goes on even at these is *protected*:
it waits before all that are not, is never evicted and never stopped by a price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from cascade.errors import ConfigError

MAX_WEIGHT = 100.0
"""Beyond this a weight says no more than an order of classes."""
PROTECTED = 1024.0
"""Added to the surplus of a protected row: more than any surplus, since no gain exceeds 1."""


@dataclass(frozen=True, slots=True)
class ClassConfig:
    """What the policy must know of a class.

    Attributes:
        weight: worth of a gain in this class, against 1 in a class for which the plan's prices are made; in (0, 100].
        cap: the certified floor as prices, one for each stage, the first not used; None where nothing is promised.
        beyond_floor: what happens when protected rows are more than their stage can do: ``wait`` lets every row wait until
            its deadline, ``shed`` turns the class away at the door, so that what was let in keeps its floor.

    Raises:
        ConfigError: the weight is out of range, or a price of the cap is not a number.
    """

    weight: float = 1.0
    cap: tuple[float, ...] | None = None
    beyond_floor: Literal["wait", "shed"] = "wait"

    def __post_init__(self) -> None:
        if not 0 < self.weight <= MAX_WEIGHT:
            raise ConfigError(f"the weight of a class must be above 0 and at most {MAX_WEIGHT:g}, got {self.weight:g}")
        if self.cap is not None and not all(map(isfinite, self.cap)):
            raise ConfigError(f"the cap of a class must be finite prices, got {self.cap}")


class Classes:
    """The classes of a ladder, priority 1 first; a priority beyond the last is of the last class.

    Args:
        configs: at least one.
        base_prices: [S] base price of a visit to each stage.

    Raises:
        ConfigError: there is no class, or a cap has not one price for each stage.
    """

    def __init__(self, configs: Sequence[ClassConfig], base_prices: Sequence[float]) -> None:
        if not configs:
            raise ConfigError("classes: expected at least one, got none")
        stages = len(base_prices)
        for place, config in enumerate(configs, start=1):
            if config.cap is not None and len(config.cap) != stages:
                raise ConfigError(f"classes: class {place} needs {stages} prices as its cap, got {len(config.cap)}")
        self.count = len(configs)
        self._last = len(configs) - 1
        self._weights = tuple(config.weight for config in configs)
        # Below its base price a visit is never worth its cost, so that is the lowest cap there can be.
        self._caps = tuple(
            (inf,) * stages if config.cap is None else tuple(map(max, zip(config.cap, base_prices, strict=True)))
            for config in configs
        )
        self._sheds = tuple(config.cap is not None and config.beyond_floor == "shed" for config in configs)

    def index(self, priority: int) -> int:
        """Place of the class of a priority, from 0."""
        return min(priority - 1, self._last)

    def sheds(self, priority: int) -> bool:
        """Whether the class is turned away at the door when its protected rows wait for too long."""
        return self._sheds[min(priority - 1, self._last)]

    def protects(self, priority: int, stage: int, value: float) -> bool:
        """Whether a row of this value is within its class's floor before ``stage``."""
        return value > self._caps[min(priority - 1, self._last)][stage]

    def pays(self, priority: int, stage: int, base_price: float, price: float) -> float:
        """The value above which a row goes on to ``stage``: the price that its class sees.

        From ``weight (value - base) > min(price, cap) - base``, or ``value > cap``; see `key`.

        Args:
            priority: class of the row.
            stage: the stage that it would go to.
            base_price: of the stage.
            price: present price of the stage for this row.
        """
        place = min(priority - 1, self._last)
        cap = self._caps[place][stage]
        return min(base_price + (min(price, cap) - base_price) / self._weights[place], cap)

    def pressure(self, priority: int, surcharge: float) -> float:
        """What a surcharge takes off the thinking of a row of a class, at most 1; see `Tariff.pressure`."""
        place = min(priority - 1, self._last)
        return 0.0 if self._caps[place][0] < inf else min(1.0, surcharge / self._weights[place])

    def key(self, priority: int, stage: int, value: float, base_price: float, price: float) -> float | None:
        """Where a row stands in the queue of ``stage``: a larger key is served first; None if the price stops it.

        Args:
            priority: class of the row.
            stage: the stage that it would go to.
            value: its value of going on, see `cascade.policy.price.continuation_value`.
            base_price: of the stage.
            price: present price of the stage for this row.
        """
        place = min(priority - 1, self._last)
        surplus = self._weights[place] * (value - base_price)
        cap = self._caps[place][stage]
        if value > cap:
            return PROTECTED + surplus
        return surplus if surplus > min(price, cap) - base_price else None
