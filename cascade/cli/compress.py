"""The command compress: cheaper variants of a ladder's rungs, and whether they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascade.cli.console import console, errors, narrow_table, print_json, progress_bar, usage_errors
from cascade.cli.outputs import say_written, times
from cascade.errors import ConfigError
from cascade.spec import Ladder, StageSpec

if TYPE_CHECKING:
    from cascade.compressing import Made
    from cascade.models.compress import How, Method, Rows
    from cascade.rungs import Compressed, Rung

METHODS = ("int8-dynamic", "int8-static", "float16", "bfloat16", "pruned", "distilled")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compress)


def compress(
    spec: Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)],
    stage: Annotated[list[str], typer.Argument(help="Stages to make variants of.", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(METHODS)}; may be repeated. Default: all for which there is what they need."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Labelled training rows, .npz like the ladder's data; for int8-static, pruned and distilled."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for weights, rungs.yaml, outcomes.npz and service.json.", show_default=False)
    ] = None,
    keep: Annotated[float, typer.Option(help="pruned: share of the channels that stay.")] = 0.5,
    norm: Annotated[str, typer.Option(help="pruned: l1 or l2, by which channels are ordered.")] = "l2",
    leave: Annotated[list[str] | None, typer.Option(help="int8: layer to leave as it is; may be repeated.")] = None,
    student: Annotated[
        str | None,
        typer.Option(help="distilled: a stage, which goes on from its weights, or a factory, which begins afresh."),
    ] = None,
    student_args: Annotated[str, typer.Option(help="distilled: keyword arguments of that factory, JSON.")] = "{}",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows in a training, at most.")] = 5,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of the CPU that a training may take, at most.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate; default: 0.002, 0.001 after pruning.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the teacher's and the student's softmax.")] = 2.0,
    soft: Annotated[float, typer.Option(help="Share of the loss that the teacher has; the labels have the rest.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Of a student's first weights and the order of rows.")] = 0,
    test: Annotated[bool, typer.Option("--test", help="Also write test-outcomes.npz, on the test rows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Make cheaper variants of rungs, and measure them beside all rungs of the ladder.

    Accuracies are measured on the calibration rows, on which nothing is trained; times in turns, on this machine. Then
    `cascade ladder OUT/outcomes.npz` says which rungs make the best ladder.
    """
    from cascade.compressing import make_variant, training_rows
    from cascade.rungs import measure, write

    with usage_errors():
        ladder = Ladder.read(spec)
        stages = _stages(ladder, stage)
        folder = out if out is not None else ladder.path("compressed")
        how = _how(ladder, keep, norm, leave, student, student_args, epochs, minutes, learning_rate, temperature, soft, seed)
        chosen = _methods(method, rows, how)
        trained: Rows | None = None
        if rows is not None:
            trained, left_out = training_rows(ladder, rows)
            if left_out:
                errors.print(
                    f"note: {left_out:,} rows of {rows} calibrate or test the ladder, and are left out", markup=False
                )
        made: list[Made] = []
        with progress_bar() as bar:
            jobs = [(each, one) for each in stages for one in chosen]
            task = bar.add_task("compress", total=float(len(jobs) + 1))

            def progress(what: str, share: float) -> None:
                bar.update(task, completed=len(made) + share, description=what)

            for each, one in jobs:
                progress(f"{each.name}-{one}", 0.0)
                made.append(make_variant(ladder, each, one, how, trained, folder, progress=progress))
            found = measure(ladder, made, test=test, progress=progress)
            progress("done", 1.0)
        written = write(found, folder)
    if as_json:
        print_json({"rungs": [rung.document() for rung in found.rungs], "written": [str(path) for path in written]})
        return
    _show(found, ladder)
    say_written(written)


