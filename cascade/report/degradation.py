"""How accuracy gives way to load: the limit A*(rate), the floor, and the policy simulated at multiples of the capacity.

The policy and the machines are given; this runs them over the rows of a judged table and draws what came of it. Knows no
spec and no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray

from cascade.calibration.fluid import Capacity, Fluid, floor, unloaded_prices
from cascade.calibration.judged import Floats, JudgedTable
from cascade.errors import ConfigError
from cascade.report.style import CASCADE, LIMIT, OTHER, WARNING, pyplot
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster
from cascade.simulation.outcome import LEAST_SPAN, served_right, summarise
from cascade.simulation.simulator import Driven, simulate
from cascade.simulation.workload import PoissonPath, Segment, draw, run_streams

REQUESTS = 30_000
"""Requests measured at each load if no time is given."""
PARTS = 5
"""Parts of the measured requests whose spread gives the standard error."""
LEAD, TAIL = 0.5, 1.0
"""Deadlines for which the same load lasts before and after what is measured: queues are full when it begins, and rows that
still wait when it ends go on competing."""
CURVE_POINTS = 60
"""Rates of the curves."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Rig:
    """What is simulated.

    Attributes:
        policy: makes the policy, fresh, from a seed.
        cluster: makes the machines, fresh, from a seed.
        clients: what requests ask for.
    """

    policy: Callable[[int], Driven]
    cluster: Callable[[SeedSequence], Cluster]
    clients: Clients


@dataclass(frozen=True)
class Load:
    """One simulated load. Shares are of the requests offered.

    Attributes:
        multiple: of the rate at which degradation begins.
        rate: requests a second.
        requests: how many were measured.
        best: A* at this rate.
        floor: everything from stage 0 and the rest turned away.
        accuracy: right answers in time.
        accuracy_se: its standard error, from the spread over `PARTS` parts of the run.
        efficiency: E = (accuracy - floor) / (best - floor); None where there is nothing to win.
        efficiency_se: its standard error.
        slo_attainment: answers in time.
        degraded: answered where the unloaded rule would have gone on, of the answered.
        shed: turned away.
        p50_s: median seconds to an answer.
        p99_s: 99th percentile.
        exits: by stage, share of the answered.
    """

    multiple: float
    rate: float
    requests: int
    best: float
    floor: float
    accuracy: float
    accuracy_se: float
    efficiency: float | None
    efficiency_se: float | None
    slo_attainment: float
    degraded: float | None
    shed: float
    p50_s: float | None
    p99_s: float | None
    exits: dict[str, float]


@dataclass(frozen=True, eq=False)
class Degradation:
    """Limits by rate, and simulated loads.

    Attributes:
        stage: the stage that is full first.
        full_at: rate at which it is: where degradation begins.
        deadline_s: of every request.
        rows: rows of the table.
        rates: [R] rates of the curves.
        best: [R] A*.
        floors: [R] floor.
        loads: simulated, by rising rate.
    """

    stage: str
    full_at: float
    deadline_s: float
    rows: int
    rates: Floats
    best: Floats
    floors: Floats
    loads: tuple[Load, ...]

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "full_first": self.stage,
            "full_at": self.full_at,
            "deadline_s": self.deadline_s,
            "curve": {"rate": self.rates.tolist(), "best": self.best.tolist(), "floor": self.floors.tolist()},
            "loads": [asdict(load) for load in self.loads],
        }


def first_full(judged: JudgedTable, capacity: Capacity, base_prices: Sequence[float] | Floats) -> tuple[int, float]:
    """The stage that is full first as load rises with rows walking at the base prices, and the rate at which it is.

    Of stages on the same replicas, which are full together, it is the first.

    Args:
        judged: rows like those that will come.
        capacity: rows a second of each stage.
        base_prices: [S] price of a visit when nothing is scarce.
    """
    visits = judged.walk(unloaded_prices(judged, base_prices)).visits
    use, limit = capacity.rows()
    load = use @ visits / limit
    scarce = int(load.argmax())
    return int(np.flatnonzero(use[scarce])[0]), 1.0 / float(load[scarce])


