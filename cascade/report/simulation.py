"""The figure of a simulated run: what was offered, how right the answers were, where they came from. Computes little."""

from typing import Any

import numpy as np

from cascade.calibration.judged import JudgedTable
from cascade.report.style import CASCADE, LIMIT, OTHER, STAGES, WARNING, pyplot
from cascade.simulation.outcome import Outcome, timeline
from cascade.simulation.record import Record

SLICES = 100
"""Slices of time, at most."""
REQUESTS_A_SLICE = 200
"""Fewer than this say too little: slices are then joined, down to a quarter of it where a phase ends."""


def simulation_figure(record: Record, table: JudgedTable, outcome: Outcome, title: str) -> Any:
    """Draw a run over time: offered rate, right and on-time answers, the mix of stages.

    Args:
        record: what happened.
        table: the table that the rows came from.
        outcome: the run added up, with the limits of each phase if there are any.
        title: what was simulated.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    sliced = timeline(record, table, _slices(record))
    figure, (load, quality, mix) = plt.subplots(
        3, 1, sharex=True, figsize=(7.2, 6.4), gridspec_kw={"height_ratios": (1.0, 1.6, 1.6)}
    )
    edges, per_s = sliced.edges, sliced.offered / np.diff(sliced.edges)
    load.stairs(per_s, edges, fill=True, color=OTHER, alpha=0.35)
    load.stairs(per_s, edges, color=OTHER, lw=1.2, baseline=None)
    load.set_ylim(bottom=0)
    load.yaxis.set_major_formatter("{x:,.0f}")
    load.set_ylabel("offered per s")
    load.set_title(title, loc="left", fontsize=10)

    # Which rows came is chance that the server has no part in: stage 0 on the same rows shows it, and it is taken out.
    measured = 100 * (sliced.over_first + float(table.served[:, 0].mean()))
    band = 100 * 1.96 * sliced.over_first_se
    quality.stairs(measured + band, edges, baseline=measured - band, fill=True, color=CASCADE, alpha=0.18, lw=0)
    quality.stairs(measured, edges, baseline=None, color=CASCADE, lw=2.0, label="right and on time,\n95 % interval")
    if outcome.overall.best is not None:
        of_stretch = [outcome.phases[label] for label in record.arrivals.labels]
        for name, values, style in (
            ("fluid limit A*", [phase.best for phase in of_stretch], {"color": LIMIT, "lw": 1.6}),
            (f"all from {table.stages[0]}", [phase.floor for phase in of_stretch], {"color": OTHER, "lw": 1.6, "ls": "--"}),
        ):
            heights = 100 * np.array([np.nan if value is None else value for value in values])
            quality.stairs(heights, record.arrivals.edges, baseline=None, label=name, **style)
    quality.set_ylabel("of offered (%)")
    quality.autoscale_view()
    low, high = quality.get_ylim()
    quality.set_ylim(max(low, 0.0), min(high, 100.0))

    layers = [*sliced.exits, 1.0 - sliced.exits.sum(axis=0)]
    colours = [*(STAGES[stage % len(STAGES)] for stage in range(len(table.stages))), WARNING]
    # Each slice is drawn flat: a line from slice to slice would show mixes that never were.
    below = np.zeros(len(edges) - 1)
    for name, share, colour in zip([*table.stages, "no answer in time"], layers, colours, strict=True):
        above = below + 100 * np.nan_to_num(share)
        if np.nanmax(share, initial=0.0) > 1e-9:
            mix.stairs(above, edges, baseline=below, fill=True, color=colour, label=name)
        below = above
    mix.set_ylim(0, 100)
    mix.set_ylabel("answered by (%)")
    mix.set_xlabel("seconds")
    mix.set_xlim(0, float(edges[-1]))
    mix.grid(visible=False)
    for axes in (quality, mix):
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, reverse=axes is mix)
    figure.align_ylabels()
    return figure


def _slices(record: Record) -> Any:
    """Edges of slices: a fine even grid and the ends of phases, less those that would leave too few requests between."""
    arrivals = record.arrivals
    edges = np.union1d(np.linspace(0.0, arrivals.seconds, SLICES + 1), arrivals.edges)
    before = np.searchsorted(arrivals.instants, edges)
    kept = [0]
    for place in range(1, len(edges) - 1):
        enough = REQUESTS_A_SLICE / 4 if edges[place] in arrivals.edges else REQUESTS_A_SLICE
        if before[place] - before[kept[-1]] >= enough:
            kept.append(place)
    if len(kept) > 1 and before[-1] - before[kept[-1]] < REQUESTS_A_SLICE / 4:
        kept.pop()
    return edges[[*kept, len(edges) - 1]]
