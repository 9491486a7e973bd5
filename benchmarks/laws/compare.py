"""Runs laws through scenarios and measures their gap to the fluid optimum on the very rows that came. Prints nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from benchmarks.laws.laws import Law
from benchmarks.laws.optimum import World
from benchmarks.laws.plan import Prices
from benchmarks.laws.scenarios import (
    ANSWER_MARGIN_S,
    CAPACITY,
    COOL_DOWN_S,
    DEADLINE_S,
    SERVERS,
    SERVICE_CV,
    WARM_UP_S,
    Scenario,
)
from benchmarks.laws.synthetic import COST, LABELLED, Floats, Sample, draw, learned_table
from cascade.calibration.judged import JudgedTable
from cascade.simulation.cluster import Cluster
from cascade.simulation.record import REASONS, Ending, Record
from cascade.simulation.simulator import Clients, draw_rows, simulate
from cascade.simulation.workload import Arrivals, run_streams
from cascade.simulation.workload import draw as draw_arrivals

POOL = 60_000
"""Rows that requests are drawn from."""
PLANNED = 4_000
"""Labelled rows that plans are made on: enough for prices to a thousandth, and quick."""
WORLD = 300_000
"""Rows that the optimum is found on."""
MOST_PROCESSES = 2
_Task = tuple[Scenario, tuple[Law, ...], int, str, bool]


@dataclass(frozen=True, eq=False)
class Bench:
    """A ladder's world: what is true, what is asked, what the router learned.

    Attributes:
        pool: rows that are asked.
        table: the same as the router sees them.
        world: a large sample of the same kind.
        prices: of the router's plan, from the labelled rows.
    """

    pool: Sample
    table: JudgedTable
    world: World
    prices: Prices


def bench(shift: float = 0.0, unsolvable: float = 0.0, order: str = "gain", nested: bool = True) -> Bench:
    """The bench of one kind of inputs, made once; what the router learned is always learned without a shift."""
    return _bench(shift, unsolvable, order, nested)


@cache
def _bench(shift: float, unsolvable: float, order: str, nested: bool) -> Bench:
    learn, ask, know = (default_rng([1, k]) for k in range(3))
    labelled = draw(LABELLED, learn, unsolvable=unsolvable, nested=nested)
    pool = draw(POOL, ask, shift=shift, unsolvable=unsolvable, nested=nested)
    world = World.of(draw(WORLD, know, shift=shift, unsolvable=unsolvable, nested=nested))
    planned = labelled.take(np.arange(PLANNED))
    prices = Prices(learned_table(planned, labelled, order=order), CAPACITY)
    return Bench(pool, learned_table(pool, labelled, order=order), world, prices)


@dataclass(frozen=True)
class Outcome:
    """One law in one scenario with one seed; shares and points are of the requests that count.

    Attributes:
        scenario: its name.
        law: its name.
        seed: of arrivals, rows and service times.
        gap: points by which correct-and-on-time answers stay below the fluid optimum.
        good: correct-and-on-time answers, share.
        on_time: answers on time, share.
        shed: turned away, share.
        latency_ms: mean, of the answers.
        exits: share by stage and reason of the answer, or by ending where there was none.
    """

    scenario: str
    law: str
    seed: int
    gap: float
    good: float
    on_time: float
    shed: float
    latency_ms: float
    exits: dict[str, float] = field(repr=False)


class Played(NamedTuple):
    """The requests of one scenario and seed, the same for all laws.

    Attributes:
        table: what the router sees of every row that may come.
        arrivals: when they come.
        rows: [N] which row each is.
        best: [N] expectation of a right answer under the optimal rule: 0, 1, or in between where the optimum sheds.
        counted: [N] whether it counts.
    """

    table: JudgedTable
    arrivals: Arrivals
    rows: NDArray[np.intp]
    best: Floats
    counted: NDArray[np.bool_]


def play(scenario: Scenario, seed: int, *, order: str = "gain", nested: bool = True) -> Played:
    """Draw the requests of a run and find what the optimum makes of them, cell by cell."""
    at, which, _ = run_streams(seed)
    arrivals = draw_arrivals(scenario.workload, scenario.seconds, at)
    rows = draw_rows(bench(0.0, scenario.unsolvable, order, nested).table, len(arrivals.instants), which)
    cell, cells = scenario.cells(arrivals)
    best = np.empty(len(rows))
    for index, kind in enumerate(cells):
        mine = cell == index
        there = bench(kind.shift, scenario.unsolvable, order, nested)
        best[mine] = there.world.served_right(there.pool.take(rows[mine]), there.world.solve(kind.rate, kind.capacity))
    table = bench(0.0, scenario.unsolvable, order, nested).table
    if scenario.drift:
        rows = np.where(scenario.shifted(arrivals.instants), rows + POOL, rows)
        table = _joined(table, bench(scenario.drift, scenario.unsolvable, order, nested).table)
    counted = (arrivals.instants >= WARM_UP_S) & (arrivals.instants < scenario.seconds - COOL_DOWN_S)
    return Played(table, arrivals, rows, best, counted)


def drive(scenario: Scenario, law: Law, seed: int, played: Played, prices: Prices) -> Record:
    """Let a law serve the requests."""
    servers = (*SERVERS[:-1], replace(SERVERS[-1], replicas=law.replicas))
    stages = scenario.stages(COST, servers)
    policy = law.make(stages, prices, usual_deadline_s=DEADLINE_S, seed=seed)
    *_, service = run_streams(seed)
    return simulate(
        policy,
        Cluster(servers, slowdowns=scenario.slowdowns, cv=SERVICE_CV, seed=service),
        played.table,
        played.arrivals,
        played.rows,
        Clients(DEADLINE_S, ANSWER_MARGIN_S),
        planner=law.planner(prices),
        plan_period_s=law.plan_period_s,
    )


def measure(scenario: Scenario, law: Law, seed: int, played: Played, *, order: str = "gain", nested: bool = True) -> Outcome:
    """Run one law on requests already drawn.

    The gap is a difference on the same rows: the optimal rule's answers and the law's. What rows happened to come, and what
    labels they have, is in both.
    """
    record = drive(scenario, law, seed, played, bench(0.0, scenario.unsolvable, order, nested).prices)
    good = record.on_time & played.table.right[played.rows, record.stage]
    counted = played.counted
    latency_s = (record.done_s - record.arrivals.instants)[counted & (record.ending == Ending.ANSWERED)]
    return Outcome(
        scenario.name,
        law.name,
        seed,
        gap=100 * float((played.best - good)[counted].mean()),
        good=float(good[counted].mean()),
        on_time=float(record.on_time[counted].mean()),
        shed=float((record.ending == Ending.SHED)[counted].mean()),
        latency_ms=1000 * float(latency_s.mean()) if len(latency_s) else float("nan"),
        exits=_exits(record, counted),
    )


def compare(
    scenarios: Sequence[Scenario],
    laws: Sequence[Law],
    seeds: Sequence[int],
    *,
    order: str = "gain",
    nested: bool = True,
    processes: int = MOST_PROCESSES,
    progress: Callable[[float], None] | None = None,
) -> list[Outcome]:
    """Every law in every scenario with every seed; within a scenario and seed all laws meet the same requests.

    Args:
        scenarios: what happens.
        laws: what is compared.
        seeds: of the runs.
        order: see `learned_table`.
        nested: see `draw` of the synthetic ladder.
        processes: work is shared between so many; 1 stays in this one.
        progress: told the share that is done.
    """
    # The heaviest first, so that no process is left alone with one at the end.
    tasks = [(scenario, tuple(laws), seed, order, nested) for scenario in reversed(scenarios) for seed in seeds]
    found: list[Outcome] = []
    for done, outcomes in enumerate(_spread(tasks, processes), start=1):
        found.extend(outcomes)
        if progress is not None:
            progress(done / len(tasks))
    place = {scenario.name: index for index, scenario in enumerate(scenarios)}
    order = {law.name: index for index, law in enumerate(laws)}
    return sorted(found, key=lambda o: (place[o.scenario], order[o.law], o.seed))


def _spread(tasks: Sequence[_Task], processes: int) -> Iterator[list[Outcome]]:
    if processes == 1:
        yield from map(_task, tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_task, task) for task in tasks]):
            yield future.result()


def _task(task: _Task) -> list[Outcome]:
    scenario, laws, seed, order, nested = task
    played = play(scenario, seed, order=order, nested=nested)
    return [measure(scenario, law, seed, played, order=order, nested=nested) for law in laws]


def _exits(record: Record, counted: NDArray[np.bool_]) -> dict[str, float]:
    ways: Iterable[tuple[int, int, int]] = zip(
        record.ending[counted].tolist(), record.stage[counted].tolist(), record.reason[counted].tolist(), strict=True
    )
    counts = Counter(
        f"{stage} {REASONS[reason]}" if ending == Ending.ANSWERED else Ending(ending).name.lower()
        for ending, stage, reason in ways
    )
    return {way: round(count / int(counted.sum()), 5) for way, count in sorted(counts.items())}


def _joined(first: JudgedTable, second: JudgedTable) -> JudgedTable:
    columns = ("right", "served", "p_correct", "gains")
    return replace(first, **{name: np.concatenate([getattr(table, name) for table in (first, second)]) for name in columns})
