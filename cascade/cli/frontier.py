"""The command that shows accuracy against cost: the cascade, single models, chance, and the oracles' limits."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cascade.calibration.artefact import Calibration
from cascade.calibration.frontier import LOSSES, Frontier, Point, Sweep
from cascade.calibration.frontier import frontier as make_frontier
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import fit_and_judge, fitted_on_these, judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.console import console, errors, narrow_table, print_json, progress_bar, read_routing, usage_errors
from cascade.cli.outputs import amount, say_written, times, write_outputs
from cascade.errors import ConfigError
from cascade.policy.routing import Routing
from cascade.report.frontier import frontier_figure

SHOWN_POINTS = 12
"""Points of the cascade's curve in the table for people."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(frontier)


def frontier(
    table: Annotated[Path, typer.Argument(help="Outcome table.", show_default=False)],
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json by which rows walk; default: fitted on a part of the table."),
    ] = None,
    fit_split: Annotated[str | None, typer.Option(help="Split to fit on; default: a random half.")] = None,
    check_split: Annotated[
        str | None, typer.Option(help="Split to walk; default: the other half, or with --calibration all rows.")
    ] = None,
    routing: Annotated[str, typer.Option(help="How rows walk: cascade, or direct, which may skip stages.")] = "cascade",
    points: Annotated[int, typer.Option(help="Prices to walk at, at least 3.")] = 120,
    out: Annotated[Path | None, typer.Option(help="Write STEM.svg, STEM.png and STEM.json.", metavar="STEM")] = None,
    seed: Annotated[int, typer.Option(help="Of every random division of rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Compare the cascade at every price with single models, escalation at random, and what an oracle could do.

    Without --calibration the cascade is fitted twice: with the answers of earlier stages recalled or combined where that
    is right more often ("best"), and with every stage answering for itself ("replace"); with --routing direct, once with
    rows that may skip stages ("direct"), and once as a cascade ("best").
    """
    with usage_errors():
        if points < 3:
            raise ConfigError(f"--points: a frontier needs at least 3, got {points}")
        way = read_routing(routing)
        read = OutcomeTable.read(table)
        if calibration is not None:
            tables, operating = _by_file(read, calibration, fit_split, check_split, way)
        else:
            tables, operating = _fitted(read, fit_split, check_split, seed, way), None
        made = make_frontier(tables, points=points, operating_prices=operating)
        document = made.document()
        written = [] if out is None else write_outputs(out, frontier_figure(made), document)
    if as_json:
        print_json(document)
        return
    _show_points(made, str(table))
    _show_gains(made)
    _show_oracles(made)
    if written:
        say_written(written)


def _fitted(
    table: OutcomeTable, fit_split: str | None, check_split: str | None, seed: int, routing: Routing
) -> dict[str, JudgedTable]:
    """Fit twice on one part, judge the other."""
    with progress_bar() as bar:
        task = bar.add_task("fit", total=2.0)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done / total, description=what)

        def progress_again(done: int, total: int, what: str) -> None:
            bar.update(task, completed=1 + done / total, description=what)

        judge = partial(fit_and_judge, table, fit_split=fit_split, check_split=check_split, seed=seed)
        _, best = judge(answers="best", progress=progress)
        if routing == "direct":
            _, direct = judge(routing=routing, progress=progress_again)
            return {"direct": direct, "best": best}
        _, replace = judge(answers="replace", progress=progress_again)
    return {"best": best, "replace": replace}


def _by_file(
    table: OutcomeTable, path: Path, fit_split: str | None, check_split: str | None, routing: Routing
) -> tuple[dict[str, JudgedTable], tuple[float, ...]]:
    """Judge the rows by a calibration; say so if it was fitted on these very rows."""
    if fit_split is not None:
        raise ConfigError("--fit-split says what to fit on, but with --calibration nothing is fitted: leave one out")
    fitted = Calibration.read(path)
    rows = table if check_split is None else table.select(check_split)
    if fitted_on_these(fitted, table.digest(), check_split, rows):
        errors.print(
            "[yellow]note:[/yellow] the calibration was fitted on these very rows, so the cascade looks better than it is"
        )
    return {"calibrated": judge_table(rows, fitted, routing)}, fitted.prices


def _show_points(made: Frontier, source: str) -> None:
    judged, main = made.judged, made.main
    error = max(point.accuracy_se for point in main.points)
    legend = f"Accuracies in %, standard errors up to {100 * error:.2f}; random: escalation by chance"
    shown = narrow_table(f"{judged.rows:,} rows of {source}", legend)
    shown.add_column("", no_wrap=True)
    # One column for the whole mix: a ladder may have many stages, a terminal has 80 columns.
    for column in (f"cost ({judged.cost_unit})", "cheaper", "accuracy", "random", "oracle", "exits by stage"):
        shown.add_column(column, justify="right", no_wrap=True)

    def add(name: str, point: Point) -> None:
        chance, limit = main.random_at(point.cost), main.oracle.accuracy_at(point.cost, sequential=True)
        shown.add_row(
            name,
            amount(point.cost),
            times(main.top_cost / point.cost),
            f"{100 * point.accuracy:.2f}",
            f"{100 * float(chance):.2f}",
            f"{100 * float(limit):.2f}",
            "/".join(f"{100 * share:.0f}" for share in point.exit_shares),
        )

    for point in _spread(main):
        add("", point)
    if made.operating is not None:
        shown.add_section()
        add("as configured", made.operating)
    shown.add_section()
    for name, cost, accuracy in zip(judged.stages, judged.alone, made.accuracy, strict=True):
        shown.add_row(f"only {name}", amount(cost), times(main.top_cost / cost), f"{100 * accuracy:.2f}")
    console.print(shown)


def _spread(sweep: Sweep) -> list[Point]:
    """A dozen of the best points, the ends among them."""
    best = sweep.best
    count = min(SHOWN_POINTS, len(best))
    return [best[round(k * (len(best) - 1) / max(count - 1, 1))] for k in range(count)]


def _show_gains(made: Frontier) -> None:
    top = made.judged.stages[-1]
    shown = Table(
        title=f"How many times cheaper than {top} alone, which is right on {made.accuracy[-1]:.2%}", title_justify="left"
    )
    shown.add_column("accuracy lost, at most")
    for name in made.sweeps:
        for column in (name, "its oracle", "share"):
            shown.add_column(column, justify="right")
    for loss in LOSSES:
        cells = []
        for sweep in made.sweeps.values():
            gain, share = sweep.gain(loss), sweep.cost_share(loss)
            cells += ["never" if gain is None else times(gain), times(sweep.oracle_gain(loss))]
            cells.append("" if share is None else f"{share:.0%}")
        shown.add_row(f"{loss:.1%}", *cells)
    console.print(shown)
    for name, sweep in made.sweeps.items():
        most, share = sweep.most_accurate, sweep.mean_accuracy_share
        line = f"{name}: at best {most.accuracy:.2%}, {-most.loss:+.2%} ± {most.loss_se:.2%} against {top}"
        if share is not None:
            line += f"; at equal cost {share:.0%} of the oracle's lead over chance"
        console.print(line, highlight=False)


def _show_oracles(made: Frontier) -> None:
    shown = Table(
        title=f"Oracle that knows which models are right: gain over {made.judged.stages[-1]}", title_justify="left"
    )
    shown.add_column("")
    for column in ("accuracy", "picks one model", "walks the ladder"):
        shown.add_column(column, justify="right")
    oracles = {
        "exact": made.router,
        "estimated, constant alpha": made.constant_alpha,
        "guaranteed, alpha = 1": made.nested,
    }
    for name, oracle in oracles.items():
        if oracle is not None:
            shown.add_row(name, f"{oracle.accuracy:.2%}", times(oracle.router_gain), times(oracle.sequential_gain))
    console.print(shown)
