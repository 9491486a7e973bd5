"""Small clusters, and one call that runs them, for the tests of the simulator."""

from collections.abc import Sequence

import numpy as np

from cascade.calibration.judged import JudgedTable
from cascade.policy.policy import Policy, StageConfig
from cascade.simulation.cluster import Cluster, Noise, Slowdown, StageServers
from cascade.simulation.record import Record
from cascade.simulation.simulator import Clients, Planner, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from tests.calibration.judged_cases import difficulty_ladder

THREE = (
    StageServers(0.001, 0.0005, hop_s=0.0005),
    StageServers(0.003, 0.002, 1, 2, 0.0005),
    StageServers(0.008, 0.008, 1, 2, 0.0005),
)
BATCH = (32, 16, 8)
"""Rows/s at full batches: 1,882, 457 and 111."""


def configs(
    servers: Sequence[StageServers], batch: Sequence[int], table: JudgedTable, base_price: float = 0.001
) -> list[StageConfig]:
    """What the policy is told: the truth."""
    return [
        StageConfig(server.slots, rows, cost, base_price, server.a_s, server.b_s)
        for server, rows, cost in zip(servers, batch, table.cost.tolist(), strict=True)
    ]


def run(
    workload: str,
    *,
    seconds: float | None = None,
    servers: Sequence[StageServers] = THREE,
    batch: Sequence[int] = BATCH,
    table: JudgedTable | None = None,
    slowdowns: Sequence[Slowdown] = (),
    deadline_s: float = 0.4,
    cv: float = 0.1,
    noise: Noise = "lognormal",
    planner: Planner | None = None,
    poisoned: float = 0.0,
    seed: int = 0,
) -> tuple[Record, Policy]:
    """Simulate, and return what happened and the policy it happened to; of the requests a share is ``poisoned``."""
    table = difficulty_ladder() if table is None else table
    arrival_seed, row_seed, service_seed = run_streams(seed)
    arrivals = draw(parse_workload(workload), seconds, arrival_seed)
    policy = Policy(configs(servers, batch, table), usual_deadline_s=deadline_s)
    cluster = Cluster(servers, slowdowns=slowdowns, cv=cv, noise=noise, seed=service_seed)
    rows = draw_rows(table, len(arrivals.instants), row_seed)
    poison = np.random.default_rng(seed).random(len(rows)) < poisoned if poisoned else None
    record = simulate(policy, cluster, table, arrivals, rows, Clients(deadline_s), poison=poison, planner=planner)
    return record, policy


def one_stage() -> JudgedTable:
    """A ladder of one stage."""
    return difficulty_ladder(64, errors=(0.5,), cost=(1.0,))


def mean_latency(record: Record) -> float:
    """Mean seconds from arrival to answer, without the first tenth of the requests."""
    return float(np.mean((record.done_s - record.arrivals.instants)[len(record.row) // 10 :]))