def shuffled_rows(rows: int, count: int, seed: SeedSequence) -> NDArray[np.intp]:
    """Every row once in random order, then again in another, [count]: which rows come is then hardly left to chance.

    A limit that was computed on a table and a simulation that draws from it differ by the luck of the draw, which is larger
    than what control may gain or lose; here nearly all of it is gone.
    """
    random = default_rng(seed)
    passes = [random.permutation(rows) for _ in range(-(-count // rows))]
    return np.concatenate([np.zeros(0, dtype=np.intp), *passes])[:count].astype(np.intp)


def degrade(
    judged: JudgedTable,
    capacity: Capacity,
    base_prices: Sequence[float] | Floats,
    rig: Rig,
    multiples: Sequence[float],
    *,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Degradation:
    """Simulate loads at multiples of the rate at which degradation begins, and put the fluid limits beside them.

    Args:
        judged: rows that nothing was fitted on.
        capacity: rows a second of each stage at full batches.
        base_prices: [S] price of a visit when nothing is scarce.
        rig: the policy and the machines.
        multiples: loads, each above 0, in any order.
        seconds: of each load that are measured; default: what `REQUESTS` take.
        seed: of arrivals, rows and service times.
        progress: told the share that is done.

    Raises:
        ConfigError: no loads, one that is not above 0, or too few requests come in the time.
    """
    if not multiples or not all(0 < multiple < np.inf for multiple in multiples):
        raise ConfigError(f"loads: expected one or more numbers above 0, got {list(multiples)}")
    if seconds is not None and not 0 < seconds < np.inf:
        raise ConfigError(f"seconds: expected a number above 0, got {seconds:g}")
    stage, full_at = first_full(judged, capacity, base_prices)
    multiples = sorted(set(multiples))
    wanted = full_at * np.array(multiples)
    curve = np.geomspace(min(0.5 * full_at, wanted[0]), max(full_at, wanted[-1]), CURVE_POINTS)
    rates = np.union1d(curve, wanted)
    best = Fluid(judged).frontier(rates.tolist(), capacity)
    floors = np.array([floor(judged, rate, capacity) for rate in rates])
    measured_s = [REQUESTS / rate if seconds is None else seconds for rate in wanted]
    around_s = (LEAD + TAIL) * rig.clients.deadline_s
    work = np.array([rate * (length + around_s) for rate, length in zip(wanted, measured_s, strict=True)])
    begun = np.concatenate([[0.0], np.cumsum(work)]) / work.sum()
    loads = []
    for index, (multiple, rate) in enumerate(zip(multiples, wanted.tolist(), strict=True)):
        place = int(np.searchsorted(rates, rate))

        def advance(share: float, index: int = index) -> None:
            if progress is not None:
                progress(float(begun[index] + share * (begun[index + 1] - begun[index])))

        limits = (float(best[place]), float(floors[place]))
        loads.append(_load(judged, rig, multiple, rate, limits, measured_s[index], seed, advance))
    return Degradation(judged.stages[stage], full_at, rig.clients.deadline_s, judged.rows, rates, best, floors, tuple(loads))


def _load(
    judged: JudgedTable,
    rig: Rig,
    multiple: float,
    rate: float,
    limits: tuple[float, float],
    seconds: float,
    seed: int,
    progress: Progress,
) -> Load:
    deadline_s = rig.clients.deadline_s
    lengths = (("before", LEAD * deadline_s), ("measured", seconds), ("after", TAIL * deadline_s))
    law = PoissonPath(tuple(Segment(name, length, rate, rate) for name, length in lengths))
    arrival_seed, row_seed, service_seed = run_streams(seed)
    arrivals = draw(law, None, arrival_seed)
    rows = shuffled_rows(judged.rows, len(arrivals.instants), row_seed)
    measured = arrivals.phase == 1
    if measured.sum() < PARTS:
        raise ConfigError(f"only {measured.sum()} requests come in {seconds:g} s at {rate:,.3g} a second: measure longer")
    record = simulate(rig.policy(seed), rig.cluster(service_seed), judged, arrivals, rows, rig.clients, progress=progress)
    report = summarise(record, judged).phases[1]
    right = served_right(record, judged)[measured]
    parts = np.array([part.mean() for part in np.array_split(right, PARTS)])
    accuracy, error = float(right.mean()), float(parts.std(ddof=1) / np.sqrt(PARTS))
    best, lowest = limits
    span = best - lowest
    return Load(
        multiple=multiple,
        rate=rate,
        requests=report.offered,
        best=best,
        floor=lowest,
        accuracy=accuracy,
        accuracy_se=error,
        efficiency=(accuracy - lowest) / span if span >= LEAST_SPAN else None,
        efficiency_se=error / span if span >= LEAST_SPAN else None,
        slo_attainment=report.slo_attainment or 0.0,
        degraded=report.degraded,
        shed=report.shed / report.offered,
        p50_s=report.p50_s,
        p99_s=report.p99_s,
        exits=report.exits,
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def degradation_figure(found: Degradation) -> Any:
    """Draw right answers in time against offered load: the limit, the simulated policy, the floor.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots()
    multiples = found.rates / found.full_at
    axes.axvline(1.0, color=OTHER, lw=1.0, ls=":")
    axes.plot(multiples, 100 * found.best, color=LIMIT, lw=1.6, label="A*, the fluid limit")
    axes.errorbar(
        [load.multiple for load in found.loads],
        [100 * load.accuracy for load in found.loads],
        yerr=[196 * load.accuracy_se for load in found.loads],
        fmt="o-",
        color=CASCADE,
        lw=1.2,
        ms=5.5,
        capsize=3,
        zorder=4,
        label="simulated policy, 95 % interval",
    )
    axes.plot(multiples, 100 * found.floors, color=OTHER, lw=1.6, ls="--", label="floor: everything from the first stage")
    heights = [*found.best, *found.floors, *(load.accuracy for load in found.loads)]
    low, high = 100 * min(heights), 100 * max(heights)
    room = 0.08 * (high - low) + 0.1
    axes.set_ylim(max(0.0, low - room), min(100.0, high + room))
    axes.annotate(
        f"{found.stage} is full",
        (1.0, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, 4),
        textcoords="offset points",
        color="#444444",
        fontsize=9,
    )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"offered load, multiples of {found.full_at:,.4g} requests a second")
    axes.set_ylabel("right and in time, % of offered")
    axes.legend(loc="best", fontsize=9)
    return figure


def latency_figure(found: Degradation) -> Any:
    """Draw latency and the share of requests answered in time against offered load.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
    multiples = [load.multiple for load in found.loads]
    for seconds, colour, label in (
        ([load.p99_s for load in found.loads], CASCADE, "p99"),
        ([load.p50_s for load in found.loads], "#56a083", "median"),
    ):
        heights = [np.nan if value is None else 1e3 * value for value in seconds]
        left.plot(multiples, heights, "o-", color=colour, ms=4.5, lw=1.6, label=label)
    left.axhline(1e3 * found.deadline_s, color=WARNING, lw=1.0, ls=":", label="deadline")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:,g}")
    left.set_ylabel("latency, ms")
    left.legend(fontsize=9)
    in_time = [100 * load.slo_attainment for load in found.loads]
    right.plot(multiples, in_time, "o-", color=CASCADE, ms=4.5, lw=1.6)
    right.set_ylim(min(95.0, min(in_time) - 2.0), 100.4)
    right.set_ylabel("answered in time, % of offered")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_xlabel("offered load, multiples")
    return figure
