"""What a row costs a policy, by replicas, routers and load: CPU seconds and memory of the policy alone.

A run of the whole system is simulated once and one router's events are taken down; they are then played to fresh policies
in a process of their own, also to an older version of the policy that a revision names.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.laws.scenarios import ANSWER_MARGIN_S, DEADLINE_S
from benchmarks.scale.replay import ARRIVED, Figures, Recorder, Recording
from benchmarks.scale.settings import COMPARED, TOP_RATE, arrangement, table
from cascade.policy.policy import Policy
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster
from cascade.simulation.fleet import Fleet
from cascade.simulation.simulator import draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams

ROOT = Path(__file__).resolve().parents[2]
FILL_S = DEADLINE_S
"""The queues are full, and as many rows leave as come, well before one deadline has passed."""
SHORTEST_S = 0.1
"""Of the part that is measured: several batches of every replica."""


class Case(NamedTuple):
    """One setting."""

    replicas: int
    routers: int
    load: float


def record(case: Case, rows: int, seed: int = 0) -> Recording:
    """Simulate a setting and take down what its first router is told.

    Args:
        case: the setting.
        rows: rows that come to that router in the part that is measured, about.
        seed: of the run.
    """
    configs, servers = arrangement(case.replicas, case.routers)
    rate = case.load * TOP_RATE * case.replicas
    seconds = FILL_S + max(SHORTEST_S, rows * case.routers / rate)
    arrival_seed, row_seed, service_seed = run_streams(seed)
    arrivals = draw(parse_workload(f"poisson:{rate:.9g}"), seconds, arrival_seed)
    policies: list[Any] = [Policy(configs, usual_deadline_s=DEADLINE_S, seed=k) for k in range(case.routers)]
    recorder = policies[0] = Recorder(policies[0])
    simulate(
        recorder if case.routers == 1 else Fleet(policies),
        Cluster(servers, seed=service_seed, compared=COMPARED),
        table(),
        arrivals,
        draw_rows(table(), len(arrivals.instants), row_seed),
        Clients(DEADLINE_S, ANSWER_MARGIN_S),
    )
    # What comes after the last arrival drains the queues and is no steady load.
    arrived = [place for place, event in enumerate(recorder.events) if event[0] == ARRIVED]
    begin = next(place for place in arrived if recorder.events[place][1] >= FILL_S)
    return Recording(tuple(configs), DEADLINE_S, recorder.events[: arrived[-1] + 1], begin)


def replayed(path: Path, rounds: int, limit_s: float, root: Path = ROOT) -> Figures:
    """Replay a recording in a process of its own.

    Args:
        path: of the recording.
        rounds: replays that are timed.
        limit_s: CPU seconds after which no more are begun.
        root: folder that ``cascade`` and this benchmark are imported from.
    """
    command = [sys.executable, "-m", "benchmarks.scale.replay", str(path.resolve()), str(rounds), f"{limit_s:g}"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the replay failed:\n{done.stderr}")
    return Figures(**json.loads(done.stdout))


@contextmanager
def revision(name: str) -> Iterator[Path]:
    """A folder with the package as it was at a revision, and this benchmark as it is."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", name, "cascade"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
        yield Path(folder)


def kept(recording: Recording, path: Path) -> None:
    """Write a recording to a file, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(recording, protocol=pickle.HIGHEST_PROTOCOL))
    part.replace(path)
