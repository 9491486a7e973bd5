"""The command that reports on a ladder: one page with everything known about it, on its test rows."""

import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import cascade
from cascade.assembly import build_policy, read_artefacts
from cascade.calibration.artefact import Calibration, ServiceProfile, TableSource
from cascade.calibration.certificate import digest_of
from cascade.calibration.certify import certify, path_through
from cascade.calibration.frontier import frontier
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.plan import PlanSources, make_plan
from cascade.calibration.watching import fit_product, seen_by_rule
from cascade.cli.console import console, print_json, progress_bar, usage_errors
from cascade.cli.plan import deployment_of
from cascade.cli.simulate import TEST_TABLE, stage_servers, with_replicas
from cascade.errors import CalibrationMismatch, ConfigError
from cascade.report.anytime import Anytime, watch
from cascade.report.degradation import REQUESTS, Rig, degrade
from cascade.report.page import write_report
from cascade.report.reliability import stage_reliability
from cascade.report.style import pyplot
from cascade.report.summary import Report, Source
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster
from cascade.spec import CascadeSpec, Ladder
from cascade.spec_exits import costs_alone

LOADS = "0.5,1,2,4,6,8,10"
"""Multiples of the rate at which the first stage is full."""
HOP_S = 1e-3
"""Seconds to a replica in the simulated loads, and the same back."""
PLAN_SHARE = 0.15
"""Of the progress bar: what the plan takes. Nearly all the rest are the simulated loads."""
SPEC_FILE = "cascade.yaml"

Told = Callable[[str, float], None]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(name="report")(report_command)


def report_command(
    folder: Annotated[
        Path, typer.Argument(help=f"The ladder: a folder with a {SPEC_FILE}, or a spec.", metavar="DIR", show_default=False)
    ],
    table: Annotated[
        Path | None, typer.Option(help=f"Outcome table of test rows; default: {TEST_TABLE} beside the calibration.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report in the ladder's folder.")] = None,
    loads: Annotated[
        str, typer.Option(help="Loads to simulate, as multiples of the rate at which the first stage is full.")
    ] = LOADS,
    seconds: Annotated[
        float | None,
        typer.Option(help=f"Seconds of each load that are measured; default: what {REQUESTS:,} requests take."),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="Share of rows that may be lost: the whole ladder right, the served answer wrong.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Probability with which each statement must be true.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the certificate's division of rows and of the simulations.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Make a page about a ladder: reliability, frontier, certified loss, plan, and what it does under load.

    Everything is computed on test rows, which nothing was fitted on. Writes index.html, which needs no other file, and every
    figure as SVG and PNG.
    """
    with usage_errors():
        pyplot()  # a missing matplotlib is better said before minutes of work than after
        multiples = parse_loads(loads)
        spec_path = folder / SPEC_FILE if folder.is_dir() else folder
        ladder = Ladder.read(spec_path)
        command = _command(folder, table, loads, seconds, max_loss, confidence, seed)
        with progress_bar() as bar:
            task = bar.add_task("read", total=1.0)

            def told(what: str, share: float) -> None:
                bar.update(task, description=what, completed=share)

            made = make_report(
                ladder,
                _test_table(ladder, spec_path, table),
                command=command,
                multiples=multiples,
                seconds=seconds,
                max_loss=max_loss,
                confidence=confidence,
                seed=seed,
                told=told,
            )
            told("draw", 1.0)
            written = write_report(made, out or ladder.root / "report")
    if as_json:
        print_json(made.document() | {"files": [str(path) for path in written]})
        return
    _show(made)
    console.print(f"wrote {written[0]} and {len(written) - 1} figures", highlight=False, markup=False, soft_wrap=True)


def make_report(
    ladder: Ladder,
    table: Path,
    *,
    command: str,
    multiples: list[float],
    seconds: float | None,
    max_loss: float,
    confidence: float,
    seed: int,
    told: Told,
) -> Report:
    """Run every offline tool on a ladder's test rows.

    Args:
        ladder: the ladder, profiled and calibrated.
        table: outcomes of test rows.
        command: to be noted.
        multiples: see `degrade`.
        seconds: see `degrade`.
        max_loss: see `certify`.
        confidence: see `certify`.
        seed: of everything random.
        told: what is being done, and the share that is.

    Raises:
        ConfigError: a file is missing or does not belong, an argument is out of range, or rows are too few.
    """
    calibration, profile = read_artefacts(ladder)
    fitted, outcomes = OutcomeTable.read(ladder.table_path), OutcomeTable.read(table)
    fitted_digest, digest = fitted.digest(), outcomes.digest()
    if fitted_digest != calibration.table.digest:
        raise CalibrationMismatch(
            f"{ladder.calibration_path} was fitted on another table than {ladder.table_path}; run `cascade calibrate` again"
        )
    if digest == fitted_digest:
        raise ConfigError(f"{table}: the calibration was fitted on these very rows; a report needs the ladder's test rows")
    # One router is looked at: several share out replicas and requests alike.
    spec = with_replicas(ladder.spec, [])
    deployment = deployment_of(Ladder(spec, ladder.root), profile, None, {})
    base_prices = spec.base_prices
    told("judge", 0.0)
    judged = judge_table(outcomes, calibration, spec.routing)
    swept = frontier({"calibrated": judged}, operating_prices=base_prices)
    certificate = certify(
        judged,
        max_loss=max_loss,
        confidence=confidence,
        path=path_through(judged.cost, base_prices),
        seed=seed,
        table=TableSource(digest=digest, rows=outcomes.rows, split=None),
        calibration=digest_of(calibration),
    )
    service_digest = digest_of(profile)
    plan = make_plan(
        judged,
        deployment,
        ladder=spec.name,
        sources=PlanSources(table=digest, rows=judged.rows, calibration=digest_of(calibration), service=service_digest),
        certificate=certificate,
        progress=lambda done, total: told("plan", PLAN_SHARE * done / total),
    )
    servers = stage_servers(spec, profile, HOP_S)
    rig = Rig(
        policy=lambda seed: build_policy(spec, profile, seed),
        cluster=lambda seed: Cluster(servers, seed=seed),
        clients=Clients(spec.deadline.default_s, spec.deadline.margin_s, spec.admission.default_priority),
    )
    degradation = degrade(
        judged,
        deployment.capacity,
        base_prices,
        rig,
        multiples,
        seconds=seconds,
        seed=seed,
        progress=lambda share: told("simulate loads", PLAN_SHARE + (1 - PLAN_SHARE) * share),
    )
    return Report(
        name=spec.name,
        version=spec.version,
        command=command,
        made_with=f"cascade {cascade.__version__}, numpy {version('numpy')}, scipy {version('scipy')}",
        sources=_sources(ladder, table, calibration, profile, fitted.rows, outcomes.rows, digest, service_digest),
        calibration=calibration,
        deployment=deployment,
        routers=ladder.spec.router.replicas,
        frontier=swept,
        certificate=certificate,
        reliability=stage_reliability(judged.walk(base_prices)),
        plan=plan,
        degradation=degradation,
        anytime=_watched(spec, calibration, profile, fitted, outcomes),
    )


def _watched(
    spec: CascadeSpec, calibration: Calibration, profile: ServiceProfile, fitted: OutcomeTable, outcomes: OutcomeTable
) -> Anytime | None:
    """What clients that watch see of the test rows; None where a table has no probabilities, or rows skip stages."""
    if spec.routing == "direct" or not all(table.has_probs(name) for table in (fitted, outcomes) for name in table.stages):
        return None
    curves = fit_product(fitted, judge_table(fitted, calibration).exits(spec.base_prices))
    hops = [0.0 if stage.placement == "router" else 2 * HOP_S for stage in spec.stages]
    run_s = [stage.a_s + stage.b_s for stage in profile.stages]
    seconds, alone_s = (
        [each + hop_s for each, hop_s in zip(times, hops, strict=True)]
        for times in (run_s, costs_alone(run_s, [stage.resumes for stage in spec.stages]))
    )
    seen = seen_by_rule(outcomes, calibration, curves)
    return watch(judge_table(outcomes, calibration), outcomes.labels, seen, spec.base_prices, seconds, alone_s)


def parse_loads(text: str) -> list[float]:
    """Multiples from 0.5,1,2.

    Raises:
        ConfigError: it is no such list.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--loads: expected numbers such as {LOADS}, got {text!r}") from None


def _command(
    folder: Path, table: Path | None, loads: str, seconds: float | None, max_loss: float, confidence: float, seed: int
) -> str:
    """The command with all that its result depends on."""
    named = {
        "table": table,
        "loads": loads,
        "seconds": seconds,
        "max-loss": max_loss,
        "confidence": confidence,
        "seed": seed,
    }
    words = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["cascade", "report", str(folder), *words])


def _test_table(ladder: Ladder, spec_path: Path, table: Path | None) -> Path:
    path = ladder.table_path.with_name(TEST_TABLE) if table is None else table
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; outcomes on the ladder's test rows are made by\n"
            f"cascade profile {spec_path} --split test --out {path}"
        )
    return path


