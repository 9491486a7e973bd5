"""The figure of a plan: accuracy and stage mix against arrival rate. Draws what the plan holds and computes nothing."""

from typing import Any

import numpy as np

from cascade.calibration.plan import Plan
from cascade.report.style import CASCADE, LIMIT, OTHER, STAGES, pyplot

SHED = "#e8e3dc"
"""Requests that are turned away."""
LEAST_NAMED = 4.0
"""Percent that an area must have somewhere for its name to fit in."""


def plan_figure(plan: Plan, marked: float | None = None) -> Any:
    """Accuracy (A*, planned, stage 0 alone) above, who answers below; the rate on a logarithmic axis.

    Args:
        plan: the plan.
        marked: a rate to mark.

    Returns:
        The matplotlib figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 6.0), height_ratios=(3, 2))
    rates = np.array([point.rate for point in plan.points])

    above.plot(rates, [100 * point.limit for point in plan.points], color=LIMIT, lw=1.4, label="A*, the fluid limit")
    above.plot(rates, [100 * point.accuracy for point in plan.points], color=CASCADE, lw=2.4, label="planned")
    above.plot(
        rates,
        [100 * point.floor for point in plan.points],
        color=OTHER,
        lw=1.6,
        ls="--",
        label=f"{plan.stages[0].name} alone",
    )
    # What is shed counts as wrong, so accuracy falls off a cliff there; the eye belongs on what is before it.
    served = [point for point in plan.points if point.shed == 0] or list(plan.points)
    lowest, highest = 100 * min(point.floor for point in served), 100 * max(point.limit for point in served)
    room = 0.12 * (highest - lowest) + 0.1
    above.set_ylim(lowest - 2 * room, highest + room)
    above.set_ylabel("right answers, %")
    above.legend(loc="center left", bbox_to_anchor=(0.0, 0.36))
    above.set_title(f"{plan.ladder}: what it does as load rises", loc="left", fontsize=11)

    shares = 100 * np.array([point.exit_shares for point in plan.points]).T
    colours = [STAGES[k % len(STAGES)] for k in range(len(plan.stages))]
    below.stackplot(rates, shares, colors=colours, lw=0)
    shed = 100 * np.array([point.shed for point in plan.points])
    if shed.any():
        below.fill_between(rates, 100 - shed, 100, color=SHED, lw=0)
    _name_areas(below, rates, np.vstack([shares, shed]), [*(stage.name for stage in plan.stages), "shed"])
    below.set_ylim(0, 100)
    below.set_ylabel("answered by, %")
    below.set_xlabel("requests a second")
    below.set_xscale("log")
    below.set_xlim(rates[0], rates[-1])
    below.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    below.grid(visible=False)
    if marked is not None:
        for axes in (above, below):
            axes.axvline(marked, color="black", lw=1.0, ls=":")
        point = plan.at(marked)
        above.annotate(
            f"{marked:,.6g}/s: {point.accuracy:.2%}",
            (marked, 100 * point.accuracy),
            xytext=(6, -16),
            textcoords="offset points",
            fontsize=9,
        )
    return figure


def _name_areas(axes: Any, rates: Any, shares: Any, names: list[str]) -> None:
    """Write each name into its area, where the area is highest; an area that is nowhere high enough gets none."""
    tops = np.cumsum(shares, axis=0)
    positions = (np.log(rates) - np.log(rates[0])) / np.log(rates[-1] / rates[0])
    for index, (name, share, top) in enumerate(zip(names, shares, tops, strict=True)):
        shed = index == len(names) - 1
        where = int(np.where((positions > 0.03) & (shed | (positions < 0.94)), share, 0.0).argmax())
        if share[where] < LEAST_NAMED:
            continue
        axes.text(
            np.exp(np.log(rates[0]) + min(positions[where], 0.985) * np.log(rates[-1] / rates[0])),
            96.0 if shed else top[where] - share[where] / 2,
            name,
            ha="right" if positions[where] > 0.94 else "left" if positions[where] < 0.06 else "center",
            va="center",
            fontsize=7 if shed or share[where] < 7 else 9,
            color="black" if shed or index < 2 else "white",
        )
