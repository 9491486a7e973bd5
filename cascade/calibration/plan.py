"""The plan: prices, and what comes of them, by arrival rate. plan.json is the file that a server looks prices up in.

Computed from a judged table and a deployment. Knows no spec, no network and no clock.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

import cascade
from cascade.calibration.artefact import Share, Text, _File, _Part
from cascade.calibration.clearing import Cleared, clear
from cascade.calibration.deployment import Deployment
from cascade.calibration.fluid import Fluid, OperatingPoint, by_column, floor, unloaded_prices
from cascade.calibration.judged import JudgedTable
from cascade.errors import ConfigError
from cascade.policy.market import RHO

GRID_STEP = 1.08
"""Ratio of neighbouring rates. Smaller than `RHO`: prices for the next higher rate still ask for more than fits."""
LEAST_SHARE, MOST_SHARE = 0.5, 1.3
"""The grid runs from this part of the rate at which a capacity first binds to this part of stage 0's saturation."""

Positive = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Progress = Callable[[int, int], None]


class Certifying(Protocol):
    """A certificate: bounds the loss at any prices."""

    def bound_at(self, prices: Sequence[float]) -> float:
        """Upper bound of the share of rows that the whole ladder has right and the answer served wrong."""
        ...


class PlanStage(_Part):
    """What the plan assumes of a stage."""

    name: Text
    """Its name."""
    replicas: Annotated[int, Field(ge=1)]
    """Replicas."""
    rows_per_s: Positive
    """Rows a second of all of them at full batches."""
    base_price: Amount
    """Price of a visit when nothing is scarce."""
    owner: Text | None = None
    """The stage on whose replicas it runs, where these are not its own."""


class PlanPoint(_Part):
    """One arrival rate. Shares are of the requests offered; one that is shed counts as wrong."""

    rate: Positive
    """Requests a second."""
    prices: tuple[Amount, ...]
    """[S] price of a visit to each stage, made for ``rho`` times the capacity; the first is not used."""
    exit_shares: tuple[Share, ...]
    """[S] share answered by each stage; with ``shed`` they sum to 1."""
    accuracy: Share
    """Predicted share answered right."""
    limit: Share
    """A*, the fluid limit: the most that sending rows on in the order of their value reaches, whatever visits cost."""
    floor: Share
    """The same with everything answered by stage 0."""
    degraded: Share
    """Share answered at a cheaper stage than with nothing loaded."""
    certified_loss: Share | None
    """Bound of the share lost against the whole ladder, among answered requests; None without a certificate."""
    p99_s: Amount
    """Estimate of the 99th percentile of latency."""
    cost: Amount
    """Mean cost of a request."""
    utilisation: tuple[Amount, ...]
    """[S] predicted load by capacity; with shared cores or replicas, the part of them that each stage takes."""
    shed: Share
    """Share turned away."""


class PlanSources(_Part):
    """What a plan was made from; None for what came from no file."""

    table: Text | None = None
    """Digest of the outcome table."""
    rows: Annotated[int, Field(ge=1)]
    """Its rows."""
    calibration: Text | None = None
    """Digest of the calibration."""
    service: Text | None = None
    """Digest of the service profile."""
    certificate: Text | None = None
    """Digest of the certificate."""


