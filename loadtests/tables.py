"""The verdict for people: tables for a terminal of 80 columns and the same as Markdown. Decides nothing.

A line a phase with what the simulator predicts beside it, a line a comparison, a line a clause.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.tables import replace_section
from loadtests.evidence import Clause, Run
from loadtests.judge import EXPLAIN, Verdict
from loadtests.phases import PhaseFigures

BEGIN, END = "<!-- loadtests/verdict.py -->", "<!-- end -->"
LOAD = ("phase", "x top", "on time", "right", "sim", "adj.", "A*", "cal.", "E", "p99 ms", "shed")
COMPARED = ("load", "baseline", "right", "theirs", "ours - theirs", "on time", "theirs")
SEVERAL = ("phase", "group", "requests", "on time", "right", "shed", "p99 ms")
LEGEND = (
    "x top: multiples of what the last stage can do; right: right answers on time by requests offered; sim: the same as "
    "simulated; adj.: the same with the luck of the rows taken out; A*: the fluid limit; cal.: what the prices give that "
    "fluid load has best on the calibration rows; E: share of the way to A* from stage 0 alone; with standard errors"
)


def show(verdict: Verdict, console: Console) -> None:
    """Print everything on the terminal."""
    for system, runs in verdict.evidence.runs.items():
        _print(console, f"{system} under load", LOAD, _phase_rows(runs))
        if system == verdict.evidence.candidate:
            console.print(LEGEND, style="dim", highlight=False)
            _print(console, f"{system}: where answers came from (simulated)", *_mix(verdict, runs))
            _print(console, f"{system}: by class, tenant and deadline", SEVERAL, _group_rows(runs))
    ours = verdict.evidence.candidate
    _print(console, f"{ours} and the baselines, same requests", COMPARED, _comparison_rows(verdict))
    for line in _gap_lines(verdict):
        console.print(line, style="yellow", highlight=False)
    table = Table(title="verdict", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("")
    table.add_column("clause", ratio=2)
    table.add_column("measured", ratio=3)
    for clause in verdict.clauses:
        colour = {True: "green", False: "bold red", None: "dim"}[clause.passed]
        what = escape(f"{clause.title}: {clause.wanted}" if clause.title else "")
        table.add_row(f"({clause.letter})", f"[{colour}]{_word(clause)}[/]", what, escape(clause.measured))
    console.print(table)
    colour = "bold green" if verdict.passed else "bold red"
    console.print(f"[{colour}]VERDICT: {'PASS' if verdict.passed else 'FAIL'}[/] ({escape(ours)})")


def write_section(verdict: Verdict, path: Path) -> None:
    """Put the tables between their markers in a Markdown file, which is made if there is none."""
    replace_section(path, BEGIN, END, markdown(verdict))


def markdown(verdict: Verdict) -> str:
    """All tables as Markdown, headings of the second and third level."""
    evidence = verdict.evidence
    limits, ours = evidence.limits, evidence.candidate
    rates = ", ".join(
        f"{stage} {rate:,.0f}/s" for stage, rate in zip(limits.table.stages, limits.capacity.rows_per_s, strict=True)
    )
    lines = [
        f"## Load tests: {ours}",
        "",
        f"**{'PASS' if verdict.passed else 'FAIL'}.** Capacities measured in place: {rates}; all of the traffic to the top "
        f"{limits.unit_rate:,.0f} requests/s, stage 0 with everything around it {limits.stage0_rate:,.0f} requests/s. "
        f"{LEGEND}.",
        "",
        *_markdown(("", "clause", "wanted", "measured"), [_clause_cells(clause) for clause in verdict.clauses]),
    ]
    for system, runs in evidence.runs.items():
        lines += ["", f"### {system} under load", "", *_markdown(LOAD, list(_phase_rows(runs)))]
        if system == ours:
            columns, rows = _mix(verdict, runs)
            lines += ["", "Where answers came from, simulated in brackets:", "", *_markdown(columns, list(rows))]
            if groups := list(_group_rows(runs)):
                lines += ["", *_markdown(SEVERAL, groups)]
    if compared := list(_comparison_rows(verdict)):
        lines += ["", f"### {ours} and the baselines", "", *_markdown(COMPARED, compared)]
    if gaps := list(_gap_lines(verdict)):
        lines += ["", *(f"- {line}" for line in gaps)]
    return "\n".join(lines)


def _print(console: Console, title: str, columns: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for cells in rows:
        table.add_row(*map(escape, cells))
    if table.row_count:
        console.print(table)
        console.print()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = "|".join([":--", *["--:"] * (len(columns) - 1)]) if columns[0] else "|".join([":--"] * len(columns))
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{align}|", *(f"| {row} |" for row in cells)]


def _clause_cells(clause: Clause) -> tuple[str, ...]:
    return f"({clause.letter}) {_word(clause)}", clause.title, clause.wanted, clause.measured


def _word(clause: Clause) -> str:
    return {True: "PASS", False: "FAIL", None: "-"}[clause.passed]


def _title(phase: PhaseFigures) -> str:
    return phase.scenario if phase.name in ("steady", "saturation") else f"{phase.scenario} {phase.name}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:,.0f}"


def _paired(run: Run) -> Iterator[tuple[PhaseFigures, PhaseFigures | None]]:
    """Each phase with its prediction."""
    yield from zip(run.phases, run.predicted or [None] * len(run.phases), strict=True)


def _phase_rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for phase, predicted in _paired(run):
            yield (
                _title(phase),
                f"{phase.multiple:.2g}" if phase.multiple < 10 else f"{phase.multiple:.0f}",
                _percent(phase.slo_attainment),
                _percent(phase.correct_on_time),
                "" if predicted is None else _percent(predicted.correct_on_time),
                f"{_percent(phase.adjusted)}±{_percent(phase.adjusted_se)}",
                _percent(phase.best),
                _percent(phase.foreseen),
                "" if phase.efficiency is None else f"{phase.efficiency:.2f}±{phase.efficiency_se:.2f}",
                _milliseconds(phase.p99_s),
                _percent(phase.shed),
            )


def _mix(verdict: Verdict, runs: Sequence[Run]) -> tuple[tuple[str, ...], Iterator[tuple[str, ...]]]:
    stages = verdict.evidence.limits.table.stages

    def rows() -> Iterator[tuple[str, ...]]:
        for run in runs:
            for phase, predicted in _paired(run):
                cells = [
                    _percent(phase.stages[stage], 0)
                    + ("" if predicted is None else f" ({_percent(predicted.stages[stage], 0)})")
                    for stage in stages
                ]
                cost = "" if phase.mean_cost is None else f"{phase.mean_cost:.3g}"
                yield _title(phase), f"{phase.offered_per_s:,.0f}", *cells, _percent(phase.degraded, 0), cost

    return ("phase", "offered/s", *stages, "degraded", "cost"), rows()


def _group_rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for phase in run.phases:
            for name, group in phase.groups.items():
                yield (
                    _title(phase),
                    name,
                    f"{group.offered:,}",
                    _percent(group.slo_attainment),
                    _percent(group.correct_on_time),
                    _percent(group.shed),
                    _milliseconds(group.p99_s),
                )


def _comparison_rows(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    for each in verdict.comparisons:
        yield (
            each.scenario,
            each.baseline,
            _percent(each.ours),
            _percent(each.theirs),
            f"{100 * each.difference:+.1f}±{100 * each.standard_error:.1f}",
            _percent(each.our_slo),
            _percent(each.their_slo),
        )


def _gap_lines(verdict: Verdict) -> Iterator[str]:
    for gap in verdict.gaps:
        yield (
            f"{gap.scenario}, {gap.phase}: {gap.measured:.1%} measured, {gap.predicted:.1%} simulated: more than "
            f"{EXPLAIN:.0%} apart"
        )
