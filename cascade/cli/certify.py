"""The command that certifies prices: which of them lose at most so much, on rows that nothing was fitted on."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cascade.calibration.artefact import Calibration, TableSource
from cascade.calibration.certificate import Certificate, digest_of
from cascade.calibration.certify import certify as make_certificate
from cascade.calibration.certify import path_through
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import fit_and_judge, fitted_on_these, judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.console import console, narrow_table, print_json, progress_bar, read_routing, usage_errors, writing
from cascade.errors import ConfigError
from cascade.policy.routing import Routing

ROUND_UP = 5e-6
"""Half of the last digit of a loss shown with three decimals of a percent, so that what is shown can be asked for."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(certify)


def certify(
    table: Annotated[Path, typer.Argument(help="Outcome table.", show_default=False)],
    max_loss: Annotated[
        float, typer.Option(help="Share of rows that may be lost: the whole ladder right, the served answer wrong.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Probability with which each statement must be true.")] = 0.9,
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json by which rows walk; default: one fitted on a part of the table."),
    ] = None,
    fit_split: Annotated[str | None, typer.Option(help="Split to fit on; default: a random half.")] = None,
    check_split: Annotated[
        str | None, typer.Option(help="Split to count losses in; default: the other half, or with --calibration all rows.")
    ] = None,
    routing: Annotated[str, typer.Option(help="How rows walk: cascade, or direct, which may skip stages.")] = "cascade",
    out: Annotated[Path | None, typer.Option(help="Certificate file to write.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random division of rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Find the boldest prices that are certified to lose at most so much, and bound the loss of all others.

    Certified means: unless the labelled rows were drawn unluckily, which happens with probability at most
    1 - confidence, no more than max-loss of future rows like them get a wrong answer where the whole ladder would have
    been right.

    Exits with 1 if nothing can be certified, with 2 if the rows are too few for any certificate.
    """
    with usage_errors():
        way = read_routing(routing)
        read = OutcomeTable.read(table)
        with progress_bar() as bar:
            task = bar.add_task("certify", total=1.0)

            def progress(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done / total, description=what)

            if calibration is not None:
                fitted, judged, source = _by_file(read, calibration, fit_split, check_split, way)
            else:
                fitted, judged = fit_and_judge(
                    read, fit_split=fit_split, check_split=check_split, routing=way, seed=seed, progress=progress
                )
                part = check_split or f"half that was not fitted on, seed {seed}"
                source = TableSource(digest=read.digest(), rows=judged.rows, split=part)
            certificate = make_certificate(
                judged,
                max_loss=max_loss,
                confidence=confidence,
                path=path_through(judged.cost, fitted.prices),
                seed=seed,
                table=source,
                calibration=digest_of(fitted),
                progress=progress,
            )
        if out is not None:
            with writing(out):
                certificate.write(out)
    if as_json:
        print_json(certificate.model_dump(mode="json"))
    else:
        _show(certificate, str(table), fitted.prices)
        if out is not None:
            console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)
    if certificate.chosen is None:
        raise typer.Exit(1)


def _by_file(
    table: OutcomeTable, path: Path, fit_split: str | None, check_split: str | None, routing: Routing
) -> tuple[Calibration, JudgedTable, TableSource]:
    """Judge the rows by a calibration that was fitted on others."""
    if fit_split is not None:
        raise ConfigError("--fit-split says what to fit on, but with --calibration nothing is fitted: leave one out")
    calibration = Calibration.read(path)
    rows = table if check_split is None else table.select(check_split)
    digest, fitted_on = table.digest(), calibration.table
    if fitted_on_these(calibration, digest, check_split, rows):
        part = "all rows" if fitted_on.split is None else f"split {fitted_on.split!r}"
        raise ConfigError(
            f"{path}: was fitted on {part} of this very table; a certificate needs rows that nothing was fitted on "
            "(another table, or --check-split)"
        )
    source = TableSource(digest=digest, rows=rows.rows, split=check_split)
    return calibration, judge_table(rows, calibration, routing), source


def _show(certificate: Certificate, table: str, base_prices: tuple[float, ...]) -> None:
    dearest, sure = certificate.stages[-1], f"{1 - certificate.delta:.4g}"
    console.print(
        f"{certificate.rows:,} rows of {table}; lost means: the whole ladder would be right, the served answer is wrong",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    shown = narrow_table(
        f"Along the path of prices; each column of bounds holds for all points at once, confidence {sure}",
        "free: prices may move freely up to here, and the loss stays certified",
    )
    columns = (f"price {dearest}", f"cost ({certificate.cost_unit})", "accuracy", "lost", "at most", "up to here")
    for column in columns:
        shown.add_column(column, justify="right")
    shown.add_column("")
    for index in _lines(certificate, base_prices):
        point = certificate.path[index]
        marks = [
            mark
            for mark, holds in (
                ("chosen", index == certificate.chosen),
                ("free", index == certificate.price_cap),
                ("base prices", point.prices[1:] == base_prices[1:]),
            )
            if holds
        ]
        shown.add_row(
            f"{point.prices[-1]:.3g}",
            f"{point.cost:,.4g}",
            f"{point.accuracy:.2%}",
            f"{point.loss:.2%}",
            f"{point.bound:.2%}",
            f"{point.bound_below:.2%}",
            ", ".join(marks),
            style="bold green" if index == certificate.chosen else "" if point.certified else "dim",
        )
    console.print(shown)
    _show_choice(certificate, sure)


def _show_choice(certificate: Certificate, sure: str) -> None:
    asked = f"a loss of {certificate.max_loss:.3g} with confidence {sure}"
    if certificate.chosen is None:
        console.print(
            f"[bold red]nothing can be certified at {asked}[/bold red]; "
            f"the smallest loss that these rows could certify is {certificate.smallest_max_loss + ROUND_UP:.3%}"
        )
        return
    chosen = certificate.path[certificate.chosen]
    console.print(
        f"[bold green]certified at {asked}[/bold green]: every point of the path up to the chosen one, "
        f"which costs {chosen.cost:,.4g} {certificate.cost_unit} a row"
    )
    pareto = certificate.pareto
    if pareto is None:
        console.print("with a price of its own for each stage: nothing passed, or half of the rows are too few")
    else:
        prices = ", ".join(f"{name} {price:.3g}" for name, price in zip(certificate.stages, pareto.prices, strict=True))
        console.print(
            f"with a price of its own for each stage, tested on {pareto.rows:,} rows: "
            f"{pareto.cost:,.4g} {certificate.cost_unit} a row, accuracy {pareto.accuracy:.2%}, lost {pareto.loss:.2%}\n"
            f"  at {prices}"
        )
    if certificate.groups:
        title = f"By group at the chosen prices; confidence {sure} for all together"
        shown = Table(title=title, title_justify="left")
        for column in ("group", "rows", "accuracy", "lost", "at most", "certified"):
            shown.add_column(column, justify="left" if column in ("group", "certified") else "right")
        for group in certificate.groups:
            figures = (f"{group.rows:,}", f"{group.accuracy:.2%}", f"{group.loss:.2%}", f"{group.bound:.2%}")
            shown.add_row(group.name, *figures, "yes" if group.certified else "[yellow]no[/yellow]")
        console.print(shown)


def _lines(certificate: Certificate, base_prices: tuple[float, ...]) -> list[int]:
    """About a dozen points of the path: the ends, those around the choice, and those that are marked."""
    last, around = len(certificate.path) - 1, certificate.chosen or 0
    base = [index for index, point in enumerate(certificate.path) if point.prices[1:] == base_prices[1:]]
    cap = [] if certificate.price_cap is None else [certificate.price_cap]
    spread = [last * step // 4 for step in range(5)]
    return sorted({*spread, *range(max(0, around - 3), min(last, around + 3) + 1), *cap, *base})
