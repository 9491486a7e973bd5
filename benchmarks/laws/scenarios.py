"""What happens to the ladder: loads, slow-downs, outages, drift, wrong profiles. Knows no law.

Loads are multiples of the top stage's capacity. Each scenario's requests fall into cells in which everything is constant
(a phase of the arrivals, the pace of each stage, the difficulty), and the fluid optimum is taken cell by cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from benchmarks.laws.synthetic import Floats
from cascade.policy.policy import StageConfig
from cascade.simulation.cluster import Slowdown, StageServers
from cascade.simulation.workload import Arrivals, Burst, Gamma, PoissonPath, Workload, level

DEADLINE_S = 0.4
ANSWER_MARGIN_S = 0.01
"""An answer leaves this long before its deadline, for what the wire takes."""
HOP_S = 0.001
"""To a replica and back together."""
WARM_UP_S = 2.0
"""Requests of this beginning are not counted: the run begins empty."""
COOL_DOWN_S = 0.5
"""Nor those of the end, behind which nobody competes."""
SECONDS = 20.0
SERVICE_CV = 0.1
BATCH = (32, 16, 8)
SERVERS = (
    StageServers(0.003, 0.0005, hop_s=HOP_S / 2),
    StageServers(0.006, 0.003, hop_s=HOP_S / 2),
    StageServers(0.015, 0.0125, hop_s=HOP_S / 2),
)
CAPACITY: Floats = np.array([b / (s.a_s + s.b_s * b + HOP_S) for s, b in zip(SERVERS, BATCH, strict=True)])
"""[3] rows/s at full batches, from call to return: a replica runs one batch at a time."""
TOP = float(CAPACITY[-1])


@dataclass(frozen=True)
class Scenario:
    """One test.

    Attributes:
        name: short.
        workload: when requests come.
        seconds: how long.
        slowdowns: what goes wrong with the stages.
        profile: factor on the service times that the router is told, for each stage.
        drift: standard deviations by which inputs are harder in the second half.
        unsolvable: share of inputs that no stage solves.
    """

    name: str
    workload: Workload
    seconds: float = SECONDS
    slowdowns: tuple[Slowdown, ...] = ()
    profile: tuple[float, float, float] = (1.0, 1.0, 1.0)
    drift: float = 0.0
    unsolvable: float = 0.0

    def stages(self, costs: Sequence[float], stages: Sequence[StageServers] = SERVERS) -> tuple[StageConfig, ...]:
        """What the router is told."""
        return tuple(
            StageConfig(servers.slots, batch, cost, 0.0, servers.a_s * factor, servers.b_s * factor)
            for servers, batch, cost, factor in zip(stages, BATCH, costs, self.profile, strict=True)
        )

    def shifted(self, instants: Floats) -> NDArray[np.bool_]:
        """Whether the inputs that come at these instants are the harder ones."""
        return (instants >= self.seconds / 2) if self.drift else np.zeros(len(instants), dtype=np.bool_)

    def cells(self, arrivals: Arrivals) -> tuple[NDArray[np.intp], list["Cell"]]:
        """Constant parts of one run: the cell of each request, and the cells.

        The rate is the run's own, so that its luck with the number of requests is in the optimum as in the laws.
        """
        breaks = {s.from_s for s in self.slowdowns} | {s.to_s for s in self.slowdowns}
        breaks |= {self.seconds / 2} if self.drift else set()
        edges = np.unique(np.concatenate([arrivals.edges, [b for b in breaks if b < arrivals.seconds]]))
        middles = (edges[:-1] + edges[1:]) / 2
        stretch = np.minimum(np.searchsorted(edges, arrivals.instants, side="right") - 1, len(middles) - 1)
        phase = arrivals.labels[np.searchsorted(arrivals.edges, middles, side="right") - 1]
        pace = np.ones((len(middles), len(SERVERS)))
        for s in self.slowdowns:
            pace[(middles >= s.from_s) & (middles < s.to_s), s.stage] *= s.factor
        keys = np.column_stack([phase, pace, self.shifted(middles)])
        kinds, cell = np.unique(keys, axis=0, return_inverse=True)
        lengths = np.bincount(cell, weights=np.diff(edges))
        requests = np.bincount(cell[stretch], minlength=len(kinds))
        return cell[stretch], [
            Cell(float(n / t), CAPACITY / kind[1:-1], self.drift if kind[-1] else 0.0)
            for kind, n, t in zip(kinds, requests, lengths, strict=True)
        ]


@dataclass(frozen=True)
class Cell:
    """A part of a run in which everything is constant.

    Attributes:
        rate: requests/s.
        capacity: [3] rows/s.
        shift: how much harder its inputs are.
    """

    rate: float
    capacity: Floats
    shift: float


def steady(load: float) -> PoissonPath:
    """Poisson arrivals at one load."""
    return PoissonPath((level("steady", load * TOP),))


def step(low: float, high: float, seconds: float = SECONDS) -> PoissonPath:
    """A third of the time each: low, high, low."""
    each = seconds / 3
    before, after = low * TOP, high * TOP
    return PoissonPath((level("before", before, each), level("high", after, each), level("after", before, each)))


def ramp(low: float, high: float, seconds: float = SECONDS, pieces: int = 10) -> PoissonPath:
    """A rising load, in pieces that are level, so that each has an optimum."""
    loads = low + (high - low) * (np.arange(pieces) + 0.5) / pieces
    return PoissonPath(tuple(level(f"ramp {load:.3g}", load * TOP, seconds / pieces) for load in loads.tolist()))


def _slow(stage: int, factor: float) -> tuple[Slowdown, ...]:
    return (Slowdown(stage, SECONDS / 4, SECONDS * 3 / 4, factor),)


LOADS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0)
SCENARIOS = (
    *(Scenario(f"x{load:g}", steady(load)) for load in LOADS),
    Scenario("step", step(0.5, 8.0)),
    Scenario("step20", step(1.0, 20.0)),
    Scenario("burst", Burst((TOP, 10 * TOP), (2.0, 2.0))),
    Scenario("ramp", ramp(0.5, 12.0)),
    Scenario("gamma8", Gamma(4 * TOP, 8.0)),
    Scenario("drift", steady(4.0), drift=0.7),
    Scenario("slow2", steady(4.0), slowdowns=_slow(2, 3.0)),
    Scenario("slow1", steady(4.0), slowdowns=_slow(1, 3.0)),
    Scenario("down2", steady(2.0), slowdowns=_slow(2, inf)),
    Scenario("bias", steady(6.0), profile=(0.7, 0.65, 0.6)),
    Scenario("bias+", steady(6.0), profile=(1.4, 1.5, 1.6)),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
UNSOLVABLE = tuple(
    Scenario(f"x{load:g} {share:.0%}", steady(load), unsolvable=share)
    for share in (0.1, 0.2)
    for load in (2.0, 4.0, 10.0, 20.0)
)
"""For the comparison of orders."""
