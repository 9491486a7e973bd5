"""The command that plans: prices, and what comes of them, by arrival rate; and how many replicas a target takes."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from cascade.assembly import read_artefacts
from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.certificate import Certificate, digest_of
from cascade.calibration.deployment import Deployment, StageInputs
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.plan import Plan, PlanPoint, PlanSources, make_plan
from cascade.calibration.replicas import Suggestion, best_within, budget_units, cheapest
from cascade.cli.console import console, narrow_table, print_json, progress_bar, read_seconds, usage_errors, writing
from cascade.errors import ConfigError
from cascade.policy.market import RHO
from cascade.report.plan import plan_figure
from cascade.report.style import save
from cascade.spec import Ladder
from cascade.spec_exits import owners_of

SLACK = 0.001
"""How much less than the unloaded accuracy is asked for when no target is named."""
SHOWN = 16
"""Rates shown to a person, about; the file has them all."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(plan)


def plan(
    spec: Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)],
    rate: Annotated[float | None, typer.Option(help="Requests a second to choose replicas for, and to mark.")] = None,
    slo: Annotated[
        str | None, typer.Option(help="Latency that 99 % must keep: 100ms, 0.1s or 0.1; default: the spec's deadline.")
    ] = None,
    replicas: Annotated[str | None, typer.Option(help="Replicas other than the spec's, as tiny=2,large=4.")] = None,
    max_gpus: Annotated[float | None, typer.Option(help="Choose the best replicas with at most so many GPUs.")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="The same with at most so many replicas, where no stage has a GPU.")
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(help="Choose the fewest replicas that reach it; default: the unloaded accuracy less 0.1 points."),
    ] = None,
    shared_cores: Annotated[float | None, typer.Option(help="Cores, where all stages share the same ones.")] = None,
    rho: Annotated[float, typer.Option(help="Part of the capacity that prices are made for.")] = RHO,
    table: Annotated[
        Path | None, typer.Option(help="Outcome table; default: the ladder's own, on which it was calibrated.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate that bounds the loss at the prices.")] = None,
    out: Annotated[Path | None, typer.Option(help="Plan file to write.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write, as SVG and PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Plan prices, accuracy, latency and cost by arrival rate, and how many replicas a target takes.

    Exits with 1 if a target that was named cannot be reached.
    """
    with usage_errors():
        ladder = Ladder.read(spec)
        calibration, service = read_artefacts(ladder)
        deployment = deployment_of(ladder, service, shared_cores, read_replicas(replicas))
        slo_s = ladder.spec.deadline.default_s if slo is None else read_seconds(slo, "--slo")
        if slo_s <= 0:
            raise ConfigError(f"--slo: expected a time above 0, got {slo!r}")
        budget = _budget(deployment, max_gpus, max_replicas)
        if rate is None and (budget is not None or target_accuracy is not None):
            raise ConfigError("to choose replicas, name the arrival rate: --rate")
        if budget is not None and target_accuracy is not None:
            raise ConfigError("name either a budget or a target accuracy, not both")
        outcomes = OutcomeTable.read(table or ladder.table_path)
        certified = None if certificate is None else Certificate.read(certificate)
        if certified is not None:
            certified.check_belongs(calibration, ladder.spec.routing)
        with progress_bar() as bar:
            task = bar.add_task("plan", total=1.0)
            judged = judge_table(outcomes, calibration, ladder.spec.routing)
            made = make_plan(
                judged,
                deployment,
                ladder=ladder.spec.name,
                sources=_sources(outcomes, calibration, service, certified),
                rate=rate,
                rho=rho,
                certificate=certified,
                progress=lambda done, total: bar.update(task, completed=done / total),
            )
            suggestion = None
            if rate is not None:
                bar.update(task, description="replicas")
                suggestion = _suggest(judged, deployment, rate, slo_s, budget, target_accuracy, made.unloaded_accuracy)
        if out is not None:
            with writing(out):
                made.write(out)
        if figure is not None:
            save(plan_figure(made, marked=rate), figure)
    if as_json:
        suggested = None if suggestion is None else _as_document(suggestion)
        print_json({"plan": made.model_dump(mode="json"), "suggestion": suggested})
    else:
        _show(made, rate, "its own calibration rows" if table is None else str(table))
        if suggestion is not None:
            _show_suggestion(suggestion, deployment, slo_s, budget)
        for path in (out, figure):
            if path is not None:
                console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    named = slo is not None or budget is not None or target_accuracy is not None
    if named and suggestion is not None and suggestion.shortfall is not None:
        raise typer.Exit(1)


def read_replicas(text: str | None) -> dict[str, int]:
    """Numbers of replicas by stage from ``tiny=2,large=4``.

    Raises:
        ConfigError: it is not of that form, or a stage is named twice.
    """
    counts: dict[str, int] = {}
    for part in text.split(",") if text else []:
        name, _, number = part.strip().partition("=")
        if not name or not number.isdecimal() or int(number) < 1 or name in counts:
            raise ConfigError(f"--replicas: expected such as tiny=2,large=4, each stage once and from 1, got {text!r}")
        counts[name] = int(number)
    return counts


def deployment_of(
    ladder: Ladder, service: ServiceProfile, shared_cores: float | None, replicas: dict[str, int]
) -> Deployment:
    """The ladder as its spec deploys it, with these numbers of replicas instead.

    Raises:
        ConfigError: a number is given for a stage that is not there, or that runs in the router.
    """
    spec = ladder.spec
    stages = []
    owners = owners_of(spec.stages)
    for index, (stage, base_price, measured) in enumerate(zip(spec.placed, spec.base_prices, service.stages, strict=True)):
        owner = spec.stages[owners[index]]
        if owner.name != stage.name and stage.name in replicas:
            raise ConfigError(f"--replicas: stage {stage.name!r} runs together with {owner.name!r}, whose replicas it has")
        in_router = stage.placement == "router"
        if in_router and stage.name in replicas:
            raise ConfigError(f"--replicas: stage {stage.name!r} runs inside the router and has no replicas of its own")
        stages.append(
            StageInputs(
                name=stage.name,
                a_s=measured.a_s,
                b_s=measured.b_s,
                max_batch_size=stage.max_batch_size,
                replicas=spec.router.replicas if in_router else replicas.get(owner.name, stage.replicas),
                calls=1 if in_router else stage.calls_per_replica,
                base_price=base_price,
                num_cpus=stage.num_cpus,
                num_gpus=0.0 if in_router else stage.num_gpus,
                fixed=in_router or owner.name != stage.name,
                owner=None if owner.name == stage.name else owners[index],
            )
        )
    unknown = replicas.keys() - {stage.name for stage in stages}
    if unknown:
        names = ", ".join(stage.name for stage in stages)
        raise ConfigError(f"--replicas: no stage {min(unknown)!r} in the ladder, which has {names}")
    return Deployment(tuple(stages), spec.deadline.default_s, spec.admission.wait_share, shared_cores)


def _budget(deployment: Deployment, max_gpus: float | None, max_replicas: int | None) -> float | None:
    """The budget in the units that count here: GPUs where a stage has any, else replicas."""
    has_gpus = any(stage.num_gpus for stage in deployment.stages)
    if max_gpus is not None and not has_gpus:
        raise ConfigError("--max-gpus: no stage of this ladder has num_gpus above 0; use --max-replicas")
    if max_replicas is not None and has_gpus:
        raise ConfigError("--max-replicas: stages of this ladder have num_gpus; use --max-gpus")
    return max_gpus if max_gpus is not None else max_replicas


def _sources(
    outcomes: OutcomeTable, calibration: Calibration, service: ServiceProfile, certificate: Certificate | None
) -> PlanSources:
    return PlanSources(
        table=outcomes.digest(),
        rows=outcomes.rows,
        calibration=digest_of(calibration),
        service=digest_of(service),
        certificate=None if certificate is None else digest_of(certificate),
    )


def _suggest(
    judged: JudgedTable,
    deployment: Deployment,
    rate: float,
    slo_s: float,
    budget: float | None,
    target: float | None,
    unloaded: float,
) -> Suggestion:
    if budget is not None:
        return best_within(judged, deployment, rate, budget, slo_s)
    return cheapest(judged, deployment, rate, unloaded - SLACK if target is None else target, slo_s)


def _as_document(suggestion: Suggestion) -> dict[str, Any]:
    deployment, point = suggestion.deployment, suggestion.point
    return {
        "rate": point.rate,
        "replicas": suggestion.replicas,
        "gpus": suggestion.gpus,
        "accuracy": point.accuracy,
        "accuracy_with_headroom": suggestion.assured,
        "p99_s": suggestion.p99_s,
        "utilisation": dict(zip(suggestion.replicas, deployment.utilisation(point).tolist(), strict=True)),
        "shortfall": suggestion.shortfall,
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2g} ms"


def _shown(made: Plan, rate: float | None) -> list[PlanPoint]:
    """Some of the points, evenly spread, with the first, the last and the one asked for."""
    if len(made.points) <= SHOWN:
        return list(made.points)
    wanted = {round(index) for index in np.linspace(0, len(made.points) - 1, SHOWN)}
    return [point for index, point in enumerate(made.points) if index in wanted or point.rate == rate]


def _show(made: Plan, rate: float | None, rows: str) -> None:
    cores = "" if made.shared_cores is None else f", {made.shared_cores:g} cores shared by all"
    counts = ", ".join(f"{stage.replicas} {stage.name}" for stage in made.stages)
    caption = f"{made.made_from.rows:,} rows ({rows}); replicas: {counts}{cores}"
    shown = narrow_table(
        f"{made.ladder}: {caption}",
        f"exits: share answered by each stage, %. A*: the fluid limit. cost: mean {made.cost_unit} a request. "
        "p99: estimated. All of it is about the stages: what the router itself can take is not in it.",
    )
    shown.add_column("requests/s", justify="right", no_wrap=True)
    certified = made.points[0].certified_loss is not None
    columns = ["accuracy", "A*", *(["lost <"] if certified else []), "degraded", "shed", "p99", "cost", "exits", "busiest"]
    for column in columns:
        shown.add_column(column, justify="left" if column == "busiest" else "right", no_wrap=True)
    for point in _shown(made, rate):
        loads: defaultdict[str, float] = defaultdict(float)
        for part, stage in zip(point.utilisation, made.stages, strict=True):
            loads["cores" if made.shared_cores is not None else stage.owner or stage.name] += part
        name, load = max(loads.items(), key=lambda pair: pair[1])
        cells = [
            ("> " if point.rate == rate else "") + f"{point.rate:,.0f}" if point.rate >= 10 else f"{point.rate:g}",
            f"{point.accuracy:.2%}",
            f"{point.limit:.2%}",
            *([f"{point.certified_loss:.2%}"] if point.certified_loss is not None else []),
            _percent(point.degraded),
            _percent(point.shed),
            _milliseconds(point.p99_s),
            _short(point.cost),
            "/".join(f"{100 * share:.0f}" for share in point.exit_shares),
            f"{load:.0%} {name}",
        ]
        shown.add_row(*cells, style="bold" if point.rate == rate else None)
    console.print(shown)
    if rate is not None:
        _show_stages(made, made.at(rate))


def _short(amount: float) -> str:
    """A number in at most five characters: 0.12, 5.40M."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= factor:
            return f"{amount / factor:.3g}{suffix}"
    return f"{amount:.3g}"


def _percent(share: float) -> str:
    return "" if share == 0 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _show_stages(made: Plan, point: PlanPoint) -> None:
    table = narrow_table(f"at {point.rate:,.6g} requests/s")
    for column in ("stage", "replicas", "visits/s", "capacity/s", "utilisation", "base price", "price"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for k, stage in enumerate(made.stages):
        visits = point.rate * sum(point.exit_shares[k:])
        table.add_row(
            stage.name,
            str(stage.replicas),
            f"{visits:,.1f}",
            f"{stage.rows_per_s:,.0f}",
            f"{point.utilisation[k]:.1%}",
            "" if k == 0 else f"{stage.base_price:.3g}",
            "" if k == 0 else f"{point.prices[k]:.3g}",
        )
    console.print(table)


def _show_suggestion(found: Suggestion, deployment: Deployment, slo_s: float, budget: float | None) -> None:
    now = {stage.name: stage.replicas for stage in deployment.stages}
    free = [stage.name for stage in deployment.stages if not stage.fixed]
    changed = [f"{name}={found.replicas[name]}" for name in free if found.replicas[name] != now[name]]
    what = "fewest replicas" if budget is None else f"best within {budget:g}"
    unit = "GPUs" if any(stage.num_gpus for stage in deployment.stages) else "replicas"
    taken = float(budget_units(found.deployment) @ [stage.replicas for stage in found.deployment.stages])
    said = ", ".join(f"{name}={found.replicas[name]}" for name in free)
    console.print(
        f"[bold]{what} at {found.point.rate:,.6g}/s[/bold]: {escape(said)} ({taken:g} {unit}"
        f"{', as now' if not changed else ''}): accuracy {found.point.accuracy:.2%}, "
        f"p99 {_milliseconds(found.p99_s)} of {_milliseconds(slo_s)}",
        highlight=False,
        soft_wrap=True,
    )
    if found.shortfall is not None:
        console.print(f"[yellow]not reached:[/yellow] {escape(found.shortfall)}", highlight=False, soft_wrap=True)
