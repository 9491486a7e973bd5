"""The command that chooses the rungs of a ladder from a zoo of models."""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.ladder import MOST_EXACT, Design, ExactLadder, Ladder, rung_savings
from cascade.calibration.ladder import design as make_design
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.zoo import Zoo
from cascade.cli.console import console, print_json, usage_errors
from cascade.cli.outputs import amount, say_written, times, write_outputs
from cascade.errors import ConfigError
from cascade.report.ladder import ladder_figure

LISTS = (".csv", ".json", ".yaml", ".yml")
"""Files that name models with their accuracies and costs; any other is read as an outcome table."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(ladder)


def ladder(
    zoo: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSON or YAML with model, accuracy (0 to 1) and cost; or an outcome table.", show_default=False
        ),
    ],
    rungs: Annotated[int, typer.Option(help="Largest number of rungs.")] = 8,
    cost_unit: Annotated[str, typer.Option(help="What the costs of a list count, such as MAC.")] = "",
    cost_by: Annotated[
        str,
        typer.Option(
            help="For a table: declared, its own costs, or seconds, what a row of a full batch was measured to take."
        ),
    ] = "declared",
    service: Annotated[
        Path | None,
        typer.Option(help="service.json with those times; default: the one beside the table.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write STEM.svg, STEM.png and STEM.json.", metavar="STEM")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Choose the models of a ladder, and see what every rung is worth.

    Costs are those of an agent that knows which model is right, where a model is right wherever a cheaper one is: what can
    be had for certain from accuracies and costs alone. An outcome table also gives the exact bound, row by row.
    """
    with usage_errors():
        made = make_design(_read(zoo, cost_unit, _service(zoo, cost_by, service)), rungs)
        document = made.document()
        written = [] if out is None else write_outputs(out, ladder_figure(made), document)
    if as_json:
        print_json(document)
        return
    _show_ladders(made, str(zoo))
    _show_rungs(made)
    if written:
        say_written(written)


def _service(zoo: Path, cost_by: str, service: Path | None) -> Path | None:
    """The file to take measured times from, if they are to be the costs."""
    if cost_by not in ("declared", "seconds"):
        raise ConfigError(f"--cost-by: expected declared or seconds, got {cost_by!r}")
    if cost_by == "declared":
        if service is not None:
            raise ConfigError("--service holds times: it goes with --cost-by seconds")
        return None
    if zoo.suffix in LISTS:
        raise ConfigError(f"--cost-by seconds needs an outcome table, of which times were measured; {zoo} is a list")
    return zoo.parent / "service.json" if service is None else service


def _read(path: Path, cost_unit: str, service: Path | None) -> Zoo:
    if path.suffix not in LISTS:
        table = OutcomeTable.read(path)
        if service is None:
            return Zoo.of_table(table)
        seconds = {stage.name: stage.row_s for stage in ServiceProfile.read(service).stages}
        if missing := [stage for stage in table.stages if stage not in seconds]:
            raise ConfigError(f"{service}: has no times of stage {missing[0]!r}, which is in {path}")
        return Zoo.of_table(table, seconds, "seconds")
    try:
        lines = _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (csv.Error, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: is not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise ConfigError(f"{path}: expected a list of models, each with model, accuracy and cost")
    try:
        return Zoo.of(lines, cost_unit)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.detail}") from error


def _lines(path: Path) -> Any:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as stream:
            # Cells beyond the header come under the key None, which is no field of anything.
            return [{name: cell for name, cell in line.items() if name and cell} for line in csv.DictReader(stream)]
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def _show_ladders(made: Design, source: str) -> None:
    zoo, top = made.zoo, made.zoo.names[int(made.kept[-1])]
    console.print(
        f"{len(zoo.names)} models of {source}, {len(zoo.names) - len(made.kept)} dominated; "
        f"gain: times cheaper than {top} alone, for an agent that knows which model is right",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    _show_best(
        "Router: a row pays only the model that answers", made, made.by_router, made.exact_by_router, sequential=False
    )
    title = "Cascade: a row pays every model on the way"
    _show_best(title, made, made.by_cascade, made.exact_by_cascade, sequential=True)
    if zoo.right is not None and made.exact_by_router is None:
        console.print(f"row by row, all ladders are tried for up to {MOST_EXACT} models")
    if made.alpha is not None:
        console.print(f"a dearer model is right on {made.alpha:.1%} of what some cheaper one is right about (mean alpha)")


def _show_best(
    title: str, made: Design, ladders: tuple[Ladder, ...], exact: tuple[ExactLadder, ...] | None, *, sequential: bool
) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column("rungs", justify="right")
    shown.add_column("best ladder")
    shown.add_column("gain", justify="right")
    shown.add_column("added", justify="right")
    if exact is not None:
        shown.add_column("best row by row")
        shown.add_column("gain", justify="right")
    before = None
    sizes = max(len(ladders), len(exact or ()))
    for size in range(1, min(made.most, sizes) + 1):
        cells = ["", "", ""]
        if size <= len(ladders):
            one = ladders[size - 1]
            gain = made.top_cost / (one.sequential_cost if sequential else one.router_cost)
            cells = [_names(made, one), times(gain), "" if before is None else f"{gain - before:+,.2f}"]
            before = gain
        if exact is not None:
            found = exact[size - 1]
            cells += [_names(made, found), times(made.top_cost / found.cost)]
        shown.add_row(str(size), *cells)
    console.print(shown)


def _names(made: Design, one: Ladder | ExactLadder) -> str:
    return " ".join(made.zoo.names[rung] for rung in one.rungs)


def _show_rungs(made: Design) -> None:
    zoo, chosen = made.zoo, list(made.chosen.rungs)
    savings = rung_savings(zoo.accuracy[chosen], zoo.cost[chosen], sequential=True, network=zoo.network_of(chosen))
    shown = Table(title=f"Cheapest cascade of at most {made.most} rungs", title_justify="left")
    shown.add_column("rung")
    for column in (f"cost ({zoo.cost_unit})" if zoo.cost_unit else "cost", "step", "accuracy", "saves a row"):
        shown.add_column(column, justify="right")
    for place, rung in enumerate(chosen):
        step = "" if place == 0 else times(zoo.cost[rung] / zoo.cost[chosen[place - 1]])
        saving = amount(savings[place]) if place < len(savings) else ""
        shown.add_row(zoo.names[rung], amount(zoo.cost[rung]), step, f"{zoo.accuracy[rung]:.2%}", saving)
    console.print(shown)
    cost = zoo.cost[chosen]
    largest = max((cost[1:] / cost[:-1]).tolist(), default=1.0)
    console.print(f"range {times(cost[-1] / cost[0])}, size {len(chosen)}, largest step {times(largest)}", highlight=False)
    if made.not_paying:
        names = ", ".join(zoo.names[rung] for rung in made.not_paying)
        console.print(f"in a cascade of all models that are not dominated, each of these costs more than it saves: {names}")
