"""What several routers beside each other cost: correct-and-on-time answers lost against one router, simulated or live.

    python -m benchmarks.routers             # a few minutes; writes benchmarks/routers.md
    python -m benchmarks.routers --live      # the real server with 1, 2 and 4 routers, at one rate

Each router has its own policy and queues and knows nothing of the others. *Whole batches*: a router may have its share of
the calls, each of up to a full batch, and a replica runs them one after the other. *Item grants* is what the server does: a
router may have one call of its part of a full batch with every replica, which puts together what waits.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.laws.compare import bench
from benchmarks.laws.scenarios import ANSWER_MARGIN_S, BATCH, DEADLINE_S, SERVERS
from benchmarks.laws.synthetic import COST, STAGES
from cascade.assembly import stage_configs
from cascade.calibration.artefact import Calibration, ServiceProfile, StageService
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.simulate import default_table, stage_servers
from cascade.policy.policy import Policy
from cascade.simulation.cluster import Cluster
from cascade.simulation.fleet import Fleet
from cascade.simulation.outcome import served_right
from cascade.simulation.record import Ending
from cascade.simulation.simulator import Clients, draw_rows, simulate
from cascade.simulation.workload import draw, parse_workload, run_streams
from cascade.spec import CascadeSpec, Ladder, parse_spec

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "deployments" / "loadtest" / "cascade.yaml"
SYNTHETIC = "synthetic"
LOADS = ("2", "4", "8", "10", "step")
"""Multiples of what the top stage can do; the step is from 0.5 to 8 and back, a third of the time each."""
ROUTERS = (1, 2, 4)
REPLICAS = (1, 4)
HOP_S = 0.001
WARM_UP_DEADLINES, COOL_DOWN_DEADLINES = 2.0, 1.0
"""The run begins and ends empty: so many deadlines at both ends are not counted."""
WANTED = 1.0
"""Points that several routers may lose."""
LAG_LIMIT_MS = 20.0
"""A live run whose requests left later than this, at the 99th percentile, says nothing of the server."""


class Way(NamedTuple):
    """How routers share the replicas.

    Attributes:
        routers: routers.
        whole: whether each sends whole batches.
        calls: calls that a replica may hold.
    """

    routers: int
    whole: bool = False
    calls: int = 1

    @property
    def title(self) -> str:
        """For tables."""
        if self.routers == 1:
            return "1 router" if self.calls == 1 else f"1 router, {self.calls} calls a replica"
        return f"{self.routers} routers, {'whole batches' if self.whole else 'item grants'}"


WAYS = (
    Way(1),
    Way(1, calls=2),
    *(Way(routers, whole, 2 if whole else 1) for whole in (True, False) for routers in ROUTERS[1:]),
)
"""The first is what the others are compared with. Whole batches with two calls a replica are what the server did before."""


@dataclass(frozen=True, eq=False)
class Case:
    """A ladder to be simulated.

    Attributes:
        spec: its spec.
        profile: its service times.
        table: what its stages make of the rows.
    """

    spec: CascadeSpec
    profile: ServiceProfile
    table: JudgedTable

    @property
    def top_rate(self) -> float:
        """Rows a second of one replica of the top stage at full batches."""
        rows, measured = self.spec.stages[-1].max_batch_size, self.profile.stages[-1]
        return rows / (measured.a_s + measured.b_s * rows)


class Point(NamedTuple):
    """One run: percent of the requests answered right and on time, and milliseconds."""

    right: float
    mean_ms: float
    p99_ms: float
    top_rows: float


class Setting(NamedTuple):
    """What is run: a ladder, replicas of each stage, a load, a way, a seed, and for how long."""

    ladder: str
    replicas: int
    load: str
    way: Way
    seed: int
    deadlines: float

    @property
    def seconds(self) -> float:
        """Length of the run; more replicas serve as many requests in less time."""
        return self.deadlines * case(self.ladder).spec.deadline.default_s / self.replicas**0.5


@cache
def case(ladder: str) -> Case:
    """A ladder by the path of its spec, or the synthetic one."""
    if ladder != SYNTHETIC:
        files = Ladder.read(ladder)
        outcomes = OutcomeTable.read(default_table(files))
        judged = judge_table(outcomes, Calibration.read(files.calibration_path))
        return Case(files.spec, ServiceProfile.read(files.service_path), judged)
    stages = [
        {"name": name, "cost": cost, "max_batch_size": rows, "base_price": 0.0, "model": {"factory": "none:none"}}
        for name, cost, rows in zip(STAGES, COST, BATCH, strict=True)
    ]
    document: dict[str, Any] = {
        "name": SYNTHETIC,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
        "labels": ["no", "yes"],
        "stages": stages,
        "deadline": {"default_s": DEADLINE_S, "margin_s": ANSWER_MARGIN_S},
    }
    times = [StageService.model_construct(name=n, a_s=s.a_s, b_s=s.b_s) for n, s in zip(STAGES, SERVERS, strict=True)]
    return Case(parse_spec(document), ServiceProfile.model_construct(stages=tuple(times)), bench().table)


def arranged(spec: CascadeSpec, replicas: int, way: Way) -> CascadeSpec:
    """The spec with so many replicas, routers and calls a replica."""
    stages = tuple(
        stage.model_copy(update={"replicas": replicas, "calls_per_replica": way.calls})
        if stage.placement == "replica"
        else stage
        for stage in spec.stages
    )
    router = spec.router.model_copy(update={"replicas": way.routers})
    return spec.model_copy(update={"stages": stages, "router": router})


def play(setting: Setting) -> Point:
    """Run one setting."""
    ladder, way = case(setting.ladder), setting.way
    spec = arranged(ladder.spec, setting.replicas, way)
    configs, servers = stage_configs(spec, ladder.profile), stage_servers(spec, ladder.profile, HOP_S)
    if way.whole:
        for k, stage in enumerate(spec.stages):
            if stage.placement == "replica":
                slots = max(1, stage.replicas * stage.calls_per_replica // way.routers)
                configs[k] = replace(configs[k], slots=slots, max_batch_size=stage.max_batch_size)
                servers[k] = replace(servers[k], merged_rows=0)
    deadline_s, margin_s = spec.deadline.default_s, spec.deadline.margin_s
    arrival_seed, row_seed, service_seed = run_streams(setting.seed)
    text = workload(setting, ladder.top_rate * setting.replicas)
    arrivals = draw(parse_workload(text), setting.seconds, arrival_seed)
    rows = draw_rows(ladder.table, len(arrivals.instants), row_seed)
    fleet = Fleet([Policy(configs, usual_deadline_s=deadline_s, seed=seed) for seed in range(way.routers)])
    record = simulate(
        fleet, Cluster(servers, seed=service_seed), ladder.table, arrivals, rows, Clients(deadline_s, margin_s)
    )
    at_s = arrivals.instants
    counted = (at_s >= WARM_UP_DEADLINES * deadline_s) & (at_s <= arrivals.seconds - COOL_DOWN_DEADLINES * deadline_s)
    latency_ms = 1e3 * (record.done_s - at_s)[counted & (record.ending == Ending.ANSWERED)]
    top = record.batch_stage == len(spec.stages) - 1
    return Point(
        100 * float(served_right(record, ladder.table)[counted].mean()),
        float(latency_ms.mean()),
        float(np.quantile(latency_ms, 0.99)),
        float(record.batch_rows[top].mean()) if top.any() else 0.0,
    )


def workload(setting: Setting, top_rate: float) -> str:
    """The arrivals of a setting, as text."""
    if setting.load != "step":
        return f"poisson:{float(setting.load) * top_rate:.9g}"
    each = setting.seconds / 3
    return "step:" + ",".join(f"{times * top_rate:.9g}@{each:.9g}" for times in (0.5, 8.0, 0.5))


Results = dict[tuple[str, int, str, Way], Point]


def simulated(ladders: list[str], seeds: int, deadlines: float, processes: int, console: Console) -> Results:
    """The mean point of every setting over the seeds."""
    settings = [
        Setting(ladder, replicas, load, way, seed, deadlines)
        for ladder in ladders
        for replicas in REPLICAS
        for load in LOADS
        for way in WAYS
        for seed in range(seeds)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        points = list(track(pool.map(play, settings), "simulating", total=len(settings), console=console))
    found: dict[tuple[str, int, str, Way], list[Point]] = {}
    for setting, point in zip(settings, points, strict=True):
        found.setdefault(setting[:4], []).append(point)
    return {key: Point(*np.mean(several, axis=0).tolist()) for key, several in found.items()}


def tables(results: Results) -> Iterator[tuple[str, list[list[str]]]]:
    """A title and rows for each ladder and number of replicas: points lost by load, then latency and passes at one load."""
    for ladder, replicas in dict.fromkeys(key[:2] for key in results):
        rows = []
        for way in WAYS:
            points = [results[ladder, replicas, load, way] for load in LOADS]
            lost = [
                f"{results[ladder, replicas, load, WAYS[0]].right - point.right:+.2f}"
                for load, point in zip(LOADS, points, strict=True)
            ]
            steady = points[LOADS.index("8")]
            latency = f"{steady.mean_ms:.0f} / {steady.p99_ms:.0f}"
            rows.append(
                [
                    way.title,
                    *(lost if way != WAYS[0] else [f"{p.right:.2f} %" for p in points]),
                    latency,
                    f"{steady.top_rows:.1f}",
                ]
            )
        yield f"{title(ladder)}, {replicas} replica{'s' * (replicas > 1)} a stage", rows


def title(ladder: str) -> str:
    """What a table calls a ladder."""
    return ladder if ladder == SYNTHETIC else case(ladder).spec.name


def worst(results: Results) -> float:
    """The most points that item grants lose anywhere."""
    return max(
        results[(*key[:3], WAYS[0])].right - point.right
        for key, point in results.items()
        if key[3].routers > 1 and not key[3].whole
    )


COLUMNS = ("", *(f"x{load}" if load != "step" else "step" for load in LOADS), "ms mean / p99 at x8", "rows a pass")


def page(results: Results, command: str, seeds: int) -> str:
    """The results as Markdown."""
    text = [
        "# Several routers: results",
        "",
        f"Made by `{command}`, simulated, {seeds} seeds. Correct-and-on-time answers of one router by offered load, in "
        "multiples of the top stage's capacity, and the points of them that other arrangements lose; latency, and rows in a "
        f"pass of the top stage. Most that item grants lose anywhere: {worst(results):.2f} points.",
    ]
    for name, rows in tables(results):
        text += ["", f"## {name}", "", f"| {' | '.join(COLUMNS)} |", f"|:--{'|--:' * (len(COLUMNS) - 1)}|"]
        text += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(text) + "\n"


def main(
    spec: Annotated[Path, typer.Option(help="the ladder to simulate beside the synthetic one, or to serve")] = SHIPPED,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each setting")] = 2,
    deadlines: Annotated[float, typer.Option(min=8.0, help="length of a run with one replica, in usual deadlines")] = 20.0,
    processes: Annotated[int, typer.Option(min=1)] = min(2, os.cpu_count() or 1),
    out: Annotated[Path, typer.Option(help="Markdown file for the results")] = HERE / "routers.md",
    live: Annotated[bool, typer.Option("--live", help="measure the real server instead")] = False,
    load: Annotated[float, typer.Option(help="live: offered load, in multiples of the profiled top stage")] = 4.0,
    seconds: Annotated[float, typer.Option(min=2.0, help="live: length of a run")] = 15.0,
    routers: Annotated[str, typer.Option(help="live: numbers of routers")] = ",".join(map(str, ROUTERS)),
) -> None:
    """Measure what several routers cost."""
    console = Console()
    if live:
        show_live(spec, [int(count) for count in routers.split(",")], load, seconds, console)
        return
    results = simulated([SYNTHETIC, str(spec)], seeds, deadlines, processes, console)
    for name, rows in tables(results):
        table = Table(*COLUMNS, title=name, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    command = f"python -m benchmarks.routers --seeds {seeds} --deadlines {deadlines:g}"
    out.write_text(page(results, command, seeds), encoding="utf-8")
    lost = worst(results)
    console.print(f"most that item grants lose anywhere: {lost:.2f} points, wanted {WANTED:g} or less; written {out}")
    raise typer.Exit(int(lost > WANTED))


# -- the real server ---------------------------------------------------------------------------------------------------


def show_live(spec: Path, routers: list[int], load: float, seconds: float, console: Console) -> None:
    """Serve the ladder with each number of routers and offer the same requests to each."""
    from benchmarks.routers_live import measure

    rate = load * case(str(spec)).top_rate
    table = Table(
        "routers", "offered/s", "answered", "on time", "correct and on time", "p50 ms", "p99 ms", "send lag p99 ms"
    )
    late = []
    for count in routers:
        with with_routers(spec, count) as path:
            found = measure(path, rate, seconds)
        table.add_row(str(count), *found.cells())
        if found.lag_p99_ms > LAG_LIMIT_MS:
            late.append(count)
    console.print(table)
    if late:
        console.print(f"[red]not valid with {', '.join(map(str, late))} routers: the client could not keep up[/red]")
        raise typer.Exit(3)


@contextmanager
def with_routers(spec: Path, routers: int) -> Iterator[Path]:
    """A copy of a spec with so many routers, beside the original, so that its relative paths hold."""
    document = yaml.safe_load(spec.read_text(encoding="utf-8"))
    document["router"] = {**document.get("router", {}), "replicas": routers}
    with tempfile.NamedTemporaryFile("w", dir=spec.parent, prefix=".routers-", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(document, file)
        file.flush()
        yield Path(file.name)


if __name__ == "__main__":
    typer.run(main)
