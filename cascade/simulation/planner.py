"""The server's slow loop in virtual time: prices of the market, at the measured rate and the learned capacities.

Knows the policy and the market; what the loop does beside that in the server (replicas, metrics) has no counterpart here.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from cascade.policy.market import Group, Market
from cascade.simulation.simulator import Driven, Planner


def market_planner(market: Market, replicas: Sequence[int]) -> Planner:
    """A planner for `simulate` that charges what the server would.

    Args:
        market: demand by price.
        replicas: of each stage.
    """

    def plan(now: float, rate: float, policy: Driven) -> Sequence[float]:  # noqa: ARG001
        capacities: Any = policy.capacities  # type: ignore[attr-defined]
        reachable: Any = policy.reachable  # type: ignore[attr-defined]
        rows_per_s = [
            capacity.full_rows_per_s(count) if open_ else 0.0
            for capacity, count, open_ in zip(capacities, replicas, reachable, strict=True)
        ]
        prices = market.clear([Group(rate)], rows_per_s).prices
        return [price if isfinite(price) else 0.0 for price in prices]

    return plan
