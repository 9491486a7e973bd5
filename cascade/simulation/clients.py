"""Who asks in a simulated run, and for what: deadlines, classes, tenants. Knows neither arrivals nor what is in them.

`Clients` are all alike; a `Mix` holds a column for each thing that they may differ in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray

from cascade.errors import ConfigError
from cascade.policy.request import Request

Ask = Callable[[int, float], Request]
"""(number of the request, instant at which it comes) to what the policy is told of it."""


@dataclass(frozen=True)
class Clients:
    """What requests ask for, all of them the same.

    Attributes:
        deadline_s: time that each has.
        margin_s: the best answer so far leaves this long before the deadline, at most a tenth of the time to it.
        priority: their class, 1 is the most important.
        tenant: who they are.
    """

    deadline_s: float
    margin_s: float = 0.01
    priority: int = 1
    tenant: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s < inf or not 0 <= self.margin_s < inf:
            raise ConfigError(f"a deadline above 0 and a margin are needed, got {self.deadline_s:g} and {self.margin_s:g}")

    def asking(self) -> Ask:
        """How each request is made."""
        deadline_s, margin_s = self.deadline_s, min(self.margin_s, self.deadline_s / 10)
        priority, tenant = self.priority, self.tenant

        def ask(tag: int, now: float) -> Request:
            until_s = now + deadline_s
            return Request(tag, now, until_s - margin_s, until_s, priority, inf, tenant)

        return ask


@dataclass(frozen=True, eq=False)
class Mix:
    """Requests that differ in what they ask for; one item of each column a request, in order of arrival.

    Attributes:
        deadline_s: [N] time that it has.
        priority: [N] its class, 1 is the most important.
        tenant: [N] who asks.
        margin_s: as for `Clients`.

    Raises:
        ConfigError: the columns differ in length, a deadline is not above 0, or a class is below 1.
    """

    deadline_s: NDArray[np.float64]
    priority: NDArray[np.int64]
    tenant: NDArray[np.str_]
    margin_s: float = 0.01

    def __post_init__(self) -> None:
        if not len(self.deadline_s) == len(self.priority) == len(self.tenant):
            lengths = f"{len(self.deadline_s)}, {len(self.priority)} and {len(self.tenant)}"
            raise ConfigError(f"deadlines, classes and tenants must be equally many, got {lengths}")
        if len(self.deadline_s) and not (self.deadline_s.min() > 0 and np.isfinite(self.deadline_s).all()):
            raise ConfigError(f"deadlines must be above 0 and finite, got {self.deadline_s.min():g}")
        if len(self.priority) and self.priority.min() < 1:
            raise ConfigError(f"the first class is 1, got {self.priority.min()}")

    def asking(self) -> Ask:
        """How each request is made."""
        # Lists: single items of numpy arrays cost several times as much.
        deadlines_s = self.deadline_s.tolist()
        margins_s = np.minimum(self.margin_s, self.deadline_s / 10).tolist()
        priorities, tenants = self.priority.tolist(), self.tenant.tolist()

        def ask(tag: int, now: float) -> Request:
            until_s = now + deadlines_s[tag]
            return Request(tag, now, until_s - margins_s[tag], until_s, priorities[tag], inf, tenants[tag])

        return ask


def draw_mix(kinds: Sequence[Clients], shares: Sequence[float], count: int, seed: SeedSequence | int) -> Mix:
    """Draw who asks: each request is of one kind, independently of all others.

    Args:
        kinds: kinds of clients; the margin is the first one's.
        shares: share of the requests that each kind sends, up to a common factor.
        count: requests.
        seed: of the draw.

    Raises:
        ConfigError: there is not one share for each kind, or they are not shares.
    """
    p = np.asarray(shares, dtype=np.float64)
    if not kinds or p.shape != (len(kinds),) or not (p >= 0).all() or not 0 < p.sum() < inf:
        raise ConfigError(f"expected one share for each of {len(kinds)} kinds of clients, none negative, got {list(shares)}")
    which = default_rng(seed).choice(len(kinds), size=count, p=p / p.sum())
    return Mix(
        np.array([kind.deadline_s for kind in kinds])[which],
        np.array([kind.priority for kind in kinds])[which],
        np.array([kind.tenant for kind in kinds])[which],
        kinds[0].margin_s,
    )
