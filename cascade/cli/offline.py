"""Commands about one ladder that need no server: check, profile, schema."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.cli.console import console, print_json, progress_bar, usage_errors, writing
from cascade.errors import ConfigError
from cascade.spec import Ladder, json_schema
from cascade.versions import build_digest, version_digest

SpecPath = Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(check)
    app.command()(profile)
    app.command()(schema)


def check(spec: SpecPath, as_json: AsJson = False) -> None:
    """Check a spec, its weights and its calibration without starting anything."""
    from cascade.loading import check_networks  # torch takes a second to import, which other commands need not wait for

    with usage_errors():
        ladder = Ladder.read(spec)
        digests = ladder.stage_digests()
        check_networks(ladder)
        problem = _calibration_problem(ladder, digests)
        build, version = build_digest(ladder, digests), version_digest(ladder, digests)
    if as_json:
        facts = {"name": ladder.spec.name, "stages": digests, "build": build, "version": version}
        print_json({**facts, "calibrated": problem is None, "problem": problem})
    else:
        table = Table(title=f"{ladder.spec.name} {ladder.spec.version}", title_justify="left")
        for column in ("stage", f"cost ({ladder.spec.cost_unit})", "step", "placement", "base price", "digest"):
            table.add_column(column, justify="right" if "cost" in column or column == "step" else "left")
        before = None
        for stage, price, alone in zip(ladder.spec.stages, ladder.spec.base_prices, ladder.spec.costs_alone, strict=True):
            step = "" if before is None else f"x{alone / before:.1f}"
            before = alone
            where = stage.placement if stage.placement != "replica" else f"{stage.replicas} replica(s)"
            row = (stage.name, f"{stage.cost:,.0f}", step, where, f"{price:.3g}", digests[stage.name][:12])
            table.add_row(*row)
        console.print(table)
        console.print(f"build {build}, version {version}", highlight=False)
        console.print("spec is valid" + ("; calibration belongs to it" if problem is None else ""))
        if problem is not None:
            console.print(f"[yellow]not ready to serve:[/yellow] {escape(problem)}")
    if problem is not None:
        raise typer.Exit(1)


def _calibration_problem(ladder: Ladder, digests: dict[str, str]) -> str | None:
    try:
        Calibration.read(ladder.calibration_path).check_belongs(list(digests), digests)
        ServiceProfile.read(ladder.service_path).check_belongs(list(digests), digests)
    except ConfigError as error:
        return error.detail
    return None


def profile(
    spec: SpecPath,
    split: Annotated[str, typer.Option(help="Which rows to run: calibration or test.")] = "calibration",
    out: Annotated[
        Path | None, typer.Option(help="Outcome table to write; default: the ladder's own, for the calibration rows.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage over labelled rows: writes the outcome table and, for the calibration rows, the service times."""
    from cascade.profiling import profile as run_profile

    with usage_errors():
        ladder = Ladder.read(spec)
        sources = {"calibration": ladder.spec.data.calibration, "test": ladder.spec.data.test}
        if split not in sources:
            raise ConfigError(f"--split must be calibration or test, got {split!r}")
        if out is None and split != "calibration":
            raise ConfigError("--split test needs --out: only calibration rows belong into the ladder's own table")
        with progress_bar() as bar:
            task = bar.add_task("profile", total=1.0)

            def progress(what: str, share: float) -> None:
                bar.update(task, completed=share, description=f"profile {what}")

            table, service = run_profile(ladder, ladder.path(sources[split]), split, progress)
        table_path = out or ladder.table_path
        with writing(table_path):
            table.write(table_path)
        if split == "calibration":
            with writing(ladder.service_path):
                service.write(ladder.service_path)
    if as_json:
        print_json(
            {
                "table": str(table_path),
                "rows": table.rows,
                "split": split,
                "accuracy": {stage: float(table.correct(stage).mean()) for stage in table.stages},
                "service": {stage.name: {"a_s": stage.a_s, "b_s": stage.b_s} for stage in service.stages},
            }
        )
        return
    shown = Table(title=f"{table.rows:,} {split} rows of {ladder.path(sources[split])}", title_justify="left")
    for column in ("stage", f"cost ({ladder.spec.cost_unit})", "accuracy", "1 row", "full batch", "per row in it"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage, times in zip(ladder.spec.stages, service.stages, strict=True):
        one, full = times.measured[0], times.measured[-1]
        shown.add_row(
            stage.name,
            f"{stage.cost:,.0f}",
            f"{table.correct(stage.name).mean():.2%}",
            f"{one.median_s * 1e3:.2f} ms",
            f"{full.median_s * 1e3:.2f} ms ({full.rows} rows)",
            f"{full.median_s / full.rows * 1e3:.3f} ms",
        )
    console.print(shown)
    console.print(f"wrote {table_path}")


def schema() -> None:
    """Print the JSON Schema of cascade.yaml, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))
