"""The command calibrate: from an outcome table to what the server reads."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.calibration.artefact import Calibration, GainCurve, ServiceProfile, StageCalibration
from cascade.calibration.fitting import fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.console import console, narrow_table, print_json, progress_bar, read_routing, usage_errors, writing
from cascade.errors import ConfigError
from cascade.spec import Ladder

SPEC_SUFFIXES = (".yaml", ".yml")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    source: Annotated[
        Path,
        typer.Argument(metavar="SPEC|TABLE", help="The ladder's cascade.yaml, or an outcome table.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write calibration.json into; default for a spec: the ladder's own.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Rows to fit on; default: those called calibration for a spec, all for a table.")
    ] = None,
    price_per_cost: Annotated[
        float, typer.Option(min=0, help="For a table: gain that a unit of cost must promise; a spec names its own.")
    ] = 0.0,
    routing: Annotated[
        str, typer.Option(help="For a table: how rows will walk, cascade or direct; a spec names its own.")
    ] = "cascade",
    replace: Annotated[
        bool, typer.Option("--replace", help="Let every stage answer for itself: no recall, no combining.")
    ] = (False),
    seed: Annotated[int, typer.Option(help="Of the divisions for cross-validation.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Fit temperatures, the way each stage answers, and what every dearer stage would gain.

    For a table from elsewhere the stages are known by name only, so a server will not take the result for its own models.
    """
    with usage_errors():
        if source.suffix in SPEC_SUFFIXES:
            ladder = Ladder.read(source)
            table, digests, name = _own_table(ladder)
            prices, way = ladder.spec.base_prices, ladder.spec.routing
            split, path = split or "calibration", ladder.calibration_path
        else:
            if out is None:
                raise ConfigError("a table needs --out: the folder to write calibration.json into")
            table = OutcomeTable.read(source)
            digests, name = {stage: f"table {table.digest()[:16]}" for stage in table.stages}, source.stem
            prices, path = tuple(price_per_cost * table.cost), out / "calibration.json"
            way = read_routing(routing)
        if out is not None:
            path = out / "calibration.json"
        with progress_bar() as bar:
            task = bar.add_task("calibrate", total=1.0)
            calibration = fit(
                table,
                digests,
                ladder=name,
                split=split,
                prices=prices,
                answers="replace" if replace else "best",
                routing=way,
                seed=seed,
                progress=lambda done, total, what: bar.update(task, completed=done / total, description=what),
            )
        with writing(path):
            calibration.write(path)
    if as_json:
        print_json(calibration.model_dump(mode="json"))
        return
    _show(calibration, source)
    console.print(f"wrote {path}")


def _own_table(ladder: Ladder) -> tuple[OutcomeTable, dict[str, str], str]:
    table = OutcomeTable.read(ladder.table_path)
    digests = ladder.stage_digests()
    if list(table.stages) != list(digests):
        raise ConfigError(
            f"{ladder.table_path}: its stages are {', '.join(table.stages)}, the spec has {', '.join(digests)}; "
            "run `cascade profile` again"
        )
    ServiceProfile.read(ladder.service_path).check_belongs(list(digests), digests)
    return table, digests, ladder.spec.name


def _show(calibration: Calibration, source: Path) -> None:
    made_from = calibration.table
    which = f"{made_from.rows:,} {made_from.split or ''} rows".replace("  ", " ")
    shown = narrow_table(f"{which} of {source}")
    for column in ("stage", "alone", "served", "earlier answers", "T", "ECE, %", "rows", "largest gain"):
        shown.add_column(column, justify="left" if column in ("stage", "earlier answers", "largest gain") else "right")
    for stage in calibration.stages:
        before = "" if stage.ece_before is None else f"{stage.ece_before:.1%} → ".replace("%", "")
        shown.add_row(
            stage.name,
            f"{stage.accuracy:.2%}",
            f"{stage.served_accuracy:.2%}",
            _earlier(stage),
            f"{stage.temperature:.2f}",
            before + f"{100 * stage.ece_after:.1f}",
            f"{stage.rows:,}",
            _largest_gain(stage),
        )
    console.print(shown)


def _earlier(stage: StageCalibration) -> str:
    if stage.recall is not None:
        return "kept if surer"
    if stage.history_weight:
        return f"weight {stage.history_weight:.2f}"
    return "replaced"


def _largest_gain(stage: StageCalibration) -> str:
    """The most that any dearer stage would ever gain, of those that are curves; learned gains have no single maximum."""
    curves = [(max(gain.y), name) for name, gain in stage.gains.items() if isinstance(gain, GainCurve)]
    if curves:
        return "{1} {0:.2f}".format(*max(curves))
    return "learned" if stage.gains else ""
