"""The ladder, the loads and the sizes of this benchmark. Knows how a run is set up; measures nothing.

The ladder is the synthetic one of `benchmarks.laws`: three stages of 32, 16 and 8 rows a batch, a deadline of 0.4 s, and a
top stage of 70 rows/s a replica. Every stage has the same number of replicas; loads are multiples of what the top can do.
"""

from dataclasses import replace
from functools import cache
from typing import Any, Literal

from numpy.random import default_rng

from benchmarks.laws.scenarios import ANSWER_MARGIN_S, BATCH, DEADLINE_S, HOP_S, SERVERS
from benchmarks.laws.synthetic import COST, LABELLED, STAGES, draw, learned_table
from cascade.assembly import stage_configs
from cascade.calibration.artefact import ServiceProfile, StageService
from cascade.calibration.judged import JudgedTable
from cascade.cli.simulate import stage_servers
from cascade.policy.policy import StageConfig
from cascade.simulation.cluster import StageServers
from cascade.spec import CascadeSpec, parse_spec

REPLICAS = (4, 16, 64, 256, 1000)
ROUTERS = (1, 2, 4, 8, 16, 32, 64)
LOADS = (0.7, 2.0, 8.0)
COMPARED = 8
"""Replicas that a handle of the server compares for a call (`cascade/serving/counting.py`)."""
Calls = Literal["server", "each", "large"]
"""*server*: as `cascade.assembly.router_slots` has it. *each*: one call of a router's part of a batch with every replica,
however many routers there are. *large*: a router's part of all replicas, in calls as large as leave it `FEWEST_LARGE`."""
FEWEST_LARGE = 4
POOL = 40_000
"""Rows that requests are drawn from."""
TOP_RATE = BATCH[-1] / (SERVERS[-1].a_s + SERVERS[-1].b_s * BATCH[-1])
"""Rows a second of one replica of the top stage."""


@cache
def table() -> JudgedTable:
    """What the stages make of the rows; the gains are learned from other rows than those that come."""
    learn, ask = default_rng([1, 0]), default_rng([1, 1])
    return learned_table(draw(POOL, ask), draw(LABELLED, learn))


def spec(replicas: int, routers: int) -> CascadeSpec:
    """The ladder with so many replicas of every stage, each of which holds one full batch, behind so many routers."""
    stages = [
        {
            "name": name,
            "cost": cost,
            "max_batch_size": rows,
            "base_price": 0.0,
            "replicas": replicas,
            "calls_per_replica": 1,
            "model": {"factory": "none:none"},
        }
        for name, cost, rows in zip(STAGES, COST, BATCH, strict=True)
    ]
    document: dict[str, Any] = {
        "name": "synthetic",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
        "labels": ["no", "yes"],
        "stages": stages,
        "deadline": {"default_s": DEADLINE_S, "margin_s": ANSWER_MARGIN_S},
        "router": {"replicas": routers},
    }
    return parse_spec(document)


def arrangement(replicas: int, routers: int, calls: Calls = "server") -> tuple[list[StageConfig], list[StageServers]]:
    """What each router is told of the stages, and what they are.

    Args:
        replicas: of every stage.
        routers: routers.
        calls: how the routers share the replicas, see `Calls`.
    """
    arranged = spec(replicas, routers)
    times = [StageService.model_construct(name=n, a_s=s.a_s, b_s=s.b_s) for n, s in zip(STAGES, SERVERS, strict=True)]
    profile = ServiceProfile.model_construct(stages=tuple(times))
    configs = stage_configs(arranged, profile)
    if calls != "server":
        for place, batch in enumerate(BATCH):
            rows, slots = -(-batch // routers), replicas
            if calls == "large":
                rows = min(batch, max(rows, replicas * batch // (routers * FEWEST_LARGE)))
                slots = max(1, -(-replicas * batch // (routers * rows)))
            configs[place] = replace(configs[place], slots=slots, max_batch_size=rows)
    return configs, stage_servers(arranged, profile, HOP_S / 2)
