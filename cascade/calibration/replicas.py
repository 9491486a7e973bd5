"""How many replicas of each stage: the cheapest that reach an accuracy, or the best for a budget, within a latency.

A mixed-integer program chooses, closed forms for latency check and correct it. Knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from cascade.calibration.clearing import clear
from cascade.calibration.deployment import Deployment
from cascade.calibration.fluid import Fluid, OperatingPoint, by_column, gear, unloaded_prices
from cascade.calibration.judged import Floats, JudgedTable
from cascade.errors import ConfigError

HEADROOM = 0.9
"""Part of the capacity that must be enough for the rate and the accuracy that replicas are chosen for."""
MOST_REPLICAS = 1024
"""Of a stage; what a spec allows."""
LEAST_VISITS = 0.01
"""Stages that fewer rows than this visit have no part in the 99th percentile."""
CPU_WEIGHT = 1e-3
"""What a replica without a GPU counts where others have one: enough to prefer fewer of them."""


@dataclass(frozen=True, eq=False)
class Suggestion:
    """Numbers of replicas and what they are predicted to do."""

    deployment: Deployment
    """The deployment with these replicas."""
    point: OperatingPoint
    """What it does at the rate asked for."""
    assured: float
    """Accuracy at that rate if only `HEADROOM` of the capacity is there; it is the one that must reach a target."""
    p99_s: float
    """Estimate of the 99th percentile of latency."""
    gpus: float
    """GPUs in use."""
    shortfall: str | None
    """Why it does not do what was asked for, or None if it does."""

    @property
    def replicas(self) -> dict[str, int]:
        """Number of replicas by stage."""
        return {stage.name: stage.replicas for stage in self.deployment.stages}


def budget_units(deployment: Deployment) -> Floats:
    """[S] what a replica of each stage takes of a budget: its GPUs, or 1 where no stage has any; 0 where it is fixed."""
    free = [not stage.fixed for stage in deployment.stages]
    gpus = np.array([stage.num_gpus for stage in deployment.stages]) * free
    return gpus if gpus.any() else np.array(free, np.float64)


def _weights(deployment: Deployment) -> Floats:
    """What is minimised: the units, and a little for replicas that need no GPU."""
    units = budget_units(deployment)
    return np.where(units > 0, units, [0.0 if stage.fixed else CPU_WEIGHT for stage in deployment.stages])


def cheapest(judged: JudgedTable, deployment: Deployment, rate: float, accuracy: float, slo_s: float) -> Suggestion:
    """The cheapest replicas that reach an accuracy at a rate with the 99th percentile of latency within ``slo_s``.

        min sum_k w_k n_k   s.t.   sum_g q_g a_g >= accuracy,  sum_g q_g = 1,
                                   rate sum_g q_g f_gk <= HEADROOM n_k c_k,  n_k >= 1 integer,  q >= 0

    over gears at the base prices and above. Then what the policy makes of it is computed, a replica is added where it helps
    most until accuracy and latency are reached, and taken away where it is not missed.

    Raises:
        ConfigError: rate, accuracy or SLO is out of range.
    """
    _check(rate, slo_s)
    if not 0 < accuracy <= 1:
        raise ConfigError(f"target accuracy: expected a share above 0 and at most 1, got {accuracy:g}")
    judged = by_column(judged)
    unloaded = judged.walk(unloaded_prices(judged, deployment.base_prices))
    if accuracy > unloaded.accuracy + 1e-9:
        return _measured(
            judged,
            deployment,
            rate,
            f"with nothing loaded the accuracy is {unloaded.accuracy:.2%}, so no number of replicas reaches "
            f"{accuracy:.2%}: ask for less, or lower the base prices",
        )
    start = _program(judged, deployment, rate, accuracy=accuracy)
    if start is None:
        most = _measured(judged, deployment.with_replicas([MOST_REPLICAS] * len(deployment.stages)), rate, None)
        held_by = "the shared cores" if deployment.shared_cores is not None else "stages with a fixed number of replicas"
        return _measured(judged, deployment, rate, f"{held_by} hold the accuracy to {most.assured:.2%} whatever is added")
    found = _measured(judged, deployment.with_replicas(start), rate, None)
    while found.assured < accuracy - 1e-9:
        k = int(np.where([stage.fixed for stage in deployment.stages], -inf, _demand(judged, found)).argmax())
        if not (more := _one_more(found.deployment, k)):
            return replace(found, shortfall=f"reaches only an accuracy of {found.assured:.2%}")
        found = _measured(judged, more, rate, None)
    found = _faster(judged, found, rate, slo_s, budget=inf)
    if found.shortfall is not None:
        return found

    def enough(other: Suggestion) -> bool:
        return other.assured >= accuracy - 1e-9 and other.p99_s <= slo_s

    for k in np.argsort(-_weights(deployment), kind="stable"):
        found = _trimmed(judged, found, rate, int(k), enough)
    return found


def best_within(judged: JudgedTable, deployment: Deployment, rate: float, budget: float, slo_s: float) -> Suggestion:
    """The replicas within a budget, in units of `budget_units`, that give the best accuracy at a rate; see `cheapest`.

        max sum_g q_g a_g   s.t.   sum_k u_k n_k <= budget   and the rest as there, except that requests may be shed

    What the budget leaves over goes where it shortens latency most, until it is within ``slo_s``.

    Raises:
        ConfigError: rate, budget or SLO is out of range; the budget must allow for one replica of each stage.
    """
    _check(rate, slo_s)
    least = float(budget_units(deployment).sum())
    if budget < least:
        raise ConfigError(f"a budget of {budget:g} is below {least:g}, which one replica of each stage takes")
    judged = by_column(judged)
    start = _program(judged, deployment, rate, budget=budget)
    assert start is not None  # one replica of each stage and everything shed is always possible
    return _faster(judged, _measured(judged, deployment.with_replicas(start), rate, None), rate, slo_s, budget)


def _check(rate: float, slo_s: float) -> None:
    for name, value in (("rate", rate), ("SLO", slo_s)):
        if not 0 < value < inf:
            raise ConfigError(f"{name}: expected a number above 0, got {value:g}")


def _program(
    judged: JudgedTable, deployment: Deployment, rate: float, accuracy: float | None = None, budget: float | None = None
) -> list[int] | None:
    base = unloaded_prices(judged, deployment.base_prices)
    gears = [gear(judged, base), *(known for known in Fluid(judged).gears if (known.prices[1:] >= base[1:]).all())]
    right = np.array([used.accuracy for used in gears])
    visits = np.array([used.visits for used in gears])
    one = deployment.with_replicas([1] * len(deployment.stages))
    of_owner = np.array([[float(k in group) for k in range(len(deployment.stages))] for group in deployment.groups])
    owners = [group[0] for group in deployment.groups]
    stages, count = len(deployment.stages), len(gears)
    weight = _weights(deployment)
    each = HEADROOM * one.capacity.rows_per_s
    # A fixed stage counts with the replicas it has.
    lowest = np.array([1.0] * stages)
    highest = np.array([1.0 if stage.fixed else float(MOST_REPLICAS) for stage in deployment.stages])
    rows = [LinearConstraint(np.hstack([of_owner @ (rate * visits / each).T, -np.eye(stages)[owners]]), ub=0.0)]
    whole = np.append(np.ones(count), np.zeros(stages))
    if one.capacity.work_s is not None:
        work = rate * (visits @ one.capacity.work_s) / (HEADROOM * one.capacity.pool)
        rows.append(LinearConstraint(np.append(work, np.zeros(stages)), ub=1.0))
    if budget is None:
        rows += [LinearConstraint(whole, 1.0, 1.0), LinearConstraint(np.append(right, np.zeros(stages)), lb=accuracy or 0.0)]
        objective = np.append(np.zeros(count), weight)
    else:
        rows += [
            LinearConstraint(whole, ub=1.0),
            LinearConstraint(np.append(np.zeros(count), budget_units(deployment)), ub=budget),
        ]
        objective = np.append(-right, 1e-6 * weight)
    found = milp(
        objective,
        constraints=rows,
        integrality=np.append(np.zeros(count), np.ones(stages)),
        bounds=Bounds(np.append(np.zeros(count), lowest), np.append(np.ones(count), highest)),
    )
    return None if found.x is None else [round(value) for value in found.x[count:]]


def _measured(judged: JudgedTable, deployment: Deployment, rate: float, shortfall: str | None) -> Suggestion:
    assured = clear(judged, deployment.capacity.times(HEADROOM), rate, deployment.base_prices).point.accuracy
    point = clear(judged, deployment.capacity, rate, deployment.base_prices).point
    gpus = sum(stage.replicas * stage.num_gpus for stage in deployment.stages if not stage.fixed)
    return Suggestion(deployment, point, assured, deployment.latency(point), gpus, shortfall)


def _counts(deployment: Deployment) -> list[int]:
    return [stage.replicas for stage in deployment.stages]


def _one_more(deployment: Deployment, k: int) -> Deployment | None:
    if deployment.stages[k].fixed or deployment.stages[k].replicas >= MOST_REPLICAS:
        return None
    counts = _counts(deployment)
    counts[k] += 1
    return deployment.with_replicas(counts)


def _demand(judged: JudgedTable, found: Suggestion) -> Floats:
    """Load of each stage by its capacity if visits cost no more than their base prices; of stages on the same replicas, all
    of it with the one that owns them.
    """
    visits = judged.walk(unloaded_prices(judged, found.deployment.base_prices)).visits
    loads = np.asarray(found.point.rate * visits / found.deployment.capacity.rows_per_s)
    demand = np.zeros(len(loads))
    for group in found.deployment.groups:
        demand[group[0]] = loads[list(group)].sum()
    return demand


def _faster(judged: JudgedTable, found: Suggestion, rate: float, slo_s: float, budget: float) -> Suggestion:
    """Add replicas until the 99th percentile is within ``slo_s``: to what is saturated, then where it helps most."""
    weight, units = _weights(found.deployment), budget_units(found.deployment)
    # However many replicas there are: what then remains is a row's own time, or cores that all of them share.
    most = _measured(judged, found.deployment.with_replicas([MOST_REPLICAS] * len(weight)), rate, None)
    if found.p99_s > slo_s and most.p99_s > slo_s:
        return replace(found, shortfall=_too_slow(found, most, slo_s))
    while found.p99_s > slo_s:
        demand = _demand(judged, found)
        left = budget - float(units @ _counts(found.deployment))
        more = {k: _one_more(found.deployment, k) for k in range(len(weight)) if units[k] <= left}
        options = {k: deployment for k, deployment in more.items() if deployment is not None}
        if not options:
            full = [stage.name for stage, load in zip(found.deployment.stages, demand, strict=True) if load > 1]
            why = f"; what queues before {', '.join(full)} is bounded by the deadline alone" if full else ""
            said = f"the 99th percentile stays at about {found.p99_s * 1e3:.3g} ms with the budget spent{why}"
            return replace(found, shortfall=said)
        k = max(options, key=lambda k: demand[k])
        if demand[k] <= 1:
            k = min(options, key=lambda k: (options[k].latency(found.point) - found.p99_s) / weight[k])
        found = _measured(judged, options[k], rate, None)
    return found


def _too_slow(found: Suggestion, most: Suggestion, slo_s: float) -> str:
    stages, visits = most.deployment.stages, most.point.visits
    visited = [stage for stage, share in zip(stages, visits, strict=True) if share > LEAST_VISITS]
    least_s = min(found.p99_s, most.p99_s)
    said = f"the 99th percentile stays at about {least_s * 1e3:.3g} ms or above, more than {slo_s * 1e3:.3g} ms: "
    alone = sum(stage.batch_s(1) for stage in visited)
    slowest = max(visited, key=lambda stage: stage.batch_s(1))
    if alone <= slo_s and most.deployment.shared_cores is not None:
        return said + "the shared cores cannot keep up, and queues fill to what the deadline allows"
    return said + (
        f"one row alone takes {slowest.batch_s(1) * 1e3:.3g} ms on stage {slowest.name!r} and {alone * 1e3:.3g} ms on all "
        "stages that it may pass, without any wait"
    )


def _trimmed(
    judged: JudgedTable, found: Suggestion, rate: float, k: int, enough: Callable[[Suggestion], bool]
) -> Suggestion:
    """The same with as few replicas of stage ``k`` as will do."""
    counts: Sequence[int] = _counts(found.deployment)
    while not found.deployment.stages[k].fixed and counts[k] > 1:
        fewer = [count - (index == k) for index, count in enumerate(counts)]
        less = _measured(judged, found.deployment.with_replicas(fewer), rate, None)
        if not enough(less):
            break
        found, counts = less, fewer
    return found