def _stages(ladder: Ladder, names: list[str]) -> list[StageSpec]:
    known = {each.name: each for each in ladder.spec.stages}
    for name in names:
        if name not in known:
            raise ConfigError(f"the ladder has no stage {name!r}; it has {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _methods(names: list[str] | None, rows: Path | None, how: "How") -> "list[Method]":
    from cascade.models.compress import Method

    if names:
        for name in names:
            if name not in METHODS:
                raise ConfigError(f"--method {name}: expected one of {', '.join(METHODS)}")
        chosen = [Method(name) for name in dict.fromkeys(names)]
    else:
        chosen = [each for each in Method if rows is not None or not each.needs_rows]
        chosen = [each for each in chosen if each is not Method.DISTILLED or how.student is not None]
    for each in chosen:
        if each.needs_rows and rows is None:
            raise ConfigError(f"--method {each} needs --rows: training rows, which neither calibrate nor test the ladder")
        if each is Method.DISTILLED and how.student is None:
            raise ConfigError("--method distilled needs --student: a stage or a factory")
    return chosen


def _how(
    ladder: Ladder,
    keep: float,
    norm: str,
    leave: list[str] | None,
    student: str | None,
    student_args: str,
    epochs: int,
    minutes: float | None,
    learning_rate: float | None,
    temperature: float,
    soft: float,
    seed: int,
) -> "How":
    from cascade.compressing import student_of
    from cascade.models.compress import How
    from cascade.models.distil import Training

    if not 0 < keep < 1:
        raise ConfigError(f"--keep: expected a share between 0 and 1, got {keep:g}")
    if norm not in ("l1", "l2"):
        raise ConfigError(f"--norm: expected l1 or l2, got {norm!r}")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes: expected a number above 0, got {minutes:g}")
    if not temperature > 0:
        raise ConfigError(f"--temperature: expected a number above 0, got {temperature:g}")
    if not 0 <= soft <= 1:
        raise ConfigError(f"--soft: expected a share, got {soft:g}")
    if learning_rate is not None and not learning_rate > 0:
        raise ConfigError(f"--learning-rate: expected a number above 0, got {learning_rate:g}")
    try:
        args: Any = json.loads(student_args)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--student-args: not JSON: {error}") from error
    if not isinstance(args, dict):
        raise ConfigError(f"--student-args: expected an object of keyword arguments, got {student_args}")

    def training(rate: float) -> Training:
        seconds = None if minutes is None else 60 * minutes
        return Training(epochs, seconds, rate=learning_rate or rate, temperature=temperature, soft=soft, seed=seed)

    return How(
        keep=keep,
        norm="l1" if norm == "l1" else "l2",
        leave=tuple(leave or ()),
        student=None if student is None else student_of(ladder, student, args),
        distilling=training(2e-3),
        mending=training(1e-3),
    )


def _show(found: "Compressed", ladder: Ladder) -> None:
    rows = f"{found.table.rows:,} calibration rows of {ladder.path(ladder.spec.data.calibration)}"
    legend = "Times in turns, medians; faster and accuracy are against the rung that a variant is of, ± standard error"
    shown = narrow_table(rows, legend)
    shown.add_column("rung", no_wrap=True)
    for column in ("row, ms", "1 row, ms", "faster", "accuracy", "change, points", "MB"):
        shown.add_column(column, justify="right", no_wrap=True)
    for rung in found.rungs:
        variant = rung.parent is not None
        shown.add_row(
            rung.stage.name,
            f"{1e3 * rung.row_s:.3g}",
            f"{1e3 * rung.one.median_s:.3g}",
            f"{times(rung.speed)} ± {rung.speed_se:.2f}" if variant else "",
            f"{100 * rung.accuracy:.2f}",
            f"{100 * rung.change:+.2f} ± {100 * rung.change_se:.2f}" if variant else "",
            f"{rung.size / 1e6:.2f}",
        )
    console.print(shown)
    for rung in found.rungs:
        if rung.parent is not None:
            console.print(_words(rung), highlight=False, markup=False, soft_wrap=True)


def _words(rung: "Rung") -> str:
    note = f" ({rung.note})" if rung.note else ""
    return f"{rung.stage.name}: {rung.verdict}{note}"