def _sources(
    ladder: Ladder,
    table: Path,
    calibration: Calibration,
    profile: ServiceProfile,
    fitted_rows: int,
    rows: int,
    digest: str,
    service_digest: str,
) -> tuple[Source, ...]:
    def name(path: Path) -> str:
        path = path.resolve()
        return str(path.relative_to(ladder.root)) if path.is_relative_to(ladder.root) else path.name

    spec_digest = digest_of(ladder.spec)
    used = calibration.table.split
    part = f"{fitted_rows:,} rows" if used is None else f"{calibration.table.rows:,} rows of split {used}"
    return (
        Source(SPEC_FILE, spec_digest, "stages, prices, replicas, deadline"),
        Source(name(ladder.table_path), calibration.table.digest, f"{part}: the calibration was fitted on them"),
        Source(name(ladder.calibration_path), digest_of(calibration), "temperatures, probabilities of being right, gains"),
        Source(
            name(ladder.service_path),
            service_digest,
            f"service times, measured on {profile.machine.kind}, {profile.machine.cpu_count} CPUs",
        ),
        Source(name(table), digest, f"{rows:,} test rows: every result on this page"),
    )


def _show(made: Report) -> None:
    own, main = made.own, made.frontier.main
    shown = Table(title=f"{made.name}: {made.judged.rows:,} test rows", title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    shown.add_row("accuracy, nothing loaded", f"{own.accuracy:.2%}")
    shown.add_row(f"accuracy of {made.judged.stages[-1]} alone", f"{main.top_accuracy:.2%}")
    shown.add_row("times cheaper than it", f"{main.top_cost / own.cost:.3g}")
    shown.add_row("certified loss, at most", f"{made.own_bound:.2%}")
    shown.add_row(f"{made.degradation.stage} is full at", f"{made.degradation.full_at:,.4g} requests/s")
    for load in made.degradation.loads:
        gained = "" if load.efficiency is None else f", E {load.efficiency:.3f} ± {load.efficiency_se:.3f}"
        shown.add_row(f"right and in time at {load.multiple:g} times that", f"{load.accuracy:.2%}{gained}")
    console.print(shown)