class Plan(_File):
    """plan.json: prices by arrival rate."""

    format_version: Literal[1]
    """Version of this file format."""
    created_by: Text
    """Program and version that wrote the file."""
    ladder: Text
    """Name of the ladder."""
    made_from: PlanSources
    """Its sources."""
    rho: Positive
    """Part of the capacity that prices are made for."""
    shared_cores: Positive | None
    """Cores that all stages share, None where every replica has its own."""
    deadline_s: Positive
    """The usual deadline."""
    cost_unit: Text
    """What costs count."""
    unloaded_accuracy: Share
    """Accuracy when nothing is scarce."""
    stages: Annotated[tuple[PlanStage, ...], Field(min_length=1)]
    """The stages, cheapest first."""
    points: Annotated[tuple[PlanPoint, ...], Field(min_length=1)]
    """By rising rate."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rates = [point.rate for point in self.points]
        if any(rate >= following for rate, following in pairwise(rates)):
            raise ValueError("points: rates must rise")
        for index, point in enumerate(self.points):
            for field in ("prices", "exit_shares", "utilisation"):
                if len(getattr(point, field)) != len(self.stages):
                    raise ValueError(f"points.{index}.{field}: expected one for each of {len(self.stages)} stages")
        return self

    def at(self, rate: float) -> PlanPoint:
        """The point to serve at: that of the next higher rate of the grid; beyond the last one, the last.

        Rounded up, because what is learned about an arrival rate is late: while load rises, prices for a little more than
        was measured keep queues short. Capacity is not left idle by it, as prices are made for ``rho`` times the capacity
        and neighbouring rates are less than that apart.
        """
        index = bisect_left(self.points, rate, key=lambda point: point.rate)
        return self.points[min(index, len(self.points) - 1)]


def rate_grid(judged: JudgedTable, deployment: Deployment, asked: float | None = None) -> list[float]:
    """Rates of a plan, rising by `GRID_STEP`, and the rate asked for.

    Raises:
        ConfigError: the rate asked for is not above 0.
    """
    if asked is not None and not 0 < asked < inf:
        raise ConfigError(f"rate: expected a number above 0, got {asked:g}")
    use, limit = deployment.capacity.rows()
    visits = judged.walk(unloaded_prices(judged, deployment.base_prices)).visits
    binds = 1.0 / float((use @ visits / limit).max())
    saturates = 1.0 / float((use[:, 0] / limit).max())
    lowest, highest = LEAST_SHARE * binds, MOST_SHARE * saturates
    steps = int(np.ceil(np.log(highest / lowest) / np.log(GRID_STEP)))
    rates = {float(f"{rate:.4g}") for rate in np.geomspace(lowest, highest, steps + 1)}
    return sorted(rates | ({asked} if asked is not None else set()))


def make_plan(
    judged: JudgedTable,
    deployment: Deployment,
    *,
    ladder: str,
    sources: PlanSources,
    rate: float | None = None,
    rho: float = RHO,
    certificate: Certifying | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Prices and what comes of them, by arrival rate.

    Prices are those at which rows ask for ``rho`` times the capacity (`clear`). Predicted is what comes of the table's rows
    when just the capacity, or ``rho`` times it if that is less, is used.

    Args:
        judged: rows like those that will come. If the calibration was fitted on them, accuracies are a little too high.
        deployment: the machines.
        ladder: its name.
        sources: what the table and the deployment come from.
        rate: a rate that must be in the plan.
        rho: see `RHO`.
        certificate: bounds the loss at each point's prices.
        progress: told about rates done, of how many.

    Raises:
        ConfigError: stages of the table and the deployment differ, or rate or rho is not above 0.
    """
    names = tuple(stage.name for stage in deployment.stages)
    if names != judged.stages:
        raise ConfigError(f"the table has the stages {', '.join(judged.stages)}, the deployment {', '.join(names)}")
    if not rho > 0:
        raise ConfigError(f"rho: expected a number above 0, got {rho:g}")
    judged = by_column(judged)
    base = unloaded_prices(judged, deployment.base_prices)
    unloaded = judged.walk(base)
    capacity = deployment.capacity
    rates = rate_grid(judged, deployment, rate)
    fluid = Fluid(judged)
    near_priced: Cleared | None = None
    near_used: Cleared | None = None
    priced: list[OperatingPoint] = []
    used: list[OperatingPoint] = []
    for index, each in enumerate(rates):
        near_priced = clear(judged, capacity.times(rho), each, base, near_priced)
        near_used = near_priced if rho <= 1 else clear(judged, capacity, each, base, near_used)
        priced.append(near_priced.point)
        used.append(near_used.point)
        fluid.add(gear for gear, _ in near_used.point.mix)
        if progress is not None:
            progress(index + 1, len(rates) + 1)
    limits = fluid.frontier(rates, capacity)
    points = []
    for price_point, point, limit in zip(priced, used, limits, strict=True):
        prices = tuple(_rounded(price) for price in price_point.prices)
        points.append(
            PlanPoint(
                rate=point.rate,
                prices=prices,
                exit_shares=tuple(_share(share) for share in point.exit_shares),
                accuracy=_share(point.accuracy),
                limit=_share(float(limit)),
                floor=_share(floor(judged, point.rate, capacity)),
                degraded=_share(point.exits_before(unloaded.exits)),
                certified_loss=None if certificate is None else float(certificate.bound_at(prices)),
                p99_s=_rounded(deployment.latency(point)),
                cost=_rounded(float(point.visits @ judged.cost)),
                utilisation=tuple(_rounded(part) for part in deployment.utilisation(point)),
                shed=_share(point.shed),
            )
        )
    if progress is not None:
        progress(1, 1)
    return Plan(
        format_version=1,
        created_by=f"cascade {cascade.__version__}",
        ladder=ladder,
        made_from=sources,
        rho=rho,
        shared_cores=deployment.shared_cores,
        deadline_s=deployment.deadline_s,
        cost_unit=judged.cost_unit,
        unloaded_accuracy=unloaded.accuracy,
        stages=tuple(
            PlanStage(
                name=stage.name,
                replicas=stage.replicas,
                rows_per_s=stage.rows_per_s,
                base_price=price,
                owner=None if stage.owner is None else deployment.stages[stage.owner].name,
            )
            for stage, price in zip(deployment.stages, map(float, base), strict=True)
        ),
        points=tuple(points),
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, round(float(value), 6)))


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")
