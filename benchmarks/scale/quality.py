"""What several routers lose against one with one global queue: right and timely answers, by replicas, routers and load.

The same requests come to every arrangement, so that the difference is taken row by row. Simulated: each router has its own
policy and queues, and knows nothing of the others; a replica puts together the calls that wait for it.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.laws.scenarios import ANSWER_MARGIN_S, DEADLINE_S
from benchmarks.scale.settings import COMPARED, LOADS, REPLICAS, ROUTERS, TOP_RATE, Calls, arrangement, table
from cascade.policy.policy import Policy
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster
from cascade.simulation.fleet import Fleet
from cascade.simulation.outcome import served_right
from cascade.simulation.simulator import draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams

WARM_UP_S, COOL_DOWN_S = DEADLINE_S, DEADLINE_S
"""The run begins and ends empty: so much at both ends is not counted."""
LEAST_S = DEADLINE_S / 2
"""Of the part that is counted, at least."""


ROWS, SEEDS = 20_000, 2
"""Of each setting: rows that are counted in a run, at least, and runs."""
MANY = 64
"""Of more replicas than this one run is enough: it counts a hundred thousand rows and more."""
ROUTERS_OF_MOST = (1, 4, 16, 64)
"""Before the most replicas: half a million rows are simulated for each."""


class Run(NamedTuple):
    """One simulated run.

    Attributes:
        replicas: of every stage.
        routers: routers.
        load: multiple of what the top stage can do.
        rows: rows that are counted, at least.
        seed: of everything.
        compared: replicas that are compared for a call.
        calls: how the routers share the replicas.
    """

    replicas: int
    routers: int
    load: float
    rows: int
    seed: int
    compared: int = COMPARED
    calls: Calls = "server"


class Loss(NamedTuple):
    """What came of a run beside that of one router.

    Attributes:
        right: percent of the requests answered right and on time.
        lost: points fewer than with one router.
        error: standard error of that, from the differences row by row.
        top_rows: rows in a pass of the top stage.
        calls_per_row: calls of all stages for each request.
        p99_ms: 99th percentile of latency.
    """

    right: float
    lost: float
    error: float
    top_rows: float
    calls_per_row: float
    p99_ms: float


class _Played(NamedTuple):
    served: NDArray[np.bool_]
    top_rows: float
    calls_per_row: float
    p99_ms: float


def planned_runs() -> list[list[Run]]:
    """The runs that are simulated: in each list those of the same requests, all of one number of replicas, load and seed."""
    groups = []
    for replicas in REPLICAS:
        few = replicas <= MANY
        for load in LOADS if few else LOADS[1:]:
            for seed in range(SEEDS if few else 1):
                counts = ROUTERS if replicas < REPLICAS[-1] else ROUTERS_OF_MOST
                runs = [Run(replicas, routers, load, ROWS, seed) for routers in counts]
                if few and load == LOADS[-1]:
                    others = [run for run in runs if run.routers in ROUTERS_OF_MOST[1:]]
                    runs += [run._replace(calls=calls) for run in others for calls in ("each", "large")]
                    runs += [
                        run._replace(compared=1, calls=calls) for run in others for calls in ("server", "each", "large")
                    ]
                groups.append(runs)
    return groups


def compare_all(runs: list[Run]) -> list[Loss]:
    """Compare runs of the same requests, in one process."""
    return [compare(run) for run in runs]


def compare(run: Run) -> Loss:
    """Play a run, and the same requests with one router."""
    alone, several = _play(run._replace(routers=1, compared=COMPARED, calls="server")), _play(run)
    worse = 100.0 * (alone.served.astype(np.float64) - several.served)
    return Loss(
        100.0 * float(several.served.mean()),
        float(worse.mean()),
        float(worse.std() / np.sqrt(len(worse))),
        *several[1:],
    )


@lru_cache(maxsize=2)  # the run with one router, which those of the same requests are compared with
def _play(run: Run) -> _Played:
    """Which of the requests that are counted were answered right and on time, and how."""
    configs, servers = arrangement(run.replicas, run.routers, run.calls)
    rate = run.load * TOP_RATE * run.replicas
    seconds = WARM_UP_S + max(LEAST_S, run.rows / rate) + COOL_DOWN_S
    arrival_seed, row_seed, service_seed = run_streams(run.seed)
    arrivals = draw(parse_workload(f"poisson:{rate:.9g}"), seconds, arrival_seed)
    policies = [Policy(configs, usual_deadline_s=DEADLINE_S, seed=k) for k in range(run.routers)]
    record = simulate(
        Fleet(policies) if run.routers > 1 else policies[0],
        Cluster(servers, seed=service_seed, compared=run.compared),
        table(),
        arrivals,
        draw_rows(table(), len(arrivals.instants), row_seed),
        Clients(DEADLINE_S, ANSWER_MARGIN_S),
    )
    counted = (arrivals.instants >= WARM_UP_S) & (arrivals.instants <= arrivals.seconds - COOL_DOWN_S)
    calls = sum(stage.batches for policy in policies for stage in policy.counts.stages)
    top = record.batch_rows[record.batch_stage == len(servers) - 1]
    answered = counted & record.on_time
    return _Played(
        served_right(record, table())[counted],
        float(top.mean()) if len(top) else 0.0,
        calls / len(arrivals.instants),
        1e3 * float(np.quantile((record.done_s - arrivals.instants)[answered], 0.99)),
    )
