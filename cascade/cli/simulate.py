"""The command that runs the ladder's policy in virtual time over a workload."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from cascade.assembly import build_policy, read_artefacts
from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.fluid import Capacity, Fluid, floor
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import judge_table, market_of
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.plan import Plan
from cascade.cli.console import console, errors, narrow_table, print_json, progress_bar, read_seconds, usage_errors
from cascade.cli.outputs import amount, say_written, write_outputs
from cascade.errors import ConfigError
from cascade.report.simulation import simulation_figure
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster, Slowdown, StageServers
from cascade.simulation.outcome import Limits, Outcome, PhaseReport, summarise
from cascade.simulation.planner import market_planner
from cascade.simulation.record import Record
from cascade.simulation.simulator import Planner, draw_rows, simulate
from cascade.simulation.workload import GRAMMAR, Workload, draw, parse_workload, run_streams
from cascade.spec import CascadeSpec, Ladder
from cascade.spec_exits import groups_of, owner_of, owners_of

SECONDS = 30.0
"""Length of a workload that has no end of its own."""
TEST_TABLE = "test-outcomes.npz"
"""Beside the calibration: outcomes on rows that it was not fitted on."""
STEADY_DEADLINES = 5
"""A phase of fewer deadlines is not steady: what waits at its end is a good part of what it brought."""

_SLOWDOWN = re.compile(r"([^:]+):([\d.]+)-([\d.]+)x([\d.]+|inf)")

SHOWN_PHASES = 5
"""More columns do not fit into a terminal."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(name="simulate")(simulate_command)


@dataclass(frozen=True)
class _Run:
    """One workload, simulated."""

    workload: str
    record: Record
    outcome: Outcome


