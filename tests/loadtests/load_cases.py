"""A ladder that exists on paper only, recordings made by hand, and arrivals, for the tests of the load generator."""

from pathlib import Path

import numpy as np

from cascade.simulation.workload import Arrivals
from loadtests.record import COLUMNS, Recording

ROWS = 60
SPEC = """
name: fake
inputs: [{name: x, datatype: FP32, shape: [1]}]
labels: [a, b, c]
stages:
  - {name: small, model: {factory: "no.such:factory"}, cost: 1}
  - {name: large, model: {factory: "no.such:factory"}, cost: 10}
deadline: {default_s: 0.8}
admission: {default_priority: 3}
"""


def write_ladder(folder: Path) -> Path:
    """Spec and test rows that `fake_server` answers; no row is like another."""
    (folder / "data").mkdir(parents=True)
    rows = np.arange(ROWS)
    np.savez(folder / "data" / "test.npz", x=rows[:, None].astype(np.float32), labels=rows % 3)
    (folder / "cascade.yaml").write_text(SPEC)
    return folder / "cascade.yaml"


def two_phases(instants: list[float]) -> Arrivals:
    """Arrivals in 2 s: one second of each phase."""
    return Arrivals(np.array(instants), 2.0, ("first", "second"), np.array([0.0, 1.0, 2.0]), np.array([0, 1]))


def recording_of(arrivals: Arrivals, chosen: slice = slice(None)) -> Recording:
    """Some requests of a run in which every row is told apart by its latency."""
    count = len(arrivals.instants[chosen])
    columns = {name: np.zeros(count, dtype=dtype) for name, dtype in COLUMNS.items()}
    columns["scheduled_s"] = arrivals.instants[chosen]
    columns["latency_s"] = arrivals.instants[chosen] / 10
    columns["reason"] = np.full(count, "confident", dtype="U16")
    columns["phase"] = arrivals.phase[chosen].astype(np.int16)
    return Recording(**columns, arrivals=arrivals, meta={"scenario": "by hand", "stages": ["small", "large"]})
