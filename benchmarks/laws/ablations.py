"""What single parts of the design are worth: the order of the queue, the door, the check of slack, what the tables know."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from math import inf
from typing import Any

import numpy as np

from benchmarks.laws.compare import Outcome, bench, compare
from benchmarks.laws.laws import BY_NAME, OPEN_DOOR, Law, QueuePrice
from benchmarks.laws.queue_law import Options
from benchmarks.laws.scenarios import BY_NAME as SCENARIO
from benchmarks.laws.scenarios import CAPACITY, LOADS, TOP, UNSOLVABLE
from benchmarks.laws.storm import storm
from benchmarks.laws.tables import Grid, markdown

OURS = BY_NAME["ours"]
UNGUARDED = Law(
    "unguarded", "nothing shed, no slack check, FIFO", partial(QueuePrice, options=Options(slack=False, wait_share=inf))
)
STORM_LAWS = (OURS, OPEN_DOOR, UNGUARDED)
RETRIES = (0, 3)


def ablations(seeds: Sequence[int], progress: Callable[[float], None]) -> tuple[dict[str, Any], str]:
    """Run all of them.

    Args:
        seeds: of the runs.
        progress: told the share that is done.

    Returns:
        A document, and the same as markdown.
    """
    document: dict[str, Any] = {}
    text = ""

    orders = {}
    for step, order in enumerate(("gain", "uncertainty")):
        orders[order] = compare(UNSOLVABLE, [OURS], seeds, order=order, progress=lambda x, s=step: progress((s + x) / 4))
    document["order"] = {order: _gaps(outcomes) for order, outcomes in orders.items()}
    names = [scenario.name for scenario in UNSOLVABLE]
    text += "### Order of the queue, where a share of the inputs is solved by no stage (gap, points)\n\n"
    text += markdown(
        ["order by", *names],
        [[order, *(f"{Grid(found).gap('ours', name).mean:.2f}" for name in names)] for order, found in orders.items()],
    )

    door = compare([SCENARIO["x30"]], [OURS, OPEN_DOOR], seeds, progress=lambda x: progress((2 + x / 4) / 4))
    document["door"] = _gaps(door)
    text += "\n### The door, at 30 times the top stage's capacity, more than the cheapest stage can do (gap, points)\n\n"
    text += markdown(["law", "x30"], [[law, str(Grid(door).gap(law, "x30"))] for law in Grid(door).laws])

    loads = [SCENARIO[name] for name in ("x4", "x10")]
    laws = [OURS, BY_NAME["gear-drain"], BY_NAME["pi"]]
    forgets = compare(loads, laws, seeds, nested=False, progress=lambda x: progress((2.25 + x / 4) / 4))
    document["forgets"] = _gaps(forgets)
    text += "\n### Independent noise: the optimum knows all scores of a row, the tables only the latest (gap, points)\n\n"
    text += markdown(
        ["law", "x4", "x10"],
        [[law, *(str(Grid(forgets).gap(law, name)) for name in ("x4", "x10"))] for law in Grid(forgets).laws],
    )

    document["skipping"] = {
        str(nested): {
            f"x{load:g}": 100 * bench(nested=nested).world.worth_of_skipping(load * TOP, CAPACITY) for load in LOADS
        }
        for nested in (True, False)
    }
    text += "\n### What the optimum would gain if rows might skip the medium stage while it is up (points)\n\n"
    text += markdown(
        ["noise", *(f"x{load:g}" for load in LOADS)],
        [
            [noise, *(f"{worth:.2f}" for worth in document["skipping"][nested].values())]
            for noise, nested in (("nested", "True"), ("independent", "False"))
        ],
    )

    rows = []
    document["storm"] = []
    runs = [(law, retries) for law in STORM_LAWS for retries in RETRIES]
    for done, (law, retries) in enumerate(runs):
        storms = [storm(law, retries, seed) for seed in seeds]
        document["storm"].append({"law": law.name, "retries": retries, "seeds": [asdict(found) for found in storms]})
        parts = [f"{np.mean([found.answered[part] for found in storms]):.2f}" for part in storms[0].answered]
        rows.append([law.title, str(retries), *parts, f"{np.mean([found.attempts for found in storms]):.2f}"])
        progress((2.5 + 1.5 * (done + 1) / len(runs)) / 4)
    text += "\n### A storm of retries: 15x, then 40x for 3 s, then 15x (share of clients answered in time)\n\n"
    text += markdown(["law", "retries", *storms[0].answered, "attempts per client"], rows)
    return document, text


def _gaps(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    grid = Grid(outcomes)
    return {law: {scenario: grid.gap(law, scenario).mean for scenario in grid.scenarios} for law in grid.laws}
