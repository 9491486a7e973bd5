"""How many requests a second of wall time the simulator manages on the shipped ladder, by load.

    python benchmarks/simulator_speed.py [--requests 40000] [--rounds 3]

One core. The load is a multiple of the rate at which the dearest stage can run every request.
"""

import argparse
import time
from pathlib import Path

from cascade.assembly import build_policy
from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.simulate import default_table, stage_servers
from cascade.simulation.cluster import Cluster
from cascade.simulation.simulator import Clients, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from cascade.spec import Ladder

SPEC = Path(__file__).parent.parent / "deployments" / "fashion" / "cascade.yaml"
LOADS = (0.2, 0.9, 4, 20, 100, 500)
HOP_S = 0.001
WANTED_PER_S = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000, help="requests of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load, of which the fastest counts")
    arguments = parser.parse_args()

    ladder = Ladder.read(SPEC)
    profile = ServiceProfile.read(ladder.service_path)
    table = judge_table(OutcomeTable.read(default_table(ladder)), Calibration.read(ladder.calibration_path))
    servers = stage_servers(ladder.spec, profile, HOP_S)
    dearest, rows = servers[-1], ladder.spec.stages[-1].max_batch_size
    capacity = rows / (dearest.a_s + dearest.b_s * rows)
    print(f"{ladder.spec.name}: {len(servers)} stages, the dearest runs {capacity:,.0f} rows/s; wanted {WANTED_PER_S:,}/s")
    print("| load | arrivals/s | requests/s of wall time | of CPU time | batches a request |\n|--:|--:|--:|--:|--:|")
    for load in LOADS:
        rate = load * capacity
        arrival_seed, row_seed, service_seed = run_streams(0)
        arrivals = draw(parse_workload(f"poisson:{rate:.9g}"), arguments.requests / rate, arrival_seed)
        drawn = draw_rows(table, len(arrivals.instants), row_seed)
        wall_s, cpu_s = [], []
        for _ in range(arguments.rounds):
            policy, cluster = build_policy(ladder.spec, profile, seed=0), Cluster(servers, seed=service_seed)
            began = time.perf_counter(), time.process_time()
            record = simulate(policy, cluster, table, arrivals, drawn, Clients(ladder.spec.deadline.default_s))
            wall_s.append(time.perf_counter() - began[0])
            cpu_s.append(time.process_time() - began[1])
        per_s = f"{len(drawn) / min(wall_s):,.0f} | {len(drawn) / min(cpu_s):,.0f}"
        print(f"| x{load:g} | {rate:,.0f} | {per_s} | {len(record.batch_rows) / len(drawn):.2f} |")


if __name__ == "__main__":
    main()
