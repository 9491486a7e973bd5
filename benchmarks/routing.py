"""What skipping stages is worth: direct routing beside the cascade, unloaded and under load.

    python -m benchmarks.routing frontier [SPEC]                 # a shipped ladder, accuracy at equal mean cost
    python -m benchmarks.routing synthetic [--loads …] [--seeds N]  # the three stages of benchmarks.laws, simulated
    python -m benchmarks.routing ladder [SPEC] [--loads …]       # a shipped ladder, simulated beyond its capacity

Both ways serve the same requests (seeds fix arrivals, rows and service times) with the same policy object, each with prices
of its own market from labelled rows at the measured rate. What counts are right answers on time by requests offered;
differences are taken seed by seed, and their standard error is over the seeds.

On a shipped ladder the cascade is fitted as it ships (earlier answers combined where that is right more often), and once
more with every stage answering for itself, as direct routing needs it: the difference to that one is what skipping is worth.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from benchmarks.laws.scenarios import ANSWER_MARGIN_S, BATCH, CAPACITY, DEADLINE_S, SERVERS, SERVICE_CV, TOP, steady
from benchmarks.laws.synthetic import COST, LABELLED, draw, learned_table
from cascade.assembly import stage_configs
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.fitting import fit
from cascade.calibration.fluid import Capacity
from cascade.calibration.frontier import sweep
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import judge_table, market_of
from cascade.calibration.outcomes import OutcomeTable
from cascade.policy.market import Market
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.routing import Routing
from cascade.report.degradation import first_full, shuffled_rows
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster, StageServers
from cascade.simulation.planner import market_planner
from cascade.simulation.simulator import simulate
from cascade.simulation.workload import draw as draw_arrivals
from cascade.simulation.workload import run_streams
from cascade.spec import Ladder

Floats = NDArray[np.float64]
HOP_S = 0.002
SECONDS = 20.0
WARM_UP_S = 2.0
POOL = 60_000
LOADS = (1.0, 2.0, 4.0, 8.0, 12.0, 20.0, 30.0)
WAYS: tuple[tuple[str, Routing, str], ...] = (
    ("cascade, as shipped", "cascade", "best"),
    ("cascade, each for itself", "cascade", "replace"),
    ("direct", "direct", "replace"),
)


def judged_ways(ladder: Ladder, prices: Sequence[float]) -> dict[str, tuple[JudgedTable, JudgedTable]]:
    """Calibration rows and test rows as each way sees them, everything fitted on the former."""
    folder = ladder.table_path.parent
    calibration, test = OutcomeTable.read(ladder.table_path), OutcomeTable.read(folder / "test-outcomes.npz")
    digests = dict.fromkeys(calibration.stages, "table")
    found = {}
    for name, routing, answers in WAYS:
        fitted = fit(
            calibration,
            digests,
            ladder=ladder.spec.name,
            prices=prices,
            answers=answers,
            routing=routing,  # type: ignore[arg-type]
        )
        found[name] = judge_table(calibration, fitted, routing), judge_table(test, fitted, routing)
    return found


def frontier(ladder: Ladder) -> dict[str, Any]:
    """Accuracy on the test rows at equal mean cost."""
    found = judged_ways(ladder, ladder.spec.base_prices)
    swept = {name: sweep(test, 120) for name, (_, test) in found.items()}
    first = next(iter(swept.values()))
    costs = np.geomspace(2 * first.judged.cost[0] + first.judged.cost[1], 0.8 * first.judged.cost.sum() / 4, 9)
    print(f"accuracy, %, on {first.judged.rows:,} test rows at a mean cost of so many {first.judged.cost_unit}")
    print(f"{'':<28}" + "".join(f"{cost:>9.1e}" for cost in costs) + f"{'best':>8}{'at base prices':>18}{'cost':>9}")
    document: dict[str, Any] = {"costs": costs.tolist()}
    for name, each in swept.items():
        own = each.judged.walk(ladder.spec.base_prices)
        at = each.accuracy_at(costs)
        print(
            f"{name:<28}" + "".join(f"{100 * a:9.2f}" for a in at) + f"{100 * each.most_accurate.accuracy:8.2f}"
            f"{100 * own.accuracy:18.2f}{own.cost:9.2e}"
        )
        document[name] = {"accuracy": at.tolist(), "own": own.accuracy, "own_cost": own.cost}
    return document


def served(
    routing: Routing,
    stages: Sequence[StageConfig],
    servers: Sequence[StageServers],
    market: Market | None,
    table: JudgedTable,
    rate: float,
    seconds: float,
    clients: Clients,
    seed: int,
) -> tuple[float, list[float]]:
    """Right answers on time by requests offered, after the warm-up; and exits by stage among them."""
    at, which, service = run_streams(seed)
    arrivals = draw_arrivals(steady(rate / TOP), seconds, at)
    rows = shuffled_rows(table.rows, len(arrivals.instants), which)
    record = simulate(
        Policy(stages, usual_deadline_s=clients.deadline_s, routing=routing, seed=seed),
        Cluster(servers, cv=SERVICE_CV, seed=service),
        table,
        arrivals,
        rows,
        clients,
        planner=None if market is None else market_planner(market, [each.replicas for each in servers]),
    )
    counted = arrivals.instants >= WARM_UP_S
    good = record.on_time & table.served[rows, record.stage]
    exits = np.bincount(record.stage[counted & (record.stage >= 0)], minlength=len(stages)) / counted.sum()
    return float(good[counted].mean()), exits.tolist()


def compare(
    loads: Sequence[float], seeds: int, ways: Sequence[str], run: Callable[[str, float, int], tuple[float, list[float]]]
) -> list[dict[str, Any]]:
    """Every way at every load with every seed; prints as it goes."""
    print(
        f"{'load':>6}"
        + "".join(f"{way:>28}" for way in ways)
        + "   differences to the last, points; exits of each by stage, %"
    )
    found = []
    for load in loads:
        good = {way: [run(way, load, seed) for seed in range(seeds)] for way in ways}
        shares = {way: np.array([share for share, _ in each]) for way, each in good.items()}
        exits = {way: np.mean([exit_shares for _, exit_shares in each], axis=0) for way, each in good.items()}
        last = shares[ways[-1]]
        gains = {way: 100 * (last - each) for way, each in shares.items() if way != ways[-1]}
        line = "".join(
            f"{100 * each.mean():21.2f} ± {100 * each.std(ddof=1) / np.sqrt(seeds):4.2f}" for each in shares.values()
        )
        line += "   " + "; ".join(f"{g.mean():+.2f} ± {g.std(ddof=1) / np.sqrt(seeds):.2f}" for g in gains.values())
        line += "   " + " | ".join("/".join(f"{100 * share:.0f}" for share in each) for each in exits.values())
        print(f"{load:>6g}{line}", flush=True)
        found.append(
            {
                "load": load,
                "good": {way: each.tolist() for way, each in shares.items()},
                "exits": {way: each.tolist() for way, each in exits.items()},
            }
        )
    return found


def synthetic(loads: Sequence[float], seeds: int, *, planned: bool) -> list[dict[str, Any]]:
    """The ladder of `benchmarks.laws`, with tables learned as there; loads in capacities of the top stage."""
    learn, ask = default_rng([1, 0]), default_rng([1, 1])
    labelled, pool = draw(LABELLED, learn), draw(POOL, ask)
    table = learned_table(pool, labelled)
    traffic = learned_table(labelled, labelled)
    routings: tuple[Routing, ...] = ("cascade", "direct")
    tables = {way: replace(table, routing=way) for way in routings}
    markets = {way: market_of(replace(traffic, routing=way), [0.0] * len(COST)) for way in routings}
    stages = [
        StageConfig(server.slots, batch, cost, 0.0, server.a_s, server.b_s)
        for server, batch, cost in zip(SERVERS, BATCH, COST, strict=True)
    ]
    clients = Clients(DEADLINE_S, ANSWER_MARGIN_S)

    def run(way: str, load: float, seed: int) -> tuple[float, list[float]]:
        routing: Routing = "direct" if way == "direct" else "cascade"
        market = markets[routing] if planned else None
        rate = load * float(CAPACITY[-1])
        return served(routing, stages, SERVERS, market, tables[routing], rate, SECONDS, clients, seed)

    return compare(loads, seeds, list(tables), run)


def shipped(ladder: Ladder, loads: Sequence[float], seeds: int, seconds: float, slower: float) -> list[dict[str, Any]]:
    """A shipped ladder; loads in multiples of the rate at which a stage is full first.

    Its service times are the measured ones, times ``slower``: fewer requests then say as much about the same loads.
    """
    from cascade.cli.simulate import stage_servers

    spec, profile = ladder.spec, ServiceProfile.read(ladder.service_path)
    each = [stage.model_copy(update={"a_s": slower * stage.a_s, "b_s": slower * stage.b_s}) for stage in profile.stages]
    profile = profile.model_copy(update={"stages": tuple(each)})
    found = judged_ways(ladder, spec.base_prices)
    servers, stages = stage_servers(spec, profile, HOP_S / 2), stage_configs(spec, profile)
    markets = {way: market_of(traffic, spec.base_prices) for way, (traffic, _) in found.items()}
    _, test = found[WAYS[0][0]]
    rows_per_s = np.array(
        [stage.max_batch_size / (s.a_s + s.b_s * stage.max_batch_size) for s, stage in zip(servers, stages, strict=True)]
    )
    name, full_at = first_full(test, Capacity(rows_per_s), spec.base_prices)
    print(f"{spec.stages[name].name} is full at {full_at:.0f} rows/s")
    clients = Clients(spec.deadline.default_s, spec.deadline.margin_s)
    routings = {way: routing for way, routing, _ in WAYS}

    def run(way: str, load: float, seed: int) -> tuple[float, list[float]]:
        return served(routings[way], stages, servers, markets[way], found[way][1], load * full_at, seconds, clients, seed)

    return compare(loads, seeds, list(found), run)


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("frontier", "synthetic", "ladder"))
    parser.add_argument("ladder", nargs="?", type=Path, default=Path("deployments/fashion/cascade.yaml"))
    parser.add_argument("--loads", type=lambda text: [float(each) for each in text.split(",")], default=LOADS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="ladder: length of each run")
    parser.add_argument("--slower", type=float, default=5.0, help="ladder: factor on service times")
    parser.add_argument("--no-prices", action="store_true", help="synthetic: as if the slow loop were dead")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    document: Any
    if chosen.what == "frontier":
        document = frontier(Ladder.read(chosen.ladder))
    elif chosen.what == "synthetic":
        document = synthetic(chosen.loads, chosen.seeds, planned=not chosen.no_prices)
    else:
        document = shipped(Ladder.read(chosen.ladder), chosen.loads, chosen.seeds, chosen.seconds, chosen.slower)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