def simulate_command(
    spec: Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)],
    workload: Annotated[
        list[str],
        typer.Option(help="When requests come; may be given several times.\n\n" + GRAMMAR.replace("\n", "\n\n")),
    ],
    seconds: Annotated[
        float | None, typer.Option(help=f"How long; default: as long as the workload, or {SECONDS:g}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, rows and service times.")] = 0,
    replicas: Annotated[
        list[str] | None, typer.Option(help="Replicas of a stage instead of the spec's, as in tiny=2.", metavar="STAGE=N")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="Time that each request has; default: the spec's.")] = None,
    cv: Annotated[float, typer.Option(help="Coefficient of variation of service times (lognormal).")] = 0.1,
    hop: Annotated[str, typer.Option(help="Time to a replica, and the same back.")] = "1ms",
    slow: Annotated[
        list[str] | None,
        typer.Option(
            help="A stage takes longer for a while, as in small:5-10x3; xinf is an outage.", metavar="STAGE:FROM-TOxF"
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help=f"Outcome table that requests are drawn from; default: {TEST_TABLE} of the ladder, or its own."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="plan.json: its prices at the measured rate, instead of the market's, which the server sets."),
    ] = None,
    base_prices: Annotated[bool, typer.Option("--base-prices", help="No prices but the spec's base prices.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write STEM.svg, STEM.png and STEM.json.", metavar="STEM")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Simulate the ladder under load: the server's own policy in virtual time, with measured service times.

    Requests are rows of an outcome table, so no model runs. E is the share of what the fluid limit allows over the
    cheapest stage alone.
    """
    with usage_errors():
        workloads = {text: parse_workload(text) for text in workload}
        ladder = Ladder.read(spec)
        calibration, profile = read_artefacts(ladder)
        ladder_spec = with_replicas(ladder.spec, replicas or [])
        clients = Clients(
            ladder_spec.deadline.default_s if deadline is None else read_seconds(deadline, "--deadline"),
            ladder_spec.deadline.margin_s,
            ladder_spec.admission.default_priority,
        )
        servers = stage_servers(ladder_spec, profile, read_seconds(hop, "--hop"))
        slowdowns = [parse_slowdown(text, ladder_spec) for text in slow or []]
        table_path = default_table(ladder) if table is None else table
        outcomes = OutcomeTable.read(table_path)
        if outcomes.digest() == calibration.table.digest:
            errors.print(
                "[yellow]note:[/yellow] these are the rows that the calibration was fitted on; it looks better than it is"
            )
        judged = judge_table(outcomes, calibration, ladder_spec.routing)
        planner = None if base_prices else _planner(plan, ladder, calibration, judged, [each.replicas for each in servers])
        limits = fluid_limits(judged, ladder_spec, servers)
        runs = []
        with progress_bar() as bar:
            for text, law in workloads.items():
                task = bar.add_task(escape(text), total=1.0)
                record = _simulate(
                    ladder_spec,
                    profile,
                    Cluster(servers, slowdowns=slowdowns, cv=cv, seed=run_streams(seed)[2]),
                    judged,
                    law,
                    clients,
                    length_s(law, seconds),
                    seed,
                    planner,
                    partial(_advance, bar, task),
                )
                bar.update(task, completed=1.0)
                runs.append(_Run(text, record, summarise(record, judged, limits)))
        head = {
            "ladder": ladder_spec.name,
            "table": str(table_path),
            "rows": judged.rows,
            "seed": seed,
            "deadline_s": clients.deadline_s,
            "replicas": {stage.name: server.replicas for stage, server in zip(ladder_spec.stages, servers, strict=True)},
        }
        if any(np.diff(run.record.arrivals.edges).min() < STEADY_DEADLINES * clients.deadline_s for run in runs):
            errors.print(
                "[yellow]note:[/yellow] A* and E are meant for steady load: where a phase lasts less than "
                f"{STEADY_DEADLINES} deadlines, much of its work is done after it, and E may exceed 1"
            )
        documents = [{"workload": run.workload, **run.outcome.document()} for run in runs]
        written = [] if out is None else _write(out, head, documents, runs, judged)
    if as_json:
        print_json({**head, "runs": documents})
        return
    _show(runs, judged)
    if written:
        say_written(written)


def _planner(
    path: Path | None, ladder: Ladder, calibration: Calibration, judged: JudgedTable, replicas: list[int]
) -> Planner | None:
    """The slow loop: prices of the market or of a plan, for the rate that is measured."""
    if path is None:
        if not ladder.table_path.is_file():
            return None  # as in the server
        traffic = judge_table(OutcomeTable.read(ladder.table_path), calibration, ladder.spec.routing)
        spec = ladder.spec
        return market_planner(market_of(traffic, spec.base_prices, pools=owners_of(spec.stages)), replicas)
    plan = Plan.read(path)
    if tuple(stage.name for stage in plan.stages) != judged.stages:
        raise ConfigError(f"{path}: made for other stages, {', '.join(stage.name for stage in plan.stages)}")
    return lambda _now, rate, _driven: plan.at(rate).prices


def _simulate(
    spec: CascadeSpec,
    profile: ServiceProfile,
    cluster: Cluster,
    judged: JudgedTable,
    law: Workload,
    clients: Clients,
    seconds: float | None,
    seed: int,
    planner: Planner | None,
    progress: Callable[[float], None],
) -> Record:
    arrival_seed, row_seed, _ = run_streams(seed)
    arrivals = draw(law, seconds, arrival_seed)
    rows = draw_rows(judged, len(arrivals.instants), row_seed)
    policy = build_policy(spec, profile, seed)
    return simulate(policy, cluster, judged, arrivals, rows, clients, planner=planner, progress=progress)


def _write(
    out: Path, head: dict[str, object], documents: list[dict[str, object]], runs: list[_Run], judged: JudgedTable
) -> list[Path]:
    """One figure and one document a run, numbered if there are several."""
    written = []
    for place, (run, document) in enumerate(zip(runs, documents, strict=True), start=1):
        stem = out if len(runs) == 1 else out.with_name(f"{out.stem}-{place}")
        figure = simulation_figure(run.record, judged, run.outcome, f"{head['ladder']}, {run.workload}")
        written += write_outputs(stem, figure, {**head, "runs": [document]})
    return written


def _advance(bar: Progress, task: TaskID, share: float) -> None:
    bar.update(task, completed=share)


# -- arguments ---------------------------------------------------------------------------------------------------------


def parse_slowdown(text: str, spec: CascadeSpec) -> Slowdown:
    """A slowdown such as small:5-10x3, or xinf for an outage.

    Raises:
        ConfigError: it is none, or there is no such stage.
    """
    match = _SLOWDOWN.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        from_s, to_s, factor = (float(number) for number in match.groups()[1:])
    except ValueError:
        raise ConfigError(f"--slow: expected STAGE:FROM-TOxFACTOR, as in small:5-10x3, got {text!r}") from None
    return Slowdown(_stage_index(match[1], spec, "--slow"), from_s, to_s, factor)


def _stage_index(name: str, spec: CascadeSpec, option: str) -> int:
    names = [stage.name for stage in spec.stages]
    if name not in names:
        raise ConfigError(f"{option}: there is no stage {name!r}, only {', '.join(names)}")
    return names.index(name)


def with_replicas(spec: CascadeSpec, texts: list[str]) -> CascadeSpec:
    """The spec with one router, and with other replicas for some stages.

    Args:
        spec: the ladder's.
        texts: such as tiny=2.

    Raises:
        ConfigError: a text is no such thing, or names a stage that has no replicas.
    """
    stages = list(spec.stages)
    for text in texts:
        name, _, count = text.partition("=")
        index = _stage_index(name, spec, "--replicas")
        if not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--replicas: expected STAGE=N with N from 1, as in tiny=2, got {text!r}")
        if stages[index].placement == "together":
            owner = spec.stages[owner_of(spec.stages, index)].name
            raise ConfigError(f"--replicas: stage {name!r} runs together with {owner!r}, whose replicas it has")
        if stages[index].placement == "router":
            raise ConfigError(f"--replicas: stage {name!r} runs inside the router and has none")
        stages[index] = stages[index].model_copy(update={"replicas": int(count)})
    router = spec.router.model_copy(update={"replicas": 1})
    return spec.model_copy(update={"stages": tuple(stages), "router": router})


def default_table(ladder: Ladder) -> Path:
    """The ladder's outcomes on test rows if it has them, else those on its calibration rows."""
    test = ladder.table_path.with_name(TEST_TABLE)
    return test if test.is_file() else ladder.table_path


def length_s(law: Workload, seconds: float | None) -> float | None:
    """How long to draw from a workload: what was asked for, else its own length, else the usual one."""
    return SECONDS if seconds is None and law.length_s is None else seconds


def stage_servers(spec: CascadeSpec, profile: ServiceProfile, hop_s: float) -> list[StageServers]:
    """The machines of a spec: a stage inside the router runs one batch at a time, without a hop, and each router has one."""
    servers = []
    for index, (stage, measured) in enumerate(zip(spec.placed, profile.stages, strict=True)):
        owner = owner_of(spec.stages, index)
        one = StageServers(measured.a_s, measured.b_s, spec.router.replicas, owner=None if owner == index else owner)
        if stage.placement != "router":
            one = replace(
                one,
                replicas=stage.replicas,
                calls_per_replica=stage.calls_per_replica,
                hop_s=hop_s,
                merged_rows=stage.max_batch_size,
            )
        servers.append(one)
    return servers


def fluid_limits(judged: JudgedTable, spec: CascadeSpec, servers: list[StageServers]) -> Limits:
    """The fluid limit at a rate on these machines, and the floor; rows a second at full batches."""
    rows_per_s = []
    for stage, server in zip(spec.stages, servers, strict=True):
        batch_s = server.a_s + server.b_s * stage.max_batch_size
        # A replica works all the time only if the next batch is there when one is done.
        calls_per_s = min(server.replicas / batch_s, server.slots / (batch_s + 2 * server.hop_s))
        rows_per_s.append(stage.max_batch_size * calls_per_s)
    capacity = Capacity(np.array(rows_per_s), together=groups_of(spec.stages))
    fluid = Fluid(judged)
    return Limits(lambda rate: fluid.at(rate, capacity).accuracy, lambda rate: floor(judged, rate, capacity))


# -- showing -----------------------------------------------------------------------------------------------------------


def _show(runs: list[_Run], judged: JudgedTable) -> None:
    """One table a workload, a column for each phase: there are more figures than phases."""
    console.print(f"requests drawn from {judged.rows:,} rows", highlight=False)
    for run in runs:
        phases = run.outcome.phases
        few = 1 < len(phases) <= SHOWN_PHASES
        shown = narrow_table(
            run.workload, None if few or len(phases) < 2 else f"{len(phases)} phases: all together here, each with --json"
        )
        shown.add_column("", no_wrap=True)
        for phase in phases if few else ():
            shown.add_column(escape(phase.name), justify="right")
        shown.add_column("all" if few else "", justify="right")
        columns = [_cells(phase) for phase in (*phases, run.outcome.overall)] if few else [_cells(run.outcome.overall)]
        for name in columns[0]:
            shown.add_row(escape(name), *(column[name] for column in columns))
        console.print(shown)
    console.print(
        "[dim]best possible: A*, the fluid limit at this rate; E: share of the way to it from stage 0 alone[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _cells(phase: PhaseReport) -> dict[str, str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    def milliseconds(value: float | None) -> str:
        return "" if value is None else f"{1e3 * value:,.1f} ms"

    accuracy = ""
    if phase.accuracy is not None and phase.accuracy_low is not None and phase.accuracy_high is not None:
        accuracy = f"{phase.accuracy:.1%} ± {(phase.accuracy_high - phase.accuracy_low) / 2:.1%}"
    return {
        "requests/s": f"{phase.offered_per_s:,.0f}",
        "answered on time": percent(phase.slo_attainment),
        "accuracy": accuracy,
        "best possible": percent(phase.best),
        "E": "" if phase.efficiency is None else f"{phase.efficiency:.2f} ± {phase.efficiency_se:.2f}",
        "degraded": percent(phase.degraded),
        "shed": percent(phase.shed / phase.offered if phase.offered else None),
        "latency p50": milliseconds(phase.p50_s),
        "latency p99": milliseconds(phase.p99_s),
        "mean cost": "" if phase.mean_cost is None else amount(phase.mean_cost),
        **{f"answered by {stage}": percent(share) for stage, share in phase.exits.items()},
    }
