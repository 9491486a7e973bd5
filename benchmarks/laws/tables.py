"""From outcomes to tables: for the terminal, and in markdown for the file that is kept. Runs nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.laws.compare import Outcome


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From one value a seed; the error of a single one is not known."""
        spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return cls(float(np.mean(values)), spread)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if np.isnan(self.error) else f"{self.mean:.2f} ± {self.error:.2f}"


class Grid:
    """Gaps by law and scenario.

    Args:
        outcomes: every law in every scenario, with the same seeds.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.scenarios = list(dict.fromkeys(o.scenario for o in outcomes))
        self.laws = list(dict.fromkeys(o.law for o in outcomes))
        self._of = {(o.law, o.scenario, o.seed): o for o in outcomes}
        self._seeds = sorted({o.seed for o in outcomes})

    def gap(self, law: str, scenario: str) -> Estimate:
        """Gap of a law in a scenario, points."""
        return Estimate.of([self._of[law, scenario, seed].gap for seed in self._seeds])

    def mean(self, law: str) -> Estimate:
        """Mean gap over the scenarios, points."""
        return Estimate.of(
            [float(np.mean([self._of[law, scenario, seed].gap for scenario in self.scenarios])) for seed in self._seeds]
        )

    def worst(self, law: str) -> tuple[str, Estimate]:
        """The scenario in which a law is furthest from the optimum."""
        scenario = max(self.scenarios, key=lambda name: self.gap(law, name).mean)
        return scenario, self.gap(law, scenario)

    def latency_ms(self, law: str) -> float:
        """Mean over scenarios of the mean latency of answers."""
        return float(np.mean([o.latency_ms for (name, _, _), o in self._of.items() if name == law]))

    def on_time(self, law: str) -> float:
        """Mean over scenarios of the share of requests offered that were answered on time."""
        return float(np.mean([o.on_time for (name, _, _), o in self._of.items() if name == law]))


def by_scenario(grid: Grid) -> Table:
    """All gaps: a row a scenario, a column a law."""
    table = Table(title="gap to the fluid optimum, points", padding=(0, 0, 0, 1), box=None)
    table.add_column(min_width=max(map(len, grid.scenarios)))
    for law in grid.laws:
        table.add_column(law.replace("-", "\n").replace("+", "\n+"), justify="right")
    for scenario in grid.scenarios:
        table.add_row(scenario, *(f"{grid.gap(law, scenario).mean:.2f}" for law in grid.laws))
    return table


def terminal(grid: Grid) -> Table:
    """A summary, a row a law."""
    table = Table(title="gap to the fluid optimum, points of correct-and-on-time answers per request", box=None)
    for heading in ("law", "mean", "worst", "in", "answered on time", "mean latency"):
        table.add_column(heading, justify="left" if heading in ("law", "in") else "right")
    for law in grid.laws:
        scenario, worst = grid.worst(law)
        on_time, latency = f"{grid.on_time(law):.1%}", f"{grid.latency_ms(law):.0f} ms"
        table.add_row(law, str(grid.mean(law)), str(worst), scenario, on_time, latency)
    return table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown, the first column to the left."""
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def gaps_markdown(grid: Grid) -> str:
    """All gaps: a row a law, a column a scenario."""
    head = ["law", *grid.scenarios, "mean ± s.e."]
    rows = [
        [law, *(f"{grid.gap(law, scenario).mean:.2f}" for scenario in grid.scenarios), f"**{grid.mean(law)}**"]
        for law in grid.laws
    ]
    return markdown(head, rows)
