"""Two figures of a verdict: right answers against offered load, and a step over time. Computes little, decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from cascade.report.style import CASCADE, LIMIT, OTHER, WARNING, pyplot
from loadtests.evidence import Run
from loadtests.judge import Verdict
from loadtests.phases import PhaseFigures, right_on_time
from loadtests.predict import SIMULATED

BASELINE = {"static": WARNING, "top": "#b08d3c"}
"""Colours of the baselines; another one is grey."""
BIN_S = 0.5
"""Slices of the step."""
LABEL_POINTS = 11.0
"""Least distance of two labels."""
ROOM = 2.0
"""Points above and below what is drawn."""


@dataclass(frozen=True)
class _Line:
    """One curve: its name, multiples of the top stage's capacity, shares in percent, half widths, and how it looks."""

    title: str
    multiples: Sequence[float]
    shares: Sequence[float]
    half: Sequence[float] | None
    style: dict[str, Any]


def load_figure(verdict: Verdict) -> Any:
    """Draw right answers on time, by requests offered, against the offered load: close up, and all of it.

    The candidate with 95 % intervals, the baselines, what the simulator predicts, A* and the floor; a vertical line at the
    rate of stage 0. The luck of the rows is taken out everywhere.

    Args:
        verdict: of runs of which some are steady.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    limits = verdict.evidence.limits
    unit, full = limits.unit_rate, limits.stage0_rate / limits.unit_rate
    lines = _lines(verdict)
    figure, (near, far) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 6.2), height_ratios=(1.6, 1.0))
    for axes in (near, far):
        for line in lines:
            axes.errorbar(line.multiples, line.shares, yerr=line.half, capsize=3, **line.style)
        axes.axvline(full, color=OTHER, lw=1.0, ls=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("right and in time, % of offered")
    # Beyond stage 0's rate even the best there is falls fast: close up, only what lies before is shown in full.
    highest = 100 * max((limits.best(rate) for rate in verdict.curve()[0]), default=1.0)
    near.set_ylim(100 * limits.floor(limits.stage0_rate) - ROOM, min(100.0, highest + ROOM))
    far.set_ylim(0, 100)
    _label_ends(far, [(line.shares[-1], line.title, line.style["color"]) for line in lines if len(line.shares)])
    near.annotate(
        "stage 0 is full",
        (full, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        color="#444444",
        fontsize=9,
    )
    far.set_xlabel(f"offered load, multiples of {unit:,.4g} requests a second")
    figure.align_ylabels()
    return figure


def _lines(verdict: Verdict) -> list[_Line]:
    evidence = verdict.evidence
    unit = evidence.limits.unit_rate
    rates, best, floors = verdict.curve()
    multiples = [rate / unit for rate in rates]
    lines = [
        _Line(title, multiples, [100 * value for value in values], None, {"color": colour, "ls": dashes, "lw": 1.6})
        for title, values, colour, dashes in (("A*", best, LIMIT, "-"), ("floor", floors, OTHER, "--"))
    ]
    for system in (*evidence.baselines, evidence.candidate):
        own = system == evidence.candidate
        colour = CASCADE if own else BASELINE.get(system, OTHER)
        style = {"color": colour, "lw": 2.0 if own else 1.4, "marker": "o", "ms": 4.5, "zorder": 4 + own}
        lines.append(_of_phases(system, [phase for _, phase in evidence.steady(system)], style, intervals=own))
    predicted = [each for run, phase in evidence.steady() for each in run.predicted or () if each.name == phase.name]
    style = {"color": CASCADE, "lw": 0.8, "ls": (0, (4, 2))}
    return [*lines, _of_phases(SIMULATED, predicted, style, intervals=False)]


def _of_phases(title: str, phases: Sequence[PhaseFigures], style: dict[str, Any], *, intervals: bool) -> _Line:
    half = [196 * phase.adjusted_se for phase in phases] if intervals else None
    return _Line(title, [phase.multiple for phase in phases], [100 * phase.adjusted for phase in phases], half, style)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at its right end; names that would cover each other are moved apart."""
    lowest = -inf
    for value, title, colour in sorted(ends):
        at = float(axes.transData.transform((1.0, value))[1]) * 72 / axes.figure.dpi
        lowest = max(at, lowest + LABEL_POINTS)
        axes.annotate(
            title,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, lowest - at),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def step_figure(run: Run) -> Any:
    """Draw a run over time in slices of half a second: offered rate, right and on-time answers, p99 of the latency.

    Args:
        run: usually of the scenario ``step``.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    recording = run.recording
    edges = np.append(np.arange(0.0, recording.arrivals.seconds - BIN_S / 2, BIN_S), recording.arrivals.seconds)
    slices = len(edges) - 1
    place = np.minimum(np.searchsorted(edges, recording.scheduled_s, side="right") - 1, slices - 1)
    offered = np.bincount(place, minlength=slices)
    some = np.where(offered > 0, offered, np.nan)
    right = np.bincount(place, right_on_time(recording), slices) / some
    on_time = np.bincount(place, recording.on_time, slices) / some
    p99_s = np.full(slices, np.nan)
    for each in np.unique(place[recording.answered]):
        p99_s[each] = np.quantile(recording.latency_s[recording.answered & (place == each)], 0.99)
    figure, (load, quality, latency) = plt.subplots(3, 1, sharex=True, figsize=(7.2, 5.4), height_ratios=(1.0, 1.6, 1.2))
    load.stairs(offered / np.diff(edges), edges, fill=True, color=OTHER, alpha=0.35)
    load.set_ylabel("offered per s")
    load.set_title(f"{recording.meta['system']}, {run.scenario}", loc="left", fontsize=10)
    quality.stairs(100 * on_time, edges, baseline=None, color=OTHER, lw=1.2)
    quality.stairs(100 * right, edges, baseline=None, color=CASCADE, lw=2.0)
    quality.set_ylim(top=102)
    ends = [(right, "right, on time", CASCADE), (on_time, "on time", OTHER)]
    _label_ends(quality, [(100 * float(np.nan_to_num(values[-1])), title, colour) for values, title, colour in ends])
    quality.set_ylabel("of offered (%)")
    latency.stairs(1e3 * p99_s, edges, baseline=None, color=CASCADE, lw=1.6)
    deadline_ms = 1e3 * float(np.median(recording.deadline_s))
    latency.axhline(deadline_ms, color=WARNING, lw=1.0, ls=":")
    latency.set_ylim(0, 1.15 * max(deadline_ms, float(np.nanmax(1e3 * p99_s, initial=0.0))))
    _label_ends(latency, [(deadline_ms, "deadline", WARNING)])
    latency.set_ylabel("p99 latency, ms")
    latency.set_xlabel("seconds")
    latency.set_xlim(0, float(edges[-1]))
    figure.align_ylabels()
    return figure
